"""Launch parameters of the exchange kernels: numbers of programs, tiles, tokens of one flag."""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import final

from eplb.errors import InputError
from eplb.runtime.kernels.launch import interpreted


class Phase(IntEnum):
    """The part of an exchange that a call executes.

    BOTH is one kernel. Virtual ranks that run one after another send on all ranks first, then receive.
    """

    BOTH = 0
    SEND = 1
    RECEIVE = 2
    SEND_AND_WAIT = 3
    """Dispatch without the expansion: the copies stay where they arrive."""


def phases() -> tuple[Phase, ...]:
    """One kernel on the GPU; in the interpreter, programs that send must all run before one that waits."""
    return (Phase.SEND, Phase.RECEIVE) if interpreted() else (Phase.BOTH,)


def row_phases(num_ranks: int) -> tuple[Phase, ...]:
    """The phases of kernels that send rows alone, of which a single rank sends none."""
    return (Phase.RECEIVE,) if num_ranks == 1 else phases()


@final
@dataclass(frozen=True)
class KernelSettings:
    """Launch parameters.

    Parameters
    ----------
    pushers
        Programs of dispatch that send.
    placers
        Programs of dispatch that receive and expand.
    combiners
        Programs of combine.
    dispatch_group, combine_group
        Tokens of one flag; powers of two.
    push_columns, combine_columns
        Columns of a tile that is sent, and of one that is summed.
    dispatch_warps, combine_warps, fast_combine_warps
        Warps of a program; the last at most, in the low-latency mode.
    float8_wire
        Send e4m3 values with one scale for each 128 channels.
    ranks_on_device
        Virtual ranks that share the GPU; the programs of all must be resident together.

    Raises
    ------
    InputError
        For counts below 1, or groups that are not powers of two.
    """

    pushers: int = 64
    placers: int = 332
    combiners: int = 528
    dispatch_group: int = 8
    combine_group: int = 2
    push_columns: int = 1024
    combine_columns: int = 8192
    dispatch_warps: int = 8
    combine_warps: int = 4
    fast_combine_warps: int = 4
    float8_wire: bool = False
    ranks_on_device: int = 1

    def __post_init__(self) -> None:
        for name in ("pushers", "placers", "combiners", "dispatch_group", "combine_group", "push_columns"):
            if getattr(self, name) < 1:
                raise InputError(f"kernel settings: {name} = {getattr(self, name)}, expected >= 1")
        for name in ("dispatch_group", "combine_group", "push_columns", "combine_columns"):
            if getattr(self, name).bit_count() != 1:
                raise InputError(f"kernel settings: {name} = {getattr(self, name)}, expected a power of two")

    @classmethod
    def default(cls) -> "KernelSettings":
        """For the GPU; in the interpreter programs run one after another, so few of them."""
        return cls(pushers=1, placers=1, combiners=2) if interpreted() else cls()

    def shared_by(self, num_ranks: int) -> "KernelSettings":
        """The settings for virtual ranks that share one device."""
        return replace(
            self,
            pushers=max(self.pushers // num_ranks, 1),
            placers=max(self.placers // num_ranks, 1),
            combiners=max(self.combiners // num_ranks, 2),
            ranks_on_device=num_ranks,
        )
