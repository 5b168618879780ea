"""Launches weighted reduce and combine, in one kernel for both modes of the symmetric exchange."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from eplb.runtime.exchange.symmetric.failures import Family
from eplb.runtime.exchange.symmetric.settings import Phase
from eplb.runtime.exchange.symmetric.state import ExchangeLayout, RankState
from eplb.runtime.kernels.launch import nanoseconds, resident_registers, tile


@final
@dataclass(frozen=True)
class CombineGrid:
    """How the kernel is cut.

    Parameters
    ----------
    programs
        Of both roles together; half as many for one role alone.
    on_device
        Programs of all virtual ranks of the GPU, which must be resident together.
    group
        Tokens of one flag.
    columns
        Most columns of a tile.
    warps
        Of a program.
    push_first
        The programs that send have the lower numbers; otherwise the roles alternate.
    """

    programs: int
    on_device: int
    group: int
    columns: int
    warps: int
    push_first: bool


def launch_combine(  # noqa: PLR0913  # state, layout, grid and tensors are one argument each
    state: RankState, layout: ExchangeLayout, grid: CombineGrid, y_MH: Tensor, out_TH: Tensor, phase: Phase
) -> None:
    """Return the weighted sums of the rows of other ranks' tokens, and add those of the own tokens [T, H]."""
    from eplb.runtime.kernels.combine_kernel import PUSH_FIRST, combine_kernel

    shape, offsets, hidden = state.shape, state.shape.offsets, y_MH.shape[1]
    is_whole = phase is Phase.BOTH
    combine_kernel[(grid.programs // 2 * 2 if is_whole else -(-grid.programs // 2),)](
        state.memory.addresses,
        y_MH,
        layout.row_CK,
        layout.weight_CK,
        layout.hit_T,
        layout.slot_TK,
        out_TH,
        layout.num_tokens_P,
        state.epochs[Family.COMBINE :],
        state.arrived[Family.COMBINE :],
        state.rank,
        offsets["errors"],
        offsets["combine_flags"],
        offsets["stage"],
        nanoseconds(state.timeout_s),
        P=shape.num_ranks,
        T=shape.tokens,
        K=shape.top_k,
        H=hidden,
        ROW_BYTES=shape.row_bytes,
        G=grid.group,
        BC=tile(max(hidden, 128), grid.columns),
        FIXED=shape.fixed_order,
        ROLE=int(PUSH_FIRST) if is_whole and grid.push_first else int(phase),
        THREADS=32 * grid.warps,
        num_warps=grid.warps,
        maxnreg=resident_registers(grid.on_device, grid.warps, y_MH.device),
        enable_fp_fusion=False,  # weight * row is rounded before it is added, as in the reference
    )
