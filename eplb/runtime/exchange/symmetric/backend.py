"""The symmetric backend: ranks write tokens and sums into each other's memory, without a collective.

    Q processes (the ranks of the kernels)   T tokens of a process (capacity)   K choices   H hidden   D = Q*T copies

The copy of token t of process q has the number q*T + t, whether or not it visits this process. The host waits for the
device once in `plan_exchange`, which returns the number of rows, and once in `combine`, which raises the errors of any
process. Captured graphs call the kernel launchers instead and wait for nothing.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from eplb.errors import InputError
from eplb.runtime.exchange.expert_rows import ExpertRows
from eplb.runtime.exchange.protocol import ExchangeHandle, RoutingPlan, WireRows, check_epochs, pairs_of_ranks
from eplb.runtime.exchange.rank_group import RankGroup, as_bytes_if_float8
from eplb.runtime.exchange.symmetric.availability import symmetric_refusal
from eplb.runtime.exchange.symmetric.memory import memory_of_group
from eplb.runtime.exchange.symmetric.region import BufferSizes, RegionShape
from eplb.runtime.exchange.symmetric.settings import KernelSettings, row_phases
from eplb.runtime.exchange.symmetric.state import ExchangeLayout, RankState
from eplb.runtime.kernels.normal_mode import combine_rows, dispatch_rows, make_layout, publish_choices


@final
@dataclass(frozen=True, eq=False)
class Symmetric:
    """Push dispatch and combine over symmetric memory.

    An exchange that failed leaves the backend unusable: the processes are no longer at the same step.
    """

    group: RankGroup
    state: RankState
    settings: KernelSettings = field(default_factory=KernelSettings)
    name: ClassVar[str] = "symmetric"

    @classmethod
    def create(
        cls,
        group: RankGroup,
        sizes: BufferSizes,
        device: torch.device,
        *,
        fixed_order: bool = False,
        timeout_s: float = 10.0,
    ) -> "Symmetric":
        """Allocate the buffers. A collective call of all processes.

        Parameters
        ----------
        group
            The processes.
        sizes
            Largest batch.
        device
            Of this process.
        fixed_order
            True: return the row of every selection and add the rows at the source in the order of choices.
        timeout_s
            Seconds after which a process stops waiting for another.

        Raises
        ------
        InputError
            With the reason, if the processes cannot address each other's memory.
        """
        if refusal := symmetric_refusal(group, device):
            raise InputError(f"backend symmetric: {refusal}")
        shape = RegionShape.of(group.num_processes, sizes, fixed_order=fixed_order)
        memory = memory_of_group(group.process_group, shape.num_bytes, device)
        first_slot = tuple(group.first_slot(process) for process in range(group.num_processes + 1))
        state = RankState.create(memory, shape, first_slot, timeout_s=timeout_s)
        return cls(group, state, KernelSettings.default())

    @property
    def fixed_order(self) -> bool:
        """Whether rows are added at the source in the order of choices."""
        return self.state.shape.fixed_order

    def plan_exchange(self, routing: RoutingPlan) -> ExchangeHandle:
        """Write slots and weights to all processes, then sort the choices that arrived.

        Raises
        ------
        ExchangeOverflowError
            On every process, if one has more tokens than the buffers hold.
        ExchangeTimeoutError
            If a process does not take part.
        ExchangeEpochError
            On every process, if they routed by different maps.
        InputError
            For another K than that of the buffers.
        """
        if routing.top_k != self.state.shape.top_k:
            raise InputError(f"top_k = {routing.top_k}: the symmetric buffers are made for {self.state.shape.top_k}")
        layout = ExchangeLayout.allocate(self.state, routing.slot_TK.contiguous())
        layout.num_tokens.fill_(routing.num_tokens)
        publish_choices(self.state, layout, routing.weight_TK.contiguous(), routing.epoch)
        make_layout(self.state, layout)
        self.state.raise_on_error()
        check_epochs(layout.map_epochs_P.tolist())
        nothing_P = torch.zeros(self.group.topology.num_slots, dtype=torch.int64, device=routing.slot_TK.device)
        return ExchangeHandle(routing, self._expert_rows(layout), nothing_P, layout)

    def dispatch(self, x_TH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[M, H] rows for the experts of this process, by slot.

        Raises
        ------
        InputError
            If a row is larger than those of the buffers.
        """
        self._check_row(x_TH)
        x = as_bytes_if_float8(x_TH.contiguous())
        out = self.group.allocate((handle.rows.copy_of_row_M.numel(), x.shape[1]), x.dtype, x.device)
        for phase in row_phases(self.state.shape.num_ranks):
            dispatch_rows(self.state, _layout_of(handle), self.settings, x, out, phase)
        return out.view(x_TH.dtype)

    def combine(self, y_MH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[T, H] the weighted sum over each token's experts, in float32.

        Raises
        ------
        ExchangeTimeoutError
            If a process does not take part.
        InputError
            For float64 rows, or rows larger than those of the buffers.
        """
        self._check_row(y_MH)
        if y_MH.dtype == torch.float64:
            raise InputError("backend symmetric: float64 rows, expected a type that is summed in float32")
        out = torch.empty((handle.routing.num_tokens, y_MH.shape[1]), dtype=y_MH.dtype, device=y_MH.device)
        for phase in row_phases(self.state.shape.num_ranks):
            combine_rows(self.state, _layout_of(handle), self.settings, y_MH.contiguous(), out, phase)
        self.state.raise_on_error()
        return out

    def wire_rows(self, handle: ExchangeHandle) -> WireRows:
        """Copies by source and destination; a copy counts for the first rank of its process that it visits."""
        routing, num_ranks = handle.routing, self.group.topology.num_ranks
        valid_TK = routing.slot_TK >= 0
        rank_TK = self.group.rank_of_slot(routing.slot_TK.clamp(min=0))
        process_TK = self.group.process_of_rank(rank_TK.device)[rank_TK]
        source_T = routing.source.rank_T
        dispatch_RR = torch.zeros((num_ranks, num_ranks), dtype=torch.int64, device=rank_TK.device)
        for process in range(self.group.num_processes):
            first_T = torch.where(valid_TK & (process_TK == process), rank_TK, num_ranks).amin(dim=1)
            dispatch_RR += pairs_of_ranks(source_T[first_T < num_ranks], first_T[first_T < num_ranks], num_ranks)
        if not self.fixed_order:
            return WireRows(dispatch_RR, dispatch_RR)
        source_TK = source_T[:, None].expand_as(rank_TK)
        return WireRows(dispatch_RR, pairs_of_ranks(source_TK[valid_TK], rank_TK[valid_TK], num_ranks))

    def _expert_rows(self, layout: ExchangeLayout) -> ExpertRows:
        """The rows of the layout, as the other backends describe them; the host learns their number."""
        ends_S = layout.offs_S.long()
        rows_per_slot_S = ends_S.diff(prepend=ends_S.new_zeros(1))
        copy, choice = (layout.row_CK >= 0).nonzero(as_tuple=True)
        copy_of_row_M = torch.empty_like(copy)
        copy_of_row_M[layout.row_CK[copy, choice].long()] = copy
        slots_S = torch.arange(self.group.slots.start, self.group.slots.stop, device=copy.device)
        slot_of_row_M = torch.repeat_interleave(slots_S, rows_per_slot_S, output_size=copy.numel())
        return ExpertRows(copy_of_row_M, slot_of_row_M, rows_per_slot_S, layout.row_CK.long(), layout.weight_CK)

    def _check_row(self, x: Tensor) -> None:
        if x.shape[1] * x.element_size() > self.state.shape.row_bytes:
            raise InputError(
                f"rows of {x.shape[1]} {x.dtype}: the symmetric buffers hold rows of {self.state.shape.row_bytes} bytes"
            )


def _layout_of(handle: ExchangeHandle) -> ExchangeLayout:
    """The layout with the rows of the handle."""
    if not isinstance(handle.sent, ExchangeLayout):
        raise InputError("handle: made by another backend than symmetric")
    return replace(handle.sent, row_CK=handle.rows.row_DJ.int().contiguous(), weight_CK=handle.rows.weight_DJ)
