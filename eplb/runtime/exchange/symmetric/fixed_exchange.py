"""An exchange with buffers of fixed addresses, which a CUDA graph captures once and replays with changing contents.

    T tokens of a process (capacity)   K choices   M rows (capacity)   H hidden   S slots of this process

    slot_TK, weight_TK, num_tokens  ->  dispatch(x_TH)  ->  rows_MH, ends_S  ->  experts  ->  combine(y_MH)  ->  out_TH

No call allocates or waits for the device. Every process replays the same sequence of calls. A process that waits too
long, or has more tokens or rows than the buffers hold, writes an error word on all processes; its results are NaN, and
`raise_on_error` raises.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from eplb.core.named_enum import NamedEnum
from eplb.errors import InputError
from eplb.runtime.exchange.protocol import check_epochs
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.exchange.symmetric.availability import symmetric_refusal
from eplb.runtime.exchange.symmetric.memory import memory_of_group
from eplb.runtime.exchange.symmetric.region import BufferSizes, RegionShape
from eplb.runtime.exchange.symmetric.settings import KernelSettings, phases, row_phases
from eplb.runtime.exchange.symmetric.state import ExchangeLayout, RankState
from eplb.runtime.exchange.symmetric.warm_up import warm_up, warm_up_low_latency
from eplb.runtime.kernels.launch import interpreted
from eplb.runtime.kernels.low_latency import check_low_latency, combine_low_latency, dispatch_low_latency
from eplb.runtime.kernels.normal_mode import combine_rows, dispatch_rows, make_layout, publish_choices


class ExchangeMode(NamedEnum):
    """How the rows are found and moved."""

    NORMAL = "normal"
    """Layout kernels, then kernels that overlap the wire with the expansion: large batches."""
    LOW_LATENCY = "low-latency"
    """One kernel each way: a few hundred tokens."""


@final
@dataclass(frozen=True, eq=False)
class FixedExchange:
    """The buffers and the state of one process; write the inputs in place, then call or replay.

    Parameters
    ----------
    state
        Of this process, in a region of its own.
    settings
        Launch parameters.
    mode
        Normal or low latency.
    """

    state: RankState
    settings: KernelSettings
    mode: ExchangeMode
    layout: ExchangeLayout
    weight_TK: Tensor
    """[T, K] float32, input."""
    map_epoch: Tensor
    """[1] int64, input: epoch of the maps."""
    rows_MH: Tensor
    out_TH: Tensor

    @classmethod
    def create(  # noqa: PLR0913  # what an exchange is made of
        cls,
        group: RankGroup,
        sizes: BufferSizes,
        dtype: torch.dtype,
        device: torch.device,
        *,
        mode: ExchangeMode,
        settings: KernelSettings | None = None,
        timeout_s: float = 10.0,
    ) -> "FixedExchange":
        """Allocate the buffers, compile and load the kernels. A collective call of all processes.

        Raises
        ------
        InputError
            With the reason, if the processes cannot address each other's memory, or if the buffers are too large for
            the mode.
        """
        if refusal := symmetric_refusal(group, device):
            raise InputError(f"symmetric exchange: {refusal}")
        shape = RegionShape.of(group.num_processes, sizes)
        memory = memory_of_group(group.process_group, shape.num_bytes, device)
        first_slot = tuple(group.first_slot(process) for process in range(group.num_processes + 1))
        state = RankState.create(memory, shape, first_slot, timeout_s=timeout_s)
        exchange = cls.of_state(state, dtype, mode, KernelSettings.default() if settings is None else settings)
        if group.process_group is not None:
            torch.distributed.barrier(group.process_group)
        return exchange

    @classmethod
    def of_state(
        cls, state: RankState, dtype: torch.dtype, mode: ExchangeMode, settings: KernelSettings
    ) -> "FixedExchange":
        """Allocate the buffers of a rank, compile and load its kernels.

        Raises
        ------
        InputError
            If the buffers are too large for the mode, or their elements too small for the type of the rows.
        """
        if mode is ExchangeMode.LOW_LATENCY:
            check_low_latency(state)
        shape, device = state.shape, state.memory.device
        if shape.element_bytes < dtype.itemsize:
            raise InputError(
                f"rows of {dtype}: the buffers are made for {shape.element_bytes} bytes an element (element_bytes of "
                f"BufferSizes), expected at least {dtype.itemsize}"
            )
        slot_TK = torch.full((shape.tokens, shape.top_k), -1, dtype=torch.int64, device=device)
        exchange = cls(
            state,
            settings,
            mode,
            ExchangeLayout.allocate(state, slot_TK),
            torch.zeros((shape.tokens, shape.top_k), device=device),
            torch.zeros(1, dtype=torch.int64, device=device),
            torch.zeros((state.max_rows, shape.hidden), dtype=dtype, device=device),
            torch.zeros((shape.tokens, shape.hidden), dtype=dtype, device=device),
        )
        exchange.set_tokens(0)
        exchange.layout.map_epochs_P.zero_()
        if not interpreted():
            (warm_up_low_latency if mode is ExchangeMode.LOW_LATENCY else warm_up)(state, settings, dtype)
        return exchange

    @property
    def name(self) -> str:
        """The exchange and its mode."""
        return f"symmetric, {self.mode}"

    @property
    def slot_TK(self) -> Tensor:
        """[T, K] int64 slots, input; -1 is a masked selection."""
        return self.layout.slot_TK

    @property
    def num_tokens(self) -> Tensor:
        """[1] int32 tokens of this process, input."""
        return self.layout.num_tokens

    @property
    def ends_S(self) -> Tensor:
        """[S] int32 end of the rows of each slot of this process."""
        return self.layout.offs_S

    def set_tokens(self, num_tokens: int) -> None:
        """The number of tokens of this process from the next call on; a captured graph reads it from the device."""
        self.layout.num_tokens.fill_(num_tokens)

    def dispatch(self, x_TH: Tensor) -> Tensor:
        """Send the first tokens of x_TH; `rows_MH`, of which the first `ends_S[-1]` are valid.

        Raises
        ------
        InputError
            For rows of another type or width than the buffers, or that are not contiguous.
        """
        self._check_rows(x_TH)
        state, layout, rows_MH = self.state, self.layout, self.rows_MH
        if self.mode is ExchangeMode.NORMAL:
            publish_choices(state, layout, self.weight_TK, self.map_epoch)
            make_layout(state, layout)
            for phase in row_phases(state.shape.num_ranks):
                dispatch_rows(state, layout, self.settings, x_TH, rows_MH, phase)
            return rows_MH
        inputs = self.weight_TK, self.map_epoch, x_TH
        for phase in phases():
            dispatch_low_latency(state, layout, *inputs, rows_MH, settings=self.settings, phase=phase)
        return rows_MH

    def combine(self, y_MH: Tensor) -> Tensor:
        """Return the weighted sums; `out_TH`, of which the first tokens are valid.

        Raises
        ------
        InputError
            As `dispatch`.
        """
        self._check_rows(y_MH)
        combine = combine_low_latency if self.mode is ExchangeMode.LOW_LATENCY else combine_rows
        for phase in row_phases(self.state.shape.num_ranks):
            combine(self.state, self.layout, self.settings, y_MH, self.out_TH, phase)
        return self.out_TH

    def _check_rows(self, rows: Tensor) -> None:
        """The kernels take addresses and read the rows as those of the buffers."""
        hidden, dtype = self.out_TH.shape[1], self.out_TH.dtype
        if rows.dtype != dtype or rows.shape[1:] != (hidden,) or not rows.is_contiguous():
            raise InputError(
                f"rows of {rows.dtype} and shape {tuple(rows.shape)}, strides {rows.stride()}: expected {dtype} of "
                f"width {hidden}, contiguous, as the buffers"
            )

    def raise_on_error(self) -> None:
        """Raise what any process reported; the host waits for the device.

        Raises
        ------
        ExchangeTimeoutError
            If a process waited too long for another.
        ExchangeOverflowError
            If tokens or rows exceed the buffers, or a slot does not exist.
        ExchangeEpochError
            If the processes routed the last batch by different maps.
        """
        self.state.raise_on_error()
        check_epochs(self.layout.map_epochs_P.tolist())
