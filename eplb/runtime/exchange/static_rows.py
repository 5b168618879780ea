"""Exchange of one process with fixed shapes: nothing waits for the device, so a CUDA graph can hold it.

T tokens   K choices   S slots, all of this process   M = T K rows

    rows x_MH   by slot, then by token; masked choices last:   | slot 0 | slot 1 | .. | masked |
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from eplb.runtime.exchange.expert_rows import ExpertRows, fast_weighted_sum
from eplb.runtime.exchange.protocol import ExchangeHandle, RoutingPlan, WireRows
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.exchange.reference import check_one_process, nothing_sent, unsent


@final
@dataclass(frozen=True)
class StaticRows:
    """A backend whose tensors have the same shapes for every routing of T tokens.

    Raises
    ------
    InputError
        For a group of more than one process.
    """

    group: RankGroup
    name: ClassVar[str] = "static"

    def __post_init__(self) -> None:
        check_one_process(self.group, self.name)

    def plan_exchange(self, routing: RoutingPlan) -> ExchangeHandle:
        """Sort the selections by slot, masked ones last; a token with a slot that does not exist becomes NaN."""
        num_slots, device = self.group.topology.num_slots, routing.slot_TK.device
        key_M = torch.where(routing.slot_TK >= 0, routing.slot_TK, num_slots).clamp(max=num_slots).reshape(-1)
        order_M = key_M.argsort(stable=True)
        row_M = torch.empty_like(order_M).scatter_(0, order_M, torch.arange(order_M.numel(), device=device))
        counts = torch.zeros(num_slots + 1, dtype=torch.int64, device=device)
        rows = ExpertRows(
            copy_of_row_M=order_M // routing.top_k,
            slot_of_row_M=key_M[order_M],
            rows_per_slot_S=counts.scatter_add_(0, key_M, torch.ones_like(key_M))[:num_slots],
            row_DJ=torch.where(routing.slot_TK >= 0, row_M.view_as(routing.slot_TK), -1),
            weight_DJ=torch.where(routing.slot_TK < num_slots, routing.weight_TK, torch.nan),
        )
        return unsent(routing, rows, self.group)

    def dispatch(self, x_TH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[M, H] the tokens' hidden states, by slot."""
        return x_TH[handle.rows.copy_of_row_M]

    def combine(self, y_MH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[T, H] the weighted sum over each token's experts."""
        return fast_weighted_sum(y_MH, handle.rows.row_DJ, handle.rows.weight_DJ)

    def wire_rows(self, handle: ExchangeHandle) -> WireRows:
        """Zeros: nothing is sent."""
        return nothing_sent(handle, self.group)
