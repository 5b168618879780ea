"""Holds the placement of one layer under hard constraints and the check whether a block may enter a rank.

A block is one expert, or experts that are kept together: they lie on the same ranks, in as many slots each.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Ints
from eplb_traces.jit import helper

Flags = NDArray[np.bool_]

READ_INTS = "Array(int64, 1, 'C', readonly=True)"
READ_FLAGS = "Array(boolean, 2, 'C', readonly=True)"
BLOCKS = f"Tuple(({READ_INTS}, {READ_FLAGS}, {READ_FLAGS}, {READ_INTS}, {READ_INTS}, {READ_FLAGS}, {READ_INTS}))"
RANKS = f"Tuple(({READ_INTS}, {READ_INTS}))"


class Blocks(NamedTuple):
    """The blocks of a layer and what each of them must meet."""

    size: Ints
    """[B] slots that a replica takes."""
    allowed: Flags
    """[B, R] whether a rank may hold the block."""
    pinned: Flags
    """[B, R] whether a rank must hold it."""
    least: Ints
    """[B] fewest replicas."""
    most: Ints
    """[B] most replicas."""
    clash: Flags
    """[B, B] whether a rank may not hold both; symmetric, false on the diagonal."""
    bytes: Ints
    """[B] units of memory of a replica."""


class LayerState(NamedTuple):
    """Which ranks hold which blocks: four views of the same placement."""

    on: Flags
    """[B, R]"""
    num_replicas: Ints
    """[B] replicas."""
    ranks: Ints
    """[B, R] ranks of the block, ascending; the first `num_replicas` entries."""
    held: Ints
    """[R, S] blocks of the rank in no order; the first `num_held` entries."""
    num_held: Ints
    """[R]"""
    slots_left: Ints
    """[R]"""
    bytes_left: Ints
    """[R] units of memory."""


@helper
def name_blocks(fields: tuple[Ints, Flags, Flags, Ints, Ints, Flags, Ints]) -> Blocks:
    """Name the fields that Python passed."""
    return Blocks(fields[0], fields[1], fields[2], fields[3], fields[4], fields[5], fields[6])


@helper
def empty_state(num_blocks: int, slots: Ints, room: Ints) -> LayerState:
    """A layer without replicas on ranks of so many slots [R] and units of memory [R]."""
    num_ranks = slots.size
    return LayerState(
        np.zeros((num_blocks, num_ranks), dtype=np.bool_),
        np.zeros(num_blocks, dtype=np.int64),
        np.zeros((num_blocks, num_ranks), dtype=np.int64),
        np.zeros((num_ranks, slots.max()), dtype=np.int64),
        np.zeros(num_ranks, dtype=np.int64),
        slots.copy(),
        room.copy(),
    )


@helper
def may_enter(blocks: Blocks, state: LayerState, block: int, rank: int, leaving: int) -> bool:
    """Whether the rank may take a replica of the block when `leaving` (-1: none) has left it."""
    if not blocks.allowed[block, rank] or state.on[block, rank]:
        return False
    slots, room = state.slots_left[rank], state.bytes_left[rank]
    if leaving >= 0:
        slots += blocks.size[leaving]
        room += blocks.bytes[leaving]
    if blocks.size[block] > slots or blocks.bytes[block] > room:
        return False
    for i in range(state.num_held[rank]):
        other = state.held[rank, i]
        if other != leaving and blocks.clash[block, other]:
            return False
    return True


@helper
def put(blocks: Blocks, state: LayerState, block: int, rank: int) -> None:
    """Give the rank a replica of the block."""
    state.on[block, rank] = True
    at = state.num_replicas[block]
    while at > 0 and state.ranks[block, at - 1] > rank:
        state.ranks[block, at] = state.ranks[block, at - 1]
        at -= 1
    state.ranks[block, at] = rank
    state.num_replicas[block] += 1
    state.held[rank, state.num_held[rank]] = block
    state.num_held[rank] += 1
    state.slots_left[rank] -= blocks.size[block]
    state.bytes_left[rank] -= blocks.bytes[block]


@helper
def take(blocks: Blocks, state: LayerState, block: int, rank: int) -> None:
    """Take the block's replica from the rank."""
    state.on[block, rank] = False
    at = 0
    while state.ranks[block, at] != rank:
        at += 1
    state.num_replicas[block] -= 1
    for later in range(at, state.num_replicas[block]):
        state.ranks[block, later] = state.ranks[block, later + 1]
    at = 0
    while state.held[rank, at] != block:
        at += 1
    state.num_held[rank] -= 1
    state.held[rank, at] = state.held[rank, state.num_held[rank]]
    state.slots_left[rank] += blocks.size[block]
    state.bytes_left[rank] += blocks.bytes[block]
