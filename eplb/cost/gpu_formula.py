"""Predicts GPUs that nobody has measured, from their datasheets.

A roofline whose two parts add up: seconds = fixed + weights streamed / memory rate + operations / matrix rate, both
rates at 60 % of the datasheet. On the H200 it is off the measured grouped FFN by 5 to 28 % in the median, by expert
shape and type, and by up to 62 % at the 95th percentile: kernels pad tiles and run in waves. Other GPUs were not
checked at all.
"""

from functools import cache
from types import MappingProxyType

from eplb.cost.calibration import Calibration, Provenance
from eplb.cost.gpu_datasheets import GPU_DATASHEETS, Datasheet
from eplb.cost.grouped_ffn import GroupedFfn, TileRegime
from eplb.cost.links import Link, Links

REACHED = 0.6
"""Part of a datasheet's rates that a large grouped product reaches on the H200."""
_FIXED_S = 50e-6
_LINK_REACHED = 0.75
_INTRA_LATENCY_S, _INTER_LATENCY_S = 20e-6, 40e-6
_BYTES = MappingProxyType({"bf16": 2.0, "fp8": 1.0})
_ELEMENT_BYTES = 10.0
"""Rows are read and written in bf16 a few times between the products."""
_TILE_ROWS = 128


@cache
def formula_calibration(gpu: str) -> Calibration:
    """The calibration of a GPU of GPU_DATASHEETS, marked as a formula."""
    sheet = GPU_DATASHEETS[gpu]
    rates = {"bf16": sheet.bf16_tflops, "fp8": sheet.fp8_tflops}
    ffn = {name: _roofline(sheet, rate, _BYTES[name]) for name, rate in rates.items() if rate is not None}
    return Calibration(
        gpu=sheet.name,
        provenance=Provenance.FORMULA,
        machine=f"datasheet of {sheet.name}, {REACHED:.0%} of its rates",
        ffn=ffn,
        links=Links(
            Link(sheet.intra_node_gbps * _LINK_REACHED, _INTRA_LATENCY_S, "assumed: 75 % of the datasheet"),
            Link(sheet.inter_node_gbps * _LINK_REACHED, _INTER_LATENCY_S, "assumed: 75 % of one NIC"),
        ),
        memory_bytes=sheet.memory_gb * 1e9,
    )


def _roofline(sheet: Datasheet, tflops: float, weight_bytes: float) -> GroupedFfn:
    regime = TileRegime(
        most_rows_per_slot=float("inf"),
        tile_rows=_TILE_ROWS,
        tile_columns=_TILE_ROWS,
        tiles_at_once=1,
        fixed_s=_FIXED_S,
        expert_s=3 * weight_bytes / (REACHED * sheet.memory_tbps * 1e12),
        tile_s=0.0,
        row_s=6 / (REACHED * tflops * 1e12),
        element_s=_ELEMENT_BYTES / (REACHED * sheet.memory_tbps * 1e12),
        wave_s=0.0,
        depth_s=0.0,
    )
    return GroupedFfn(kernel="roofline", regimes=(regime,))
