"""Knows what all backends share: the routing plan that goes in, the handle between dispatch and combine, the sums.

    T tokens of this process   K choices a token   P slots of all processes   S slots of this process   H hidden
    D copies that arrived      J choices a copy may carry      M rows for the experts of this process

A copy is one token's hidden state on its way; a row is one expert's input. One copy may become several rows:

    copies   x_DH      d0 d1 d2 ...                        as they arrived: by source process, then as sent
    rows     x_MH      (s0,d0) (s0,d2) | (s1,d0) | ...     by slot, then by copy: `rows_per_slot_S` = 2, 1, ...
"""

import json
from dataclasses import dataclass, replace
from typing import Protocol, final

import torch
from torch import Tensor

from eplb.core.named_enum import NamedEnum
from eplb.errors import EplbError, InputError
from eplb.runtime.layer.replica_choice import TokenSource


class ExchangeOverflowError(EplbError):
    """More rows than a buffer was sized for, where dropping them was not asked for."""


class Overflow(NamedEnum):
    """What happens to rows for which a buffer has no room."""

    RAISE = "raise"
    DROP = "drop"
    """They are left out of the sum and counted by expert; nothing is lost in silence."""


@final
@dataclass(frozen=True)
class ExchangeLimits:
    """Sizes of the buffers, as MindIE's configuration gives them.

    Parameters
    ----------
    buffer_scale_factors
        All-to-all: (length, factor) by falling length. A rank with T >= length tokens may send each peer
        ceil(int(T * K * factor) / R) copies, `factor` times an even exchange; empty: no limit.
    topk_scaling_factor
        AllGather: a rank keeps the first T_total * int(K * f) of its rows sorted by slot; 1: no limit.
    overflow
        What happens past a limit.

    Raises
    ------
    InputError
        For factors that are not > 0, lengths that do not fall, or f outside (0, 1].
    """

    buffer_scale_factors: tuple[tuple[int, float], ...] = ()
    topk_scaling_factor: float = 1.0
    overflow: Overflow = Overflow.RAISE

    def __post_init__(self) -> None:
        lengths = [length for length, _ in self.buffer_scale_factors]
        if lengths != sorted(set(lengths), reverse=True):
            raise InputError(f"buffer_scale_factors: lengths {lengths}, expected each once and falling")
        for length, factor in self.buffer_scale_factors:
            if not 0 < factor < float("inf") or length < 0:
                raise InputError(f"buffer_scale_factors [{length}, {factor}]: expected length >= 0 and factor > 0")
        if not 0 < self.topk_scaling_factor <= 1:
            raise InputError(f"topk_scaling_factor = {self.topk_scaling_factor}: expected 0 < factor <= 1")

    def copies_per_peer(self, num_tokens: int, top_k: int, num_ranks: int) -> int:
        """Copies that a rank with so many tokens may send to one rank."""
        for length, factor in self.buffer_scale_factors:
            if num_tokens >= length:
                return -(-int(num_tokens * top_k * factor) // num_ranks)
        return num_tokens * top_k

    def rows_per_rank(self, total_tokens: int, top_k: int) -> int:
        """Rows that a rank keeps after AllGather."""
        return (
            total_tokens * int(top_k * self.topk_scaling_factor)
            if self.topk_scaling_factor < 1
            else total_tokens * top_k
        )


def read_buffer_scale_factors(text: str) -> tuple[tuple[int, float], ...]:
    """The table as MindIE's configuration writes it: "[[8192, 5.2], [0, 8.0]]".

    Raises
    ------
    InputError
        For anything else than a list of pairs of numbers.
    """
    try:
        return tuple((int(length), float(factor)) for length, factor in json.loads(text))
    except (ValueError, TypeError):
        raise InputError(f"buffer_scale_factors {text!r}: expected a list of [length, factor]") from None


@final
@dataclass(frozen=True)
class RoutingPlan:
    """Where each token of this process goes; what every backend starts from. Made without communication."""

    slot_TK: Tensor
    """[T, K] int64 slot of each selection, -1 where it is masked."""
    weight_TK: Tensor
    """[T, K] float32 gate weights."""
    source: TokenSource
    epoch: Tensor
    """[] int64 epoch of the tables that the slots were read from; the backends compare it across processes."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.slot_TK.shape[0]

    @property
    def top_k(self) -> int:
        """K."""
        return self.slot_TK.shape[1]


@final
@dataclass(frozen=True)
class ExpertRows:
    """How the copies that arrived become rows for the experts of this process, and how those add up again."""

    copy_of_row_M: Tensor
    """[M] int64 copy that each row is read from."""
    slot_of_row_M: Tensor
    """[M] int64 slot of each row, ascending."""
    rows_per_slot_S: Tensor
    """[S] int64 rows of each slot of this process; sums to M."""
    row_DJ: Tensor
    """[D, J] int64 row of each choice that arrived, -1 for choices that live elsewhere."""
    weight_DJ: Tensor
    """[D, J] float32 gate weights, as they arrived."""


@final
@dataclass(frozen=True)
class Splits:
    """The send side of an all-to-all."""

    copy_token_C: Tensor
    """[C] int64 token that each copy carries; copies lie by destination rank, then token."""
    copy_rank_C: Tensor
    """[C] int64 destination rank."""
    sum_row_TK: Tensor
    """[T, K] int64 returned row that each choice adds to its token, -1 for none."""
    sum_weight_TK: Tensor
    """[T, K] float32 what it is multiplied with: 1 where the expert side applied the gate weight."""
    return_order_M: Tensor
    """[M] int64 the rows in the order of the copies they came from; read where rows return one by one."""
    send_copies: list[int]
    """[Q] copies to each process."""
    receive_copies: list[int]
    send_rows: list[int]
    """[Q] choices carried by those copies."""
    receive_rows: list[int]


@final
@dataclass(frozen=True)
class PaddedTokens:
    """The send side of an AllGather: every process sends all its tokens, padded to the longest."""

    most_tokens: int
    """Tokens of the process that has most."""
    tokens_of_rank: list[int]
    """[R] tokens of each rank."""


@final
@dataclass(frozen=True)
class ExchangeHandle:
    """Returned by `arrange`, read by `dispatch` and `combine`; nothing in it changes."""

    routing: RoutingPlan
    """What is executed: selections that overflowed are masked."""
    rows: ExpertRows
    dropped_P: Tensor
    """[P] int64 selections that this process dropped, by slot."""
    sent: Splits | PaddedTokens


@final
@dataclass(frozen=True)
class WireRows:
    """What a process put on the wire, by source and destination rank; the diagonal never leaves a rank."""

    dispatch_RR: Tensor
    """[R, R] int64 copies."""
    combine_RR: Tensor
    """[R, R] int64 rows on the way back, by the rank the token came from and the rank of the expert."""


class Backend(Protocol):
    """A way to bring tokens to experts and back."""

    @property
    def name(self) -> str:
        """The name on the command line."""
        ...

    def arrange(self, routing: RoutingPlan) -> ExchangeHandle:
        """Exchange what is needed to know before hidden states can move: counts, slots, weights."""
        ...

    def dispatch(self, x_TH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[M, H] rows for the experts of this process, by slot. A handle may be used again for other hidden states."""
        ...

    def combine(self, y_MH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[T, H] the weighted sum over each token's experts, in the order of its choices."""
        ...

    def wire_rows(self, handle: ExchangeHandle) -> WireRows:
        """What this process's ranks put on the wire in dispatch and got back in combine."""
        ...


def expert_rows(slot_DJ: Tensor, weight_DJ: Tensor, slots: range) -> tuple[ExpertRows, Tensor]:
    """Sort the choices that arrived by slot.

    Parameters
    ----------
    slot_DJ
        [D, J] int64 slots, -1 or foreign ones included.
    weight_DJ
        [D, J] float32.
    slots
        Slots of this process.

    Returns
    -------
    tuple
        The rows, and [M] the rows in the order of (copy, choice).
    """
    local_DJ = (slot_DJ >= slots.start) & (slot_DJ < slots.stop)
    choice_M = local_DJ.reshape(-1).nonzero()[:, 0]
    slot_M = slot_DJ.reshape(-1)[choice_M]
    order_M = slot_M.argsort(stable=True)
    row_of_choice_M = torch.empty_like(order_M)
    row_of_choice_M[order_M] = torch.arange(order_M.numel(), device=order_M.device)
    row_DJ = torch.full_like(slot_DJ, -1)
    row_DJ.view(-1)[choice_M] = row_of_choice_M
    rows = ExpertRows(
        copy_of_row_M=choice_M[order_M] // slot_DJ.shape[1],
        slot_of_row_M=slot_M[order_M],
        rows_per_slot_S=torch.bincount(slot_M - slots.start, minlength=len(slots)),
        row_DJ=row_DJ,
        weight_DJ=weight_DJ,
    )
    return rows, row_of_choice_M


def kept_rows(rows: ExpertRows, keep_M: Tensor, slots: range) -> ExpertRows:
    """The rows that are kept, renumbered; choices of the others have none."""
    new_row_M = torch.where(keep_M, keep_M.cumsum(0) - 1, -1)
    row_DJ = rows.row_DJ.clone()
    row_DJ[row_DJ >= 0] = new_row_M[row_DJ[row_DJ >= 0]]
    slot_of_row_M = rows.slot_of_row_M[keep_M]
    return replace(
        rows,
        copy_of_row_M=rows.copy_of_row_M[keep_M],
        slot_of_row_M=slot_of_row_M,
        rows_per_slot_S=torch.bincount(slot_of_row_M - slots.start, minlength=len(slots)),
        row_DJ=row_DJ,
    )


def weighted_sum(y_MH: Tensor, row_TJ: Tensor, weight_TJ: Tensor) -> Tensor:
    """Add rows to tokens in the order of their choices, in float32 (float64 for float64 rows).

    The order never depends on where a row was computed: this is the sum that all backends and the reference share.

    Parameters
    ----------
    y_MH
        [M, H] rows.
    row_TJ
        [T, J] int64 row that each choice adds, -1 for none.
    weight_TJ
        [T, J] what it is multiplied with.

    Returns
    -------
    Tensor
        [T, H] of the rows' type.
    """
    total_TH = torch.zeros(
        (row_TJ.shape[0], y_MH.shape[1]),
        dtype=torch.float64 if y_MH.dtype == torch.float64 else torch.float32,
        device=y_MH.device,
    )
    if y_MH.shape[0]:
        for choice in range(row_TJ.shape[1]):
            row_T = row_TJ[:, choice]
            term_TH = y_MH[row_T.clamp(min=0)].to(total_TH.dtype) * weight_TJ[:, choice, None]
            total_TH += torch.where((row_T >= 0)[:, None], term_TH, 0)
    return total_TH.to(y_MH.dtype)


def check_epochs(epochs: list[int]) -> None:
    """Refuse to exchange tokens that were routed by different maps.

    Raises
    ------
    ExchangeEpochError
        Naming the processes that differ.
    """
    if len(set(epochs)) > 1:
        raise ExchangeEpochError(f"epoch of the maps by process: {epochs}, expected the same everywhere")


class ExchangeEpochError(EplbError):
    """Processes routed one batch by different epochs of the maps."""
