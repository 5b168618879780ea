"""Translates hard constraints into blocks of experts: where each may lie, must lie, and in how many replicas."""

from dataclasses import dataclass
from itertools import combinations
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints
from eplb.core.constraints import Constraints
from eplb.core.topology import Topology

MOST_EXACT_BYTES = 2.0**50
"""Memory is counted in whole units: bytes where all sizes are whole and small enough, else a power of two."""
UNIT_BITS = 40
"""Units in the largest room or expert, where bytes are not whole: 2 to this power; experts are rounded up."""

Flags = NDArray[np.bool_]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class BlockTable:
    """The blocks of every layer: one expert each, or experts that are kept together."""

    block_of_expert: Ints
    """[E]"""
    size: Ints
    """[B] experts of the block."""
    allowed: Flags
    """[B, R] whether a rank may hold it."""
    pinned: Flags
    """[B, R] whether a rank must hold it."""
    least: Ints
    """[B] fewest replicas."""
    most: Ints
    """[B] most replicas."""
    clash: Flags
    """[B, B] whether a rank may not hold both."""
    bytes: Ints
    """[B] units of memory, beyond those that any expert takes in as many slots."""
    room: Ints
    """[R] units of memory."""

    @property
    def fields(self) -> tuple[Ints, Flags, Flags, Ints, Ints, Flags, Ints]:
        """In the order in which kernels take them."""
        return self.size, self.allowed, self.pinned, self.least, self.most, self.clash, self.bytes

    @property
    def is_flow(self) -> bool:
        """Whether only ranks and counts are constrained: then the feasible start is found whenever there is one."""
        return bool((self.size == 1).all()) and not self.clash.any() and not self.bytes.any()

    def load_of(self, load: Floats) -> Floats:
        """[L, B, ...] load of the blocks, from that of the experts [L, E, ...]."""
        summed = np.zeros((load.shape[0], self.size.size, *load.shape[2:]))
        np.add.at(summed.swapaxes(0, 1), self.block_of_expert, load.swapaxes(0, 1))
        return summed


def blocks_of(constraints: Constraints, num_experts: int, topology: Topology, *, least_replicas: int) -> BlockTable:
    """Merge the experts that are kept together and collect what each block must meet.

    Where a block's own constraints contradict each other, `allowed` is false everywhere or `least` exceeds `most`: the
    search for a start then finds no place for it.

    Parameters
    ----------
    constraints
        Checked against the model and the topology.
    num_experts, topology
        The model and where it is placed.
    least_replicas
        Replicas that every expert must have, for other reasons.
    """
    block_of_expert = _merged(constraints, num_experts)
    num_blocks, num_ranks = int(block_of_expert.max()) + 1, topology.num_ranks
    size = np.bincount(block_of_expert, minlength=num_blocks)
    taken, room = _memory(constraints, num_experts, topology)
    block_bytes = np.bincount(block_of_expert, weights=taken, minlength=num_blocks).astype(np.int64)
    allowed = (size[:, None] <= topology.rank_num_slots) & (block_bytes[:, None] <= room)
    for expert, rank in constraints.forbid:
        allowed[block_of_expert[expert], rank] = False
    pinned = np.zeros((num_blocks, num_ranks), dtype=np.bool_)
    for expert, rank in constraints.pinned_pairs(num_ranks):
        pinned[block_of_expert[expert], rank] = True
    clash = np.zeros((num_blocks, num_blocks), dtype=np.bool_)
    for members in constraints.apart:
        for first, second in combinations(block_of_expert[list(members)].tolist(), 2):
            clash[first, second] = clash[second, first] = True
    allowed[np.diagonal(clash)] = False  # two experts of one block are kept apart
    np.fill_diagonal(clash, val=False)
    least, most = np.maximum(least_replicas, pinned.sum(axis=1)), allowed.sum(axis=1)
    if constraints.replica_counts is not None:
        for expert, count in enumerate(constraints.replica_counts):
            block = block_of_expert[expert]
            least[block], most[block] = max(least[block], count), min(most[block], count)
    return BlockTable(
        block_of_expert=block_of_expert, size=size, allowed=allowed, pinned=pinned, least=least, most=most,
        clash=clash, bytes=block_bytes, room=room,
    )  # fmt: skip


def _merged(constraints: Constraints, num_experts: int) -> Ints:
    """[E] the block of each expert: sets that are kept together and share an expert are one block."""
    block = np.arange(num_experts)
    for members in constraints.together:
        joined = np.isin(block, block[list(members)])
        block[joined] = block[joined].min()
    return np.unique(block, return_inverse=True)[1].astype(np.int64)


def _memory(constraints: Constraints, num_experts: int, topology: Topology) -> tuple[Ints, Ints]:
    """[E] units of a replica of each expert, rounded up, and [R] units of each rank, rounded down.

    What the smallest expert takes is subtracted for every slot: all slots are filled, so that much is never free.
    """
    num_ranks = topology.num_ranks
    if constraints.expert_bytes is None:
        return np.zeros(num_experts, dtype=np.int64), np.zeros(num_ranks, dtype=np.int64)
    size, room = constraints.bytes_of_experts(num_experts), constraints.bytes_of_ranks(num_ranks)
    room = np.minimum(room, size.sum())  # a rank holds every expert at most once
    is_whole = bool((size == np.round(size)).all()) and size.sum() < MOST_EXACT_BYTES
    unit = 1.0 if is_whole or size.max() == 0 else 2.0 ** (np.ceil(np.log2(size.sum())) - UNIT_BITS)
    units, units_left = np.ceil(size / unit).astype(np.int64), np.floor(room / unit).astype(np.int64)
    return units - units.min(), units_left - units.min() * topology.rank_num_slots
