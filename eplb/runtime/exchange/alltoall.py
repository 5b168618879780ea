"""The all-to-all backend: a token is sent only to ranks that hold one of its experts (MindIE's ep_level 2).

T tokens of this process   K choices   C copies sent   D copies received   J choices per copy   H hidden

tokens  t0 {r1,r2,r1}  t1 {r0}          ->  copies   (r0,t1) | (r1,t0) | (r2,t0)            deduplicated: J = K
->  copies   (r0,t1,k0) | (r1,t0,k0) (r1,t0,k2) | (r2,t0,k1)         J = 1
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from eplb.errors import InputError
from eplb.runtime.exchange.expert_rows import expert_rows, fast_weighted_sum, unpacked_choices, weighted_sum
from eplb.runtime.exchange.limits import ExchangeLimits, ExchangeOverflowError, Overflow
from eplb.runtime.exchange.protocol import ExchangeHandle, RoutingPlan, Splits, WireRows, check_epochs, pairs_of_ranks
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.layer.replica_choice import position_in_run


class _Copies(NamedTuple):
    """The copies that this process sends, by destination rank, then token (then choice, without deduplication)."""

    token_C: Tensor
    rank_C: Tensor
    copy_of_TK: Tensor
    """[T, K] copy of each selection; 0 if it is masked."""


@final
@dataclass(frozen=True)
class AllToAll:
    """`all_to_all_single` with exact splits.

    Parameters
    ----------
    group
        The processes.
    dedup
        True: one copy per token and rank; False: one per selection.
    fixed_order
        True: return every row and add the rows at the source in the order of choices; the result has the same bits for
        every placement. False: each rank applies the weights, adds its own rows and returns one row per copy.
    limits
        Sizes of the buffers.
    """

    group: RankGroup
    dedup: bool = True
    fixed_order: bool = False
    limits: ExchangeLimits = field(default_factory=ExchangeLimits)
    name: ClassVar[str] = "alltoall"

    def plan_exchange(self, routing: RoutingPlan) -> ExchangeHandle:
        """Exchange counts, then the slots and weights of each copy.

        Raises
        ------
        ExchangeOverflowError
            On every process, if one has more copies for a rank than the limits allow and none may be dropped.
        ExchangeEpochError
            On every process, if they routed by different maps.
        """
        copies = self._copies(routing.slot_TK)
        dropped_P = torch.zeros(self.group.topology.num_slots, dtype=torch.int64, device=routing.slot_TK.device)
        if self.limits.buffer_scale_factors:
            lost_TK = self._lost(routing, copies)
            dropped_P += torch.bincount(routing.slot_TK[lost_TK], minlength=dropped_P.numel())
            routing = replace(routing, slot_TK=routing.slot_TK.masked_fill(lost_TK, -1))
            copies = self._copies(routing.slot_TK)
        sent = self._exchange_counts(routing, copies, dropped_P)
        slot_DJ, weight_DJ = self._exchange_choices(routing, copies, sent)
        rows, row_of_choice_M = expert_rows(slot_DJ, weight_DJ, self.group.slots)
        return ExchangeHandle(routing, rows, dropped_P, replace(sent, return_order_M=row_of_choice_M))

    def dispatch(self, x_TH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[M, H] rows for the experts of this process, by slot."""
        sent = _splits_of(handle)
        x_DH = self.group.all_to_all(x_TH[sent.copy_token_C], sent.send_copies, sent.receive_copies)
        return x_DH[handle.rows.copy_of_row_M]

    def combine(self, y_MH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[T, H] the weighted sum over each token's experts."""
        sent, rows = _splits_of(handle), handle.rows
        if self.fixed_order:
            back_CH = self.group.all_to_all(y_MH[sent.return_order_M], sent.receive_rows, sent.send_rows)
            return weighted_sum(back_CH, sent.sum_row_TK, sent.sum_weight_TK)
        reduced_DH = fast_weighted_sum(y_MH, rows.row_DJ, rows.weight_DJ)
        back_CH = self.group.all_to_all(reduced_DH, sent.receive_copies, sent.send_copies)
        return fast_weighted_sum(back_CH, sent.sum_row_TK, sent.sum_weight_TK)

    def wire_rows(self, handle: ExchangeHandle) -> WireRows:
        """Copies by source and destination rank; in fixed order one row per selection is returned."""
        sent, routing = _splits_of(handle), handle.routing
        num_ranks = self.group.topology.num_ranks
        dispatch_RR = pairs_of_ranks(routing.source.rank_T[sent.copy_token_C], sent.copy_rank_C, num_ranks)
        if not self.fixed_order:
            return WireRows(dispatch_RR, dispatch_RR)
        valid_TK = routing.slot_TK >= 0
        source_TK = routing.source.rank_T[:, None].expand_as(valid_TK)
        rank_TK = self._rank_of(routing.slot_TK)
        return WireRows(dispatch_RR, pairs_of_ranks(source_TK[valid_TK], rank_TK[valid_TK], num_ranks))

    def _rank_of(self, slot_TK: Tensor) -> Tensor:
        """[T, K] rank of each selection; the value of a masked selection is meaningless."""
        return self.group.rank_of_slot(slot_TK.clamp(min=0))

    def _copies(self, slot_TK: Tensor) -> _Copies:
        """Group the selections into copies."""
        num_tokens, top_k = slot_TK.shape
        valid_TK = slot_TK >= 0
        token_T1 = torch.arange(num_tokens, device=slot_TK.device)[:, None]
        key_TK = self._rank_of(slot_TK) * num_tokens + token_T1
        per_key = 1 if self.dedup else top_k
        if not self.dedup:
            key_TK = key_TK * top_k + torch.arange(top_k, device=slot_TK.device)
        key_C, copy_of_M = torch.unique(key_TK[valid_TK], return_inverse=True)
        copy_of_TK = torch.zeros_like(slot_TK)
        copy_of_TK[valid_TK] = copy_of_M
        pair_C = key_C // per_key
        return _Copies(pair_C % max(num_tokens, 1), pair_C // max(num_tokens, 1), copy_of_TK)

    def _lost(self, routing: RoutingPlan, copies: _Copies) -> Tensor:
        """[T, K] selections whose copy does not fit into its buffer, in the order of sending."""
        num_ranks, source_T = self.group.topology.num_ranks, routing.source.rank_T
        tokens = torch.bincount(source_T, minlength=num_ranks).tolist()
        room = [self.limits.copies_per_peer(count, routing.top_k, num_ranks) for count in tokens]
        source_C = source_T[copies.token_C]
        pair_C = copies.rank_C * num_ranks + source_C  # ascending, because tokens are sorted by source rank
        lost_C = position_in_run(pair_C) >= torch.tensor(room, device=pair_C.device)[source_C]
        valid_TK = routing.slot_TK >= 0
        return valid_TK & lost_C[copies.copy_of_TK] if lost_C.numel() else torch.zeros_like(valid_TK)

    def _exchange_counts(self, routing: RoutingPlan, copies: _Copies, dropped_P: Tensor) -> Splits:
        """Exchange the counts of copies and rows; the only point at which the host waits for the device."""
        group, device = self.group, routing.slot_TK.device
        process_of_rank_R = group.process_of_rank(device)
        valid_TK = routing.slot_TK >= 0
        copies_Q = torch.bincount(process_of_rank_R[copies.rank_C], minlength=group.num_processes)
        rows_M = process_of_rank_R[self._rank_of(routing.slot_TK)[valid_TK]]
        rows_Q = torch.bincount(rows_M, minlength=group.num_processes)
        flags = torch.stack([dropped_P.sum(), routing.epoch.to(device)])
        counts_Q = group.all_gather(torch.cat([copies_Q, rows_Q, flags])).tolist()
        check_epochs([counts[-1] for counts in counts_Q])
        lost = [counts[-2] for counts in counts_Q]
        if sum(lost) and self.limits.overflow is Overflow.RAISE:
            raise ExchangeOverflowError(
                f"all-to-all buffers are full: selections without room by process {lost}, expected none"
                f" (buffer_scale_factors {list(map(list, self.limits.buffer_scale_factors))})"
            )
        own, num = group.process, group.num_processes
        sum_row_TK, sum_weight_TK = self._sums(routing, copies)
        return Splits(
            copy_token_C=copies.token_C,
            copy_rank_C=copies.rank_C,
            sum_row_TK=sum_row_TK,
            sum_weight_TK=sum_weight_TK,
            return_order_M=copies.token_C[:0],
            send_copies=counts_Q[own][:num],
            receive_copies=[counts[own] for counts in counts_Q],
            send_rows=counts_Q[own][num : 2 * num],
            receive_rows=[counts[num + own] for counts in counts_Q],
        )

    def _sums(self, routing: RoutingPlan, copies: _Copies) -> tuple[Tensor, Tensor]:
        """[T, K] the returned row that each choice adds, and its factor."""
        valid_TK = routing.slot_TK >= 0
        if self.fixed_order:
            # Rows are returned in the order of (copy, choice): number the selections in this order.
            order = (copies.copy_of_TK * routing.top_k + torch.arange(routing.top_k, device=valid_TK.device))[valid_TK]
            row_TK = torch.full_like(copies.copy_of_TK, -1)
            row_TK[valid_TK] = torch.searchsorted(order.sort().values, order)
            return row_TK, routing.weight_TK
        copy_TK = torch.where(valid_TK, copies.copy_of_TK, -1)
        earlier_TKK = torch.ones((routing.top_k,) * 2, dtype=torch.bool, device=valid_TK.device).tril(-1)
        repeats_TK = ((copy_TK[:, :, None] == copy_TK[:, None, :]) & earlier_TKK).any(dim=2)
        return copy_TK.masked_fill(repeats_TK, -1), torch.ones_like(routing.weight_TK)

    def _exchange_choices(self, routing: RoutingPlan, copies: _Copies, sent: Splits) -> tuple[Tensor, Tensor]:
        """[D, J] slots and weights of the copies that arrive; weights are sent as the bits of an int32."""
        num_copies = copies.token_C.numel()
        copy_of_TK, valid_TK = copies.copy_of_TK, routing.slot_TK >= 0
        width = routing.top_k if self.dedup else 1
        packed_C2J = torch.full((num_copies, 2, width), -1, dtype=torch.int32, device=valid_TK.device)
        choice_TK = torch.arange(routing.top_k, device=valid_TK.device).expand_as(valid_TK) % width
        packed_C2J[copy_of_TK[valid_TK], 0, choice_TK[valid_TK]] = routing.slot_TK[valid_TK].to(torch.int32)
        packed_C2J[copy_of_TK[valid_TK], 1, choice_TK[valid_TK]] = routing.weight_TK[valid_TK].view(torch.int32)
        return unpacked_choices(self.group.all_to_all(packed_C2J, sent.send_copies, sent.receive_copies))


def _splits_of(handle: ExchangeHandle) -> Splits:
    if not isinstance(handle.sent, Splits):
        raise InputError("handle: made by another backend than alltoall")
    return handle.sent
