"""Defines the interface of the exchange backends: routing plan, exchange handle, `Backend`.

    T tokens of this process   K choices per token   P slots of all processes   Q processes   R ranks   H hidden
    C copies of tokens sent    D copies that arrived   J choices per copy   M rows for the experts of this process

A copy is a token's hidden state sent to another process; a row is the input of one expert. One copy may become several
rows:

    copies   x_DH      d0 d1 d2 ...                        in order of arrival: by source process, then as sent
    rows     x_MH      (s0,d0) (s0,d2) | (s1,d0) | ...     by slot, then by copy: `rows_per_slot_S` = 2, 1, ...
"""

from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from eplb.errors import EplbError
from eplb.runtime.exchange.expert_rows import ExpertRows
from eplb.runtime.exchange.symmetric.state import ExchangeLayout
from eplb.runtime.layer.replica_choice import TokenSource


@final
@dataclass(frozen=True)
class RoutingPlan:
    """The slot and gate weight of each selection of this process: the input of every backend."""

    slot_TK: Tensor
    """[T, K] int64 slot of each selection, -1 if it is masked."""
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
class Splits:
    """The send side of an all-to-all."""

    copy_token_C: Tensor
    """[C] int64 token of each copy; copies are sorted by destination rank, then token."""
    copy_rank_C: Tensor
    """[C] int64 destination rank."""
    sum_row_TK: Tensor
    """[T, K] int64 returned row that each choice adds to its token, -1 for none."""
    sum_weight_TK: Tensor
    """[T, K] float32 factor of that row: 1 if the receiving process applied the gate weight."""
    return_order_M: Tensor
    """[M] int64 rows in the order of their copies; used if each row is returned separately."""
    send_copies: list[int]
    """[Q] copies to each process."""
    receive_copies: list[int]
    send_rows: list[int]
    """[Q] choices carried by those copies."""
    receive_rows: list[int]


@final
@dataclass(frozen=True)
class PaddedTokens:
    """The send side of an AllGather: every process sends all its tokens, padded to the largest count."""

    most_tokens: int
    """Largest number of tokens of a process."""
    tokens_of_rank: list[int]
    """[R] tokens of each rank."""


@final
@dataclass(frozen=True)
class ExchangeHandle:
    """The layout of one exchange: returned by `plan_exchange`, read by `dispatch` and `combine`, immutable."""

    routing: RoutingPlan
    """The routing that is executed: selections that overflowed are masked."""
    rows: ExpertRows
    dropped_P: Tensor
    """[P] int64 selections that this process dropped, by slot."""
    sent: Splits | PaddedTokens | ExchangeLayout


@final
@dataclass(frozen=True)
class WireRows:
    """Rows that a process sent, by source and destination rank; the diagonal stays inside a rank."""

    dispatch_RR: Tensor
    """[R, R] int64 copies."""
    combine_RR: Tensor
    """[R, R] int64 rows returned, by the rank of the token and the rank of the expert."""


def pairs_of_ranks(source_C: Tensor, destination_C: Tensor, num_ranks: int) -> Tensor:
    """[R, R] number of occurrences of each pair of ranks."""
    return torch.bincount(source_C * num_ranks + destination_C, minlength=num_ranks**2).view(num_ranks, -1)


class Backend(Protocol):
    """Moves tokens to experts and results back."""

    @property
    def name(self) -> str:
        """Name on the command line."""
        ...

    def plan_exchange(self, routing: RoutingPlan) -> ExchangeHandle:
        """Exchange counts, slots and weights, which dispatch and combine need."""
        ...

    def dispatch(self, x_TH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[M, H] rows for the experts of this process, by slot. A handle may be used again for other hidden states."""
        ...

    def combine(self, y_MH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[T, H] the weighted sum over each token's experts, in the order of its choices."""
        ...

    def wire_rows(self, handle: ExchangeHandle) -> WireRows:
        """Rows that this process's ranks sent in dispatch and received in combine."""
        ...


class FixedBuffers(Protocol):
    """An exchange whose inputs and results keep their addresses, so that a CUDA graph can hold it.

    T tokens of a process (capacity)   K choices   M rows (capacity)   H hidden   S slots of this process
    """

    @property
    def name(self) -> str:
        """What moves the tokens."""
        ...

    @property
    def slot_TK(self) -> Tensor:
        """[T, K] int64 slots, input; -1 is a masked selection."""
        ...

    @property
    def weight_TK(self) -> Tensor:
        """[T, K] float32, input."""
        ...

    @property
    def map_epoch(self) -> Tensor:
        """[1] int64 epoch of the maps, input."""
        ...

    @property
    def num_tokens(self) -> Tensor:
        """[1] int32 tokens of this process, input."""
        ...

    @property
    def rows_MH(self) -> Tensor:
        """The rows that `dispatch` writes."""
        ...

    @property
    def ends_S(self) -> Tensor:
        """[S] int32 end of the rows of each slot of this process, written by `dispatch`."""
        ...

    def dispatch(self, x_TH: Tensor) -> Tensor:
        """Send the first tokens of x_TH; `rows_MH`."""
        ...

    def combine(self, y_MH: Tensor) -> Tensor:
        """[T, H] the weighted sums, of which the first tokens are valid; overwritten by the next call."""
        ...

    def raise_on_error(self) -> None:
        """Raise what any process reported; the host waits for the device."""
        ...


def check_epochs(epochs: list[int]) -> None:
    """Check that all processes routed by the same epoch of the maps.

    Raises
    ------
    ExchangeEpochError
        With the epoch of every process, if they differ.
    """
    if len(set(epochs)) > 1:
        raise ExchangeEpochError(f"epoch of the maps by process: {epochs}, expected the same everywhere")


class ExchangeEpochError(EplbError):
    """Processes routed one batch by different epochs of the maps."""
