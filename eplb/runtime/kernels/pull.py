"""Launches combine by reading, for sums that are reduced before: few programs, which leave the GPU to other work."""

from torch import Tensor

from eplb.runtime.exchange.symmetric.failures import Family
from eplb.runtime.exchange.symmetric.settings import Phase
from eplb.runtime.exchange.symmetric.state import ExchangeLayout, RankState
from eplb.runtime.kernels.launch import nanoseconds, power_of_two, resident_registers, tile

_GROUP = 16
_ELEMENTS = 2048
"""Columns of a tile times ranks: the tiles of all ranks and of three steps of the loop are in shared memory."""
_WARPS = 16


def pull_sums(
    state: RankState, layout: ExchangeLayout, out_TH: Tensor, programs: int, phase: Phase = Phase.BOTH
) -> None:
    """Add the sums of all ranks, each in the part `stage` of the rank that computed them, to the own tokens [T, H].

    The sum of rank d for token t of rank s is row (parity of the epoch, s, t) of rank d's `stage`, in the type of the
    result. The caller has written the own sums on the current stream.

    Parameters
    ----------
    state, layout
        Of this rank; the layout has the hits and the number of tokens.
    out_TH
        [T, H], written.
    programs
        Of the kernel; all must be resident together.
    phase
        SEND announces the own sums, RECEIVE reads those of others.
    """
    from eplb.runtime.kernels.pull_kernel import pull_kernel

    shape, offsets, hidden = state.shape, state.shape.offsets, out_TH.shape[1]
    pull_kernel[(programs,)](
        state.memory.addresses,
        layout.hit_T,
        out_TH,
        layout.num_tokens,
        state.epochs[Family.COMBINE :],
        state.arrived[Family.COMBINE :],
        state.rank,
        offsets["errors"],
        offsets["combine_flags"],
        offsets["stage"],
        nanoseconds(state.timeout_s),
        P=shape.num_ranks,
        T=shape.tokens,
        H=hidden,
        ROW_BYTES=shape.row_bytes,
        G=_GROUP,
        BC=tile(max(hidden, 128), _ELEMENTS // power_of_two(shape.num_ranks)),
        STAGES=3,
        ROLE=int(phase),
        THREADS=32 * _WARPS,
        num_warps=_WARPS,
        maxnreg=resident_registers(programs, _WARPS, out_TH.device),
    )
