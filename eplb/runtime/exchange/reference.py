"""The reference backend: one process holds every slot, without communication; and what such backends share."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from eplb.errors import InputError
from eplb.runtime.exchange.expert_rows import ExpertRows, expert_rows, weighted_sum
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
        check_one_process(self.group, self.name)

    def plan_exchange(self, routing: RoutingPlan) -> ExchangeHandle:
        """Sort the selections by slot."""
        rows, _ = expert_rows(routing.slot_TK, routing.weight_TK, self.group.slots)
        return unsent(routing, rows, self.group)

    def dispatch(self, x_TH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[M, H] the tokens' hidden states, by slot."""
        return x_TH[handle.rows.copy_of_row_M]

    def combine(self, y_MH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[T, H] the weighted sum over each token's experts."""
        return weighted_sum(y_MH, handle.rows.row_DJ, handle.rows.weight_DJ)

    def wire_rows(self, handle: ExchangeHandle) -> WireRows:
        """Zeros: nothing is sent."""
        return nothing_sent(handle, self.group)


def check_one_process(group: RankGroup, backend: str) -> None:
    """Check that a backend without communication has one process.

    Raises
    ------
    InputError
        For more.
    """
    if group.num_processes != 1:
        raise InputError(f"backend {backend}: {group.num_processes} processes, expected one")


def unsent(routing: RoutingPlan, rows: ExpertRows, group: RankGroup) -> ExchangeHandle:
    """A handle for rows that stay in the process; nothing is dropped."""
    nothing_P = torch.zeros(group.topology.num_slots, dtype=torch.int64, device=routing.slot_TK.device)
    return ExchangeHandle(routing, rows, nothing_P, PaddedTokens(routing.num_tokens, []))


def nothing_sent(handle: ExchangeHandle, group: RankGroup) -> WireRows:
    """Zeros for each pair of ranks."""
    num_ranks = group.topology.num_ranks
    nothing_RR = torch.zeros((num_ranks, num_ranks), dtype=torch.int64, device=handle.routing.slot_TK.device)
    return WireRows(nothing_RR, nothing_RR)
