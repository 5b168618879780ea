"""Holds what is known about a GPU: grouped FFN, links and memory, measured or by a formula."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

from eplb.core.named_enum import NamedEnum
from eplb.cost.grouped_ffn import GroupedFfn
from eplb.cost.links import Links
from eplb.errors import InputError, UnknownNameError


class Provenance(NamedEnum):
    """Where the seconds of a calibration come from."""

    MEASURED = "measured"
    """`eplb calibrate` on such a GPU."""
    FORMULA = "formula"
    """Rates of a datasheet times the part of them that another GPU reached: never checked on this one."""


@final
@dataclass(frozen=True, kw_only=True)
class Calibration:
    """One GPU.

    Parameters
    ----------
    gpu
        Its name: "NVIDIA H200".
    provenance
        Measured, or a formula.
    machine
        What it was measured on and with, in words: versions, clocks, power limit.
    ffn
        The grouped FFN by type of the weights: bf16, fp8.
    links
        Bandwidth and latency of a rank.
    memory_bytes
        Memory of the GPU.

    Raises
    ------
    InputError
        Without a type, or for memory that is not > 0.
    """

    gpu: str
    provenance: Provenance
    machine: str
    ffn: Mapping[str, GroupedFfn]
    links: Links
    memory_bytes: float

    def __post_init__(self) -> None:
        if not self.ffn:
            raise InputError(f"calibration of {self.gpu}: expected the FFN of at least one type")
        if not 0 < self.memory_bytes < float("inf"):
            raise InputError(f"memory_bytes = {self.memory_bytes}: expected finite and > 0")
        object.__setattr__(self, "ffn", MappingProxyType(dict(self.ffn)))

    def ffn_of(self, dtype: str) -> GroupedFfn:
        """The grouped FFN for weights of a type.

        Raises
        ------
        UnknownNameError
            If the calibration does not hold it.
        """
        if dtype not in self.ffn:
            kind = f"type of weights in the calibration of {self.gpu}"
            raise UnknownNameError(kind, dtype, self.ffn, "; choose one with --dtype bf16 (dtype=)")
        return self.ffn[dtype]

    @property
    def title(self) -> str:
        """The GPU, and whether it was measured."""
        return f"{self.gpu} ({self.provenance})"
