"""Launches the kernels of the normal mode: choices, layout, dispatch + expand, weighted reduce + combine.

Every function enqueues on the current stream and never waits for the device.
"""

from torch import Tensor

from eplb.runtime.exchange.symmetric.failures import Family
from eplb.runtime.exchange.symmetric.settings import KernelSettings, Phase
from eplb.runtime.exchange.symmetric.state import BLOCK_TOKENS, ExchangeLayout, RankState
from eplb.runtime.kernels.combine import CombineGrid, launch_combine
from eplb.runtime.kernels.launch import nanoseconds, power_of_two, resident_registers, tile

_ROW_TILE = 8192
"""Most columns of a tile that holds one row."""


def publish_choices(state: RankState, layout: ExchangeLayout, weight_TK: Tensor, map_epoch: Tensor) -> None:
    """Write the slots and weights of the own tokens to every rank."""
    from eplb.runtime.kernels.choices_kernel import publish_choices_kernel

    shape, offsets = state.shape, state.shape.offsets
    publish_choices_kernel[(-(-shape.tokens // BLOCK_TOKENS),)](
        state.memory.addresses,
        layout.slot_TK,
        weight_TK,
        layout.hit_T,
        layout.num_tokens,
        map_epoch,
        state.first_slot_P1,
        layout.totals_S,
        state.epochs[Family.CHOICES :],
        state.rank,
        offsets["errors"],
        offsets["choices_flags"],
        offsets["header"],
        offsets["ids"],
        offsets["weights"],
        state.num_slots,
        P=shape.num_ranks,
        T=shape.tokens,
        K=shape.top_k,
        KP=power_of_two(shape.top_k),
        BT=BLOCK_TOKENS,
        SP=power_of_two(state.num_slots),
        num_warps=4,
    )


def make_layout(state: RankState, layout: ExchangeLayout) -> None:
    """Wait for the choices of all ranks and sort them by slot."""
    from eplb.runtime.kernels.choices_kernel import count_choices_kernel, number_rows_kernel, scan_counts_kernel

    shape, offsets, tab = state.shape, state.shape.offsets, state.memory.addresses
    sizes = {"P": shape.num_ranks, "T": shape.tokens, "K": shape.top_k}
    slots_padded = power_of_two(state.num_slots)
    count_choices_kernel[(state.num_blocks,)](
        tab,
        layout.local_slot_CK,
        layout.weight_CK,
        layout.place_CK,
        layout.counts_SB,
        layout.totals_S,
        layout.num_tokens_P,
        layout.map_epochs_P,
        state.first_slot_P1,
        state.epochs[Family.CHOICES :],
        state.arrived[Family.CHOICES :],
        state.rank,
        offsets["errors"],
        offsets["choices_flags"],
        offsets["header"],
        offsets["ids"],
        offsets["weights"],
        state.num_slots,
        nanoseconds(state.timeout_s),
        **sizes,
        KP=power_of_two(shape.top_k),
        BT=BLOCK_TOKENS,
        SP=slots_padded,
        CHUNK=8,
        THREADS=256,
        num_warps=8,
    )
    scan_counts_kernel[(state.num_slots,)](
        tab,
        layout.counts_SB,
        layout.totals_S,
        layout.base_SB,
        layout.offs_S,
        state.rank,
        offsets["errors"],
        state.num_slots,
        state.num_blocks,
        state.max_rows,
        P=shape.num_ranks,
        SP=slots_padded,
        CHUNK=tile(state.num_blocks, 1024),
        num_warps=4,
    )
    choices = layout.row_CK.numel()
    number_rows_kernel[(-(-choices // 1024),)](
        layout.local_slot_CK,
        layout.place_CK,
        layout.base_SB,
        layout.row_CK,
        choices,
        state.num_blocks,
        state.max_rows,
        T=shape.tokens,
        K=shape.top_k,
        BT=BLOCK_TOKENS,
        CHUNK=1024,
        num_warps=4,
    )


def dispatch_rows(  # noqa: PLR0913  # state, layout and settings are one argument each
    state: RankState,
    layout: ExchangeLayout,
    settings: KernelSettings,
    x_TH: Tensor,
    out_MH: Tensor,
    phase: Phase = Phase.BOTH,
) -> None:
    """Send the own tokens and store every copy that arrives at its rows [M, H]."""
    from eplb.runtime.kernels.dispatch_kernel import dispatch_kernel

    shape, offsets, hidden = state.shape, state.shape.offsets, x_TH.shape[1]
    programs = {
        Phase.BOTH: settings.pushers + settings.placers,
        Phase.SEND: settings.pushers,
        Phase.RECEIVE: settings.placers,
        Phase.SEND_AND_WAIT: settings.pushers,
    }[phase]
    dispatch_kernel[(programs,)](
        state.memory.addresses,
        x_TH,
        layout.hit_T,
        layout.row_CK,
        out_MH,
        layout.num_tokens,
        layout.num_tokens_P,
        state.epochs[Family.DISPATCH :],
        state.arrived[Family.DISPATCH :],
        state.rank,
        offsets["errors"],
        offsets["dispatch_flags"],
        offsets["recv"],
        offsets["scales"],
        settings.pushers,
        nanoseconds(state.timeout_s),
        P=shape.num_ranks,
        T=shape.tokens,
        K=shape.top_k,
        KP=power_of_two(shape.top_k),
        H=hidden,
        ROW_BYTES=shape.row_bytes,
        G=settings.dispatch_group,
        PUSH_BC=tile(max(hidden, 128), settings.push_columns),
        PLACE_BC=tile(max(hidden, 128), _ROW_TILE),
        STAGES=1 if phase is Phase.BOTH else 3,  # the other role needs the registers
        FP8=settings.float8_wire,
        ROLE=int(phase),
        THREADS=32 * settings.dispatch_warps,
        num_warps=settings.dispatch_warps,
        maxnreg=resident_registers(programs * settings.ranks_on_device, settings.dispatch_warps, x_TH.device),
    )


def combine_rows(  # noqa: PLR0913  # state, layout and settings are one argument each
    state: RankState,
    layout: ExchangeLayout,
    settings: KernelSettings,
    y_MH: Tensor,
    out_TH: Tensor,
    phase: Phase = Phase.BOTH,
) -> None:
    """Return the weighted sums of the rows of other ranks' tokens, and add those of the own tokens [T, H]."""
    grid = CombineGrid(
        programs=settings.combiners,
        on_device=settings.combiners * settings.ranks_on_device,
        group=settings.combine_group,
        columns=settings.combine_columns,
        warps=settings.combine_warps,
        push_first=False,
    )
    launch_combine(state, layout, grid, y_MH, out_TH, phase)
