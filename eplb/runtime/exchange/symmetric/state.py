"""Device state of one rank of a symmetric exchange, and the layout of one batch.

P ranks   T tokens of a rank (capacity)   K choices   S slots of this rank   C = P*T copies   B blocks of tokens
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from eplb.errors import InputError
from eplb.runtime.exchange.symmetric.failures import Family, raise_on_error
from eplb.runtime.exchange.symmetric.memory import SymmetricMemory
from eplb.runtime.exchange.symmetric.region import Part, RegionShape

BLOCK_TOKENS = 32
"""Tokens whose choices are counted together."""


@final
@dataclass(frozen=True, eq=False)
class RankState:
    """What a rank keeps between exchanges.

    Parameters
    ----------
    memory
        The regions of all ranks.
    shape
        Sizes of a region.
    first_slot
        First slot of each rank; P + 1 numbers.
    max_rows
        Largest number of rows for the experts of this rank; None: as many as the ranks can send.
    timeout_s
        Seconds after which a rank stops waiting for another.

    Raises
    ------
    InputError
        If the memory is too small, or the slots are not those of P ranks.
    """

    memory: SymmetricMemory
    shape: RegionShape
    first_slot: tuple[int, ...]
    max_rows: int
    timeout_s: float
    first_slot_P1: Tensor
    """[P + 1] int32."""
    epochs: Tensor
    """[3] int32: exchanges of each family that this rank completed."""
    arrived: Tensor
    """[3] int32: programs of the running kernel that have finished."""

    @classmethod
    def create(
        cls,
        memory: SymmetricMemory,
        shape: RegionShape,
        first_slot: tuple[int, ...],
        *,
        max_rows: int | None = None,
        timeout_s: float = 10.0,
    ) -> "RankState":
        """Allocate the state of a rank."""
        if memory.own.numel() < shape.num_bytes:
            raise InputError(f"symmetric memory of {memory.own.numel()} bytes: the region needs {shape.num_bytes}")
        return cls.of_region(memory, shape, first_slot, max_rows=max_rows, timeout_s=timeout_s)

    @classmethod
    def of_region(
        cls,
        memory: SymmetricMemory,
        shape: RegionShape,
        first_slot: tuple[int, ...],
        *,
        max_rows: int | None,
        timeout_s: float,
    ) -> "RankState":
        """The state of a rank in a region whose size is not checked: without tokens, rows are never written."""
        if len(first_slot) != shape.num_ranks + 1 or memory.num_ranks != shape.num_ranks:
            raise InputError(
                f"{memory.num_ranks} regions and {len(first_slot) - 1} ranks with slots: expected {shape.num_ranks}"
            )
        own_slots = first_slot[memory.rank + 1] - first_slot[memory.rank]
        most = shape.num_ranks * shape.tokens * min(shape.top_k, own_slots)
        device = memory.device
        return cls(
            memory,
            shape,
            first_slot,
            most if max_rows is None else min(max_rows, most),
            timeout_s,
            torch.tensor(first_slot, dtype=torch.int32, device=device),
            torch.zeros(len(Family), dtype=torch.int32, device=device),
            torch.zeros(len(Family), dtype=torch.int32, device=device),
        )

    @property
    def rank(self) -> int:
        """Number of this rank."""
        return self.memory.rank

    @property
    def num_slots(self) -> int:
        """S."""
        return self.first_slot[self.rank + 1] - self.first_slot[self.rank]

    @property
    def num_blocks(self) -> int:
        """B."""
        return self.shape.num_ranks * -(-self.shape.tokens // BLOCK_TOKENS)

    def part(self, part: Part) -> Tensor:
        """The bytes of a part of this rank's region."""
        first = self.shape.offsets[part]
        return self.memory.own[first : first + self.shape.size(part)]

    def errors(self) -> Tensor:
        """[P] int32 error words."""
        return self.part("errors").view(torch.int32)

    def raise_on_error(self) -> None:
        """Raise what any rank reported; the host waits for the device."""
        raise_on_error(self.errors(), self.timeout_s)

    def poison(self) -> None:
        """Fill all data that ranks exchange with bytes that read as NaN, or as a slot that does not exist."""
        for part in ("ids", "weights", "scales", "recv", "stage"):
            self.part(part).fill_(0xFF)


@final
@dataclass(frozen=True, eq=False)
class ExchangeLayout:
    """Where the rows of one batch are: written by the layout kernels, read by dispatch and combine."""

    slot_TK: Tensor
    """[tokens, K] slots of the own tokens, as the router chose them."""
    num_tokens: Tensor
    """[1] int32 own tokens."""
    hit_T: Tensor
    """[T] int32 bit r: the token visits rank r."""
    local_slot_CK: Tensor
    """[C, K] int32 slot on this rank, -1 elsewhere."""
    weight_CK: Tensor
    """[C, K] float32."""
    row_CK: Tensor
    """[C, K] int32 row of each choice, -1 if its slot is elsewhere."""
    offs_S: Tensor
    """[S] int32 end of the rows of each slot."""
    num_tokens_P: Tensor
    """[P] int32 tokens of each rank."""
    map_epochs_P: Tensor
    """[P] int32 epoch of the maps by which each rank chose."""
    place_CK: Tensor
    counts_SB: Tensor
    base_SB: Tensor
    totals_S: Tensor

    @classmethod
    def allocate(cls, state: RankState, slot_TK: Tensor) -> "ExchangeLayout":
        """Uninitialised tensors for one batch."""
        shape, device = state.shape, state.memory.device
        ranks, copies, slots = shape.num_ranks, shape.num_ranks * shape.tokens, state.num_slots

        def ints(*sizes: int) -> Tensor:
            return torch.empty(sizes, dtype=torch.int32, device=device)

        return cls(
            slot_TK=slot_TK,
            num_tokens=ints(1),
            hit_T=ints(shape.tokens),
            local_slot_CK=ints(copies, shape.top_k),
            weight_CK=torch.empty((copies, shape.top_k), dtype=torch.float32, device=device),
            row_CK=ints(copies, shape.top_k),
            offs_S=ints(slots),
            num_tokens_P=ints(ranks),
            map_epochs_P=ints(ranks),
            place_CK=ints(copies, shape.top_k),
            counts_SB=ints(slots, state.num_blocks),
            base_SB=ints(slots, state.num_blocks),
            totals_S=ints(slots),
        )
