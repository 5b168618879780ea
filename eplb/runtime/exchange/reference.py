"""The reference backend: one process holds every slot, without communication."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from eplb.errors import InputError
from eplb.runtime.exchange.expert_rows import expert_rows, weighted_sum
from eplb.runtime.exchange.protocol import ExchangeHandle, PaddedTokens, RoutingPlan, WireRows
from eplb.runtime.exchange.rank_group import RankGroup


@final
@dataclass(frozen=True)
class Reference:
    """Dispatch and combine as plain indexing.

    Raises
    ------
    InputError
        For a group of more than one process.
    """

    group: RankGroup
    name: ClassVar[str] = "reference"

    def __post_init__(self) -> None:
        if self.group.num_processes != 1:
            raise InputError(f"backend reference: {self.group.num_processes} processes, expected one")

    def plan_exchange(self, routing: RoutingPlan) -> ExchangeHandle:
        """Sort the selections by slot."""
        rows, _ = expert_rows(routing.slot_TK, routing.weight_TK, self.group.slots)
        num_slots = self.group.topology.num_slots
        nothing = torch.zeros(num_slots, dtype=torch.int64, device=routing.slot_TK.device)
        return ExchangeHandle(routing, rows, nothing, PaddedTokens(routing.num_tokens, []))

    def dispatch(self, x_TH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[M, H] the tokens' hidden states, by slot."""
        return x_TH[handle.rows.copy_of_row_M]

    def combine(self, y_MH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[T, H] the weighted sum over each token's experts."""
        return weighted_sum(y_MH, handle.rows.row_DJ, handle.rows.weight_DJ)

    def wire_rows(self, handle: ExchangeHandle) -> WireRows:
        """Zeros: nothing is sent."""
        num_ranks = self.group.topology.num_ranks
        nothing = torch.zeros((num_ranks, num_ranks), dtype=torch.int64, device=handle.routing.slot_TK.device)
        return WireRows(nothing, nothing)
