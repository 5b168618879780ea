"""Compiles and loads the kernels of a rank before the first exchange.

Ranks compile at different times, longer than a rank should wait for another, and loading a module may wait for a kernel
that runs. So every kernel is executed once, without tokens, on a scratch region that stands for all ranks and whose
flags are raised beforehand.
"""

import torch

from eplb.errors import EplbError
from eplb.runtime.exchange.symmetric.memory import SymmetricMemory
from eplb.runtime.exchange.symmetric.settings import KernelSettings, row_phases
from eplb.runtime.exchange.symmetric.state import ExchangeLayout, RankState


def warm_up(state: RankState, settings: KernelSettings, dtype: torch.dtype) -> None:
    """Execute the kernels of the normal mode for rows of one type.

    Raises
    ------
    EplbError
        If a kernel reports an error.
    """
    from eplb.runtime.kernels.normal_mode import combine_rows, dispatch_rows, make_layout, publish_choices

    scratch, layout, x_TH = _scratch(state, dtype)
    weight_TK = torch.zeros(layout.slot_TK.shape, device=x_TH.device)
    publish_choices(scratch, layout, weight_TK, torch.zeros(1, dtype=torch.int64, device=x_TH.device))
    make_layout(scratch, layout)
    for phase in row_phases(state.shape.num_ranks):
        dispatch_rows(scratch, layout, settings, x_TH, x_TH, phase)
        combine_rows(scratch, layout, settings, x_TH, x_TH, phase)
    _check(scratch)


def warm_up_low_latency(state: RankState, settings: KernelSettings, dtype: torch.dtype) -> None:
    """Execute the kernels of the low-latency mode for rows of one type.

    Raises
    ------
    EplbError
        If a kernel reports an error.
    """
    from eplb.runtime.kernels.low_latency import combine_low_latency, dispatch_low_latency

    scratch, layout, x_TH = _scratch(state, dtype)
    weight_TK = torch.zeros(layout.slot_TK.shape, device=x_TH.device)
    map_epoch = torch.zeros(1, dtype=torch.int64, device=x_TH.device)
    dispatch_low_latency(scratch, layout, weight_TK, map_epoch, x_TH, x_TH, settings=settings)
    layout.num_tokens_P.zero_()
    for phase in row_phases(state.shape.num_ranks):
        combine_low_latency(scratch, layout, settings, x_TH, x_TH, phase)
    _check(scratch)


def _scratch(state: RankState, dtype: torch.dtype) -> tuple[RankState, ExchangeLayout, torch.Tensor]:
    """A state whose ranks share one region without rows, an empty layout and a row of zeros."""
    shape, device = state.shape, state.memory.device
    buffer = torch.zeros(shape.offsets["recv"], dtype=torch.uint8, device=device)
    for part in ("choices_flags", "dispatch_flags", "combine_flags", "ids"):
        first = shape.offsets[part]
        buffer[first : first + shape.size(part)].view(torch.int32).fill_(-1 if part == "ids" else 1)
    first = shape.offsets["counters"]
    buffer[first : first + shape.size("counters")].view(torch.int32).fill_(shape.tokens)
    addresses = torch.full((shape.num_ranks,), buffer.data_ptr(), dtype=torch.int64, device=device)
    memory = SymmetricMemory(state.rank, (buffer,) * shape.num_ranks, addresses)
    scratch = RankState.of_region(memory, shape, state.first_slot, max_rows=state.max_rows, timeout_s=state.timeout_s)
    slots = torch.full((1, shape.top_k), -1, dtype=torch.int64, device=device)
    layout = ExchangeLayout.allocate(scratch, slots)
    layout.num_tokens.zero_()
    return scratch, layout, torch.zeros((1, shape.hidden), dtype=dtype, device=device)


def _check(scratch: RankState) -> None:
    if scratch.errors().any():
        raise EplbError(f"warm-up of the exchange kernels: error words {scratch.errors().tolist()}, expected zeros")
