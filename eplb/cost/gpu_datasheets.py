"""Holds the vendors' figures of GPUs: dense matrix rates, memory, links."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import final


@final
@dataclass(frozen=True)
class Datasheet:
    """One GPU. Rates are dense, without sparsity; links are per GPU and direction."""

    name: str
    bf16_tflops: float
    fp8_tflops: float | None
    """None: no FP8 units."""
    memory_tbps: float
    memory_gb: float
    intra_node_gbps: float
    inter_node_gbps: float
    """One 400 Gbit/s NIC a GPU, 200 Gbit/s for the A100."""


GPU_DATASHEETS = MappingProxyType(
    {
        "a100": Datasheet("NVIDIA A100 80GB", 312, None, 2.04, 80, 300, 25),
        "h100": Datasheet("NVIDIA H100 SXM", 989, 1979, 3.35, 80, 450, 50),
        "h800": Datasheet("NVIDIA H800 SXM", 989, 1979, 3.35, 80, 200, 50),
        "h20": Datasheet("NVIDIA H20", 148, 296, 4.0, 96, 450, 50),
        "h200": Datasheet("NVIDIA H200", 989, 1979, 4.8, 141, 450, 50),
        "b200": Datasheet("NVIDIA B200", 2250, 4500, 8.0, 180, 900, 50),
        "mi300x": Datasheet("AMD MI300X", 1307, 2615, 5.3, 192, 448, 50),
    }
)
"""GPUs by short name."""
