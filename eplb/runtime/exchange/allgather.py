"""The AllGather backend: every process receives every token and keeps its own rows (MindIE's ep_level 1).

T tokens of this process   U largest T of all processes   Q processes   K choices   H hidden
D = Q * U tokens after the gather, padding included      M rows for the experts of this process

gathered  x_DH      q0: t0 t1 .  | q1: t0 t1 t2        padded to U = 3; the padding (.) is never read
returned  [Q, U, H] partial sums, reduced over processes and scattered: process q keeps [q]
"""

from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from eplb.errors import InputError
from eplb.runtime.exchange.expert_rows import (
    ExpertRows,
    expert_rows,
    fast_weighted_sum,
    kept_rows,
    packed_choices,
    unpacked_choices,
    weighted_sum,
)
from eplb.runtime.exchange.limits import ExchangeLimits, ExchangeOverflowError, Overflow
from eplb.runtime.exchange.protocol import ExchangeHandle, PaddedTokens, RoutingPlan, WireRows, check_epochs
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.layer.replica_choice import position_in_run


@final
@dataclass(frozen=True)
class AllGather:
    """AllGather, then reduce-scatter.

    Parameters
    ----------
    group
        The processes.
    fixed_order
        True: return the row of every selection and add the rows at the source in the order of choices. The result has
        the same bits for every placement and costs K times the bytes. False: reduce partial sums.
    limits
        Size of the buffer of sorted rows.
    """

    group: RankGroup
    fixed_order: bool = False
    limits: ExchangeLimits = field(default_factory=ExchangeLimits)
    name: ClassVar[str] = "allgather"

    def plan_exchange(self, routing: RoutingPlan) -> ExchangeHandle:
        """Gather token counts, then slots and weights of all tokens.

        Raises
        ------
        ExchangeOverflowError
            On every process, if a rank has more rows than the limits allow and none may be dropped.
        ExchangeEpochError
            On every process, if they routed by different maps.
        InputError
            If `topk_scaling_factor` allows no row per token.
        """
        num_ranks, device = self.group.topology.num_ranks, routing.slot_TK.device
        tokens_R = torch.bincount(routing.source.rank_T, minlength=num_ranks)
        counts_Q = self.group.all_gather(torch.cat([tokens_R, routing.epoch.to(device)[None]])).tolist()
        check_epochs([counts[-1] for counts in counts_Q])
        tokens_of_rank = [sum(counts[rank] for counts in counts_Q) for rank in range(num_ranks)]
        most = max(sum(counts[:-1]) for counts in counts_Q)
        packed_U2K = self._padded(packed_choices(routing.slot_TK, routing.weight_TK), most, fill=-1)
        slot_DK, weight_DK = unpacked_choices(self.group.all_gather(packed_U2K).flatten(0, 1))
        rows, _ = expert_rows(slot_DK, weight_DK, self.group.slots)
        dropped_P = torch.zeros(self.group.topology.num_slots, dtype=torch.int64, device=device)
        if self.limits.topk_scaling_factor < 1:
            rows, dropped_P = self._cut(rows, slot_DK, sum(tokens_of_rank))
        return ExchangeHandle(routing, rows, dropped_P, PaddedTokens(most, tokens_of_rank))

    def dispatch(self, x_TH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[M, H] rows for the experts of this process, by slot."""
        x_UH = self._padded(x_TH, _padding_of(handle).most_tokens)
        return self.group.all_gather(x_UH).flatten(0, 1)[handle.rows.copy_of_row_M]

    def combine(self, y_MH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[T, H] the weighted sum over each token's experts."""
        most, rows, routing = _padding_of(handle).most_tokens, handle.rows, handle.routing
        hidden, num_tokens = y_MH.shape[1], routing.num_tokens
        if not self.fixed_order:
            partial_DH = fast_weighted_sum(y_MH, rows.row_DJ, rows.weight_DJ)
            return self.group.reduce_scatter(partial_DH.view(self.group.num_processes, most, hidden))[:num_tokens]
        # Each selection has its row on one process and zeros on the others, so the reduction moves it unchanged.
        row_DK = rows.row_DJ
        spread_DKH = torch.zeros((*row_DK.shape, hidden), dtype=y_MH.dtype, device=y_MH.device)
        spread_DKH[row_DK >= 0] = y_MH[row_DK[row_DK >= 0]]
        own_UKH = self.group.reduce_scatter(spread_DKH.view(self.group.num_processes, most, routing.top_k, hidden))
        row_TK = torch.arange(num_tokens * routing.top_k, device=y_MH.device).view_as(routing.slot_TK)
        row_TK = torch.where(routing.slot_TK >= 0, row_TK, -1)
        return weighted_sum(own_UKH[:num_tokens].flatten(0, 1), row_TK, routing.weight_TK)

    def wire_rows(self, handle: ExchangeHandle) -> WireRows:
        """Every rank sends its tokens, padded to the largest count, to every rank and receives as many rows."""
        tokens_R = torch.tensor(_padding_of(handle).tokens_of_rank, device=handle.routing.slot_TK.device)
        num_ranks = tokens_R.numel()
        dispatch_RR = torch.zeros((num_ranks, num_ranks), dtype=torch.int64, device=tokens_R.device)
        dispatch_RR[self.group.ranks.start : self.group.ranks.stop] = tokens_R.max()
        return WireRows(dispatch_RR, dispatch_RR * handle.routing.top_k if self.fixed_order else dispatch_RR)

    def _padded(self, x: Tensor, most: int, fill: int | None = None) -> Tensor:
        """[U, *] the tokens in a buffer of U rows; the padding is `fill`, or uninitialised if None."""
        if x.shape[0] == most and fill is None:
            return x
        buffer = self.group.allocate((most, *x.shape[1:]), x.dtype, x.device)
        buffer[: x.shape[0]] = x
        if fill is not None:
            buffer[x.shape[0] :] = fill
        return buffer

    def _cut(self, rows: ExpertRows, slot_DK: Tensor, total_tokens: int) -> tuple[ExpertRows, Tensor]:
        """Keep the first rows of each rank, as many as its sorted buffer holds; rows of its last slots are dropped."""
        top_k = slot_DK.shape[1]
        room = self.limits.rows_per_rank(total_tokens, top_k)
        if room == 0 and total_tokens:
            raise InputError(
                f"topk_scaling_factor = {self.limits.topk_scaling_factor}: int({top_k} * factor) is 0, expected >= 1"
            )
        rank_of_choice = self.group.rank_of_slot(slot_DK[slot_DK >= 0])
        rows_R = torch.bincount(rank_of_choice, minlength=self.group.topology.num_ranks)
        if self.limits.overflow is Overflow.RAISE and bool((rows_R > room).any()):
            raise ExchangeOverflowError(
                f"rank {int(rows_R.argmax())} has {int(rows_R.max())} rows after AllGather: room for {room}"
                f" (topk_scaling_factor {self.limits.topk_scaling_factor})"
            )
        position_M = position_in_run(self.group.rank_of_slot(rows.slot_of_row_M))
        dropped_P = torch.bincount(rows.slot_of_row_M[position_M >= room], minlength=self.group.topology.num_slots)
        return kept_rows(rows, position_M < room, self.group.slots), dropped_P


def _padding_of(handle: ExchangeHandle) -> PaddedTokens:
    if not isinstance(handle.sent, PaddedTokens):
        raise InputError("handle: made by another backend than allgather")
    return handle.sent
