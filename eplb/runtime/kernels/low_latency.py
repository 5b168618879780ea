"""Launches the kernels of the low-latency mode: one for dispatch with its layout, one for combine.

Every function enqueues on the current stream and never waits for the device.
"""

import torch
from torch import Tensor

from eplb.errors import InputError
from eplb.runtime.exchange.symmetric.failures import Family
from eplb.runtime.exchange.symmetric.region import RegionShape
from eplb.runtime.exchange.symmetric.settings import KernelSettings, Phase
from eplb.runtime.exchange.symmetric.state import ExchangeLayout, RankState
from eplb.runtime.kernels.combine import CombineGrid, launch_combine
from eplb.runtime.kernels.launch import (
    nanoseconds,
    num_multiprocessors,
    power_of_two,
    resident_registers,
    resident_warps,
    tile,
)

MOST_CHOICES = 8192
"""P*T*K: the choices of all ranks are held in the registers of every program."""
_ROW_TILE = 8192
_FEW_CHOICES = 2048
"""P*T*K that programs of four warps hold, so that there can be one for each copy."""
_COMBINE_PROGRAMS_OF_SM = 8


def check_low_latency(state: RankState) -> None:
    """Check that the choices of all ranks fit into the registers of a program.

    Raises
    ------
    InputError
        With the largest capacity.
    """
    shape = state.shape
    if (choices := shape.num_ranks * shape.tokens * shape.top_k) > MOST_CHOICES:
        raise InputError(
            f"low-latency mode: {shape.num_ranks} ranks x {shape.tokens} tokens x top-{shape.top_k} = {choices} "
            f"choices, expected at most {MOST_CHOICES}"
        )


def dispatch_low_latency(  # noqa: PLR0913  # state, layout and tensors are one argument each
    state: RankState,
    layout: ExchangeLayout,
    weight_TK: Tensor,
    map_epoch: Tensor,
    x_TH: Tensor,
    out_MH: Tensor,
    *,
    settings: KernelSettings,
    phase: Phase = Phase.BOTH,
) -> None:
    """Send choices and tokens, and store every copy that arrives at its rows [M, H]; writes the layout too."""
    from eplb.runtime.kernels.low_latency_kernel import low_latency_dispatch_kernel

    shape, offsets, hidden = state.shape, state.shape.offsets, x_TH.shape[1]
    programs, warps = dispatch_grid(shape, x_TH.device)
    low_latency_dispatch_kernel[(programs,)](
        state.memory.addresses,
        x_TH,
        layout.slot_TK,
        weight_TK,
        layout.hit_T,
        layout.row_CK,
        layout.weight_CK,
        layout.offs_S,
        layout.num_tokens_P,
        layout.map_epochs_P,
        out_MH,
        layout.num_tokens,
        map_epoch,
        state.first_slot_P1,
        state.epochs[Family.DISPATCH :],
        state.arrived[Family.DISPATCH :],
        state.rank,
        offsets["errors"],
        offsets["counters"],
        offsets["header"],
        offsets["ids"],
        offsets["weights"],
        offsets["recv"],
        offsets["scales"],
        state.num_slots,
        state.max_rows,
        nanoseconds(state.timeout_s),
        P=shape.num_ranks,
        T=shape.tokens,
        K=shape.top_k,
        KP=power_of_two(shape.top_k),
        H=hidden,
        ROW_BYTES=shape.row_bytes,
        NSEL=power_of_two(shape.num_ranks * shape.tokens * shape.top_k),
        BC=tile(max(hidden, 128), _ROW_TILE),
        FP8=settings.float8_wire,
        ROLE=int(phase),
        THREADS=32 * warps,
        num_warps=warps,
        maxnreg=resident_registers(programs * settings.ranks_on_device, warps, x_TH.device),
    )


def dispatch_grid(shape: RegionShape, device: torch.device) -> tuple[int, int]:
    """Programs, at least T, and their warps: few enough that the choices of all ranks fit into their registers."""
    copies = shape.num_ranks * shape.tokens
    if copies * shape.top_k <= _FEW_CHOICES:
        return copies, 4
    programs = max(min(copies, 2 * num_multiprocessors(device)), shape.tokens)
    return programs, 8 if programs <= 4 * num_multiprocessors(device) else 4


def combine_low_latency(  # noqa: PLR0913  # state, layout, settings and tensors are one argument each
    state: RankState,
    layout: ExchangeLayout,
    settings: KernelSettings,
    y_MH: Tensor,
    out_TH: Tensor,
    phase: Phase = Phase.BOTH,
) -> None:
    """Return the weighted sums of other ranks' tokens, and add those of the own tokens [T, H]."""
    grid = combine_grid(state.shape, settings, y_MH.device)
    launch_combine(state, layout, grid, y_MH, out_TH, phase)


def combine_grid(shape: RegionShape, settings: KernelSettings, device: torch.device) -> CombineGrid:
    """A program for each token that is sent, as far as all are resident, and as many for the own tokens."""
    most = _COMBINE_PROGRAMS_OF_SM * num_multiprocessors(device) // settings.ranks_on_device
    programs = 2 * min(max(shape.num_ranks - 1, 1) * shape.tokens, most // 2)
    on_device = programs * settings.ranks_on_device
    return CombineGrid(
        programs=programs,
        on_device=on_device,
        group=1,
        columns=_ROW_TILE,
        warps=resident_warps(on_device, settings.fast_combine_warps, device),
        push_first=True,
    )
