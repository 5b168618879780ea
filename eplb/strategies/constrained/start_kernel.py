"""Finds a feasible placement of every layer: replica counts within their limits, then a packing by descending load.

Replicas are added one at a time. One that finds no open rank starts a chain of moves: it takes the place of another
replica, which takes the place of a third, until one finds an open rank (an augmenting path of bipartite matching, Berge
1957; with several replicas of an expert, of a flow). Where only ranks and counts are constrained this finds a placement
whenever there is one. Blocks of several experts, experts kept apart and memory make it a heuristic.
"""

import numpy as np

from eplb.core.arrays import Floats, Ints
from eplb.strategies.constrained.layer_state_kernel import (
    BLOCKS,
    RANKS,
    Blocks,
    Flags,
    LayerState,
    empty_state,
    may_enter,
    name_blocks,
    put,
    take,
)
from eplb_traces.jit import helper, njit

FEASIBLE, NO_PIN, NO_REPLICA, NO_FILLING = 0, 1, 2, 3
"""Results: a placement; a pinned replica, a first replica, or an empty slot for which no place or block was found."""


@helper
def _least_time(blocks: Blocks, state: LayerState, block: int, time: Floats, rank_scale: Floats, load: float) -> int:
    """The rank that would be done first with one more replica of the block; -1 if none may take it."""
    found, least = -1, np.inf
    for rank in range(rank_scale.size):
        if may_enter(blocks, state, block, rank, -1):
            after = time[rank] + load * rank_scale[rank]
            if after < least:
                found, least = rank, after
    return found


@helper
def _make_room(blocks: Blocks, state: LayerState, block: int, came_from: Ints, mover: Ints) -> int:
    """Look for a chain of moves after which a rank can take the block; the rank at its end, or -1.

    Breadth first: `mover[r]` is the block that would enter rank r and `came_from[r]` the rank that it would leave, -1
    for `block` itself. The rank at the end can take its mover at once. O(P R).
    """
    num_ranks = came_from.size
    queue, first, last = np.empty(num_ranks, dtype=np.int64), 0, 0
    came_from[:], mover[:] = -2, -1
    for rank in range(num_ranks):
        if blocks.allowed[block, rank] and not state.on[block, rank]:
            came_from[rank], mover[rank] = -1, block
            queue[last] = rank
            last += 1
    while first < last:
        rank = queue[first]
        first += 1
        for i in range(state.num_held[rank]):
            leaving = state.held[rank, i]
            if blocks.pinned[leaving, rank] or not may_enter(blocks, state, mover[rank], rank, leaving):
                continue
            for target in range(num_ranks):
                if came_from[target] != -2 or not blocks.allowed[leaving, target] or state.on[leaving, target]:
                    continue
                came_from[target], mover[target] = rank, leaving
                if may_enter(blocks, state, leaving, target, -1):
                    return target
                queue[last] = target
                last += 1
    return -1


@helper
def _add_replica(blocks: Blocks, state: LayerState, block: int, load: Floats, time: Floats, rank_scale: Floats) -> bool:
    """Place one more replica of the block, by a chain of moves if need be; `load` [B] is that of one replica."""
    found = _least_time(blocks, state, block, time, rank_scale, load[block])
    if found >= 0:
        put(blocks, state, block, found)
        time[found] += load[block] * rank_scale[found]
        return True
    came_from, mover = np.empty(rank_scale.size, dtype=np.int64), np.empty(rank_scale.size, dtype=np.int64)
    rank = _make_room(blocks, state, block, came_from, mover)
    if rank < 0:
        return False
    while rank >= 0:
        moved, origin = mover[rank], came_from[rank]
        if origin >= 0:
            take(blocks, state, moved, origin)
            time[origin] -= load[moved] * rank_scale[origin]
        put(blocks, state, moved, rank)
        time[rank] += load[moved] * rank_scale[rank]
        rank = origin
    return True


@helper
def _pin(blocks: Blocks, state: LayerState, load: Floats, time: Floats, rank_scale: Floats) -> bool:
    """Place the pinned replicas; False if they do not fit."""
    for block in range(blocks.size.size):
        for rank in range(rank_scale.size):
            if blocks.pinned[block, rank]:
                if not may_enter(blocks, state, block, rank, -1):
                    return False
                put(blocks, state, block, rank)
                time[rank] += load[block] * rank_scale[rank]
    return True


@helper
def _hardest_first(blocks: Blocks, load: Floats) -> Ints:
    """[B] blocks by size and memory, largest first, then by the number of ranks that may hold them, then by load."""
    order = np.argsort(-load, kind="mergesort")
    open_ranks = np.empty(load.size, dtype=np.int64)
    for block in range(load.size):
        open_ranks[block] = blocks.allowed[block].sum()
    order = order[np.argsort(open_ranks[order], kind="mergesort")]
    order = order[np.argsort(-blocks.bytes[order], kind="mergesort")]
    return order[np.argsort(-blocks.size[order], kind="mergesort")]


@helper
def _choose_counts(blocks: Blocks, state: LayerState, load: Floats, time: Floats, rank_scale: Floats) -> int:
    """Place pinned and least replicas, then always one more of the block with the most load a replica; a result.

    A block whose next replica finds no place is out: where only ranks and counts are constrained it would find none
    later. `load` [B] is that of all replicas.
    """
    if not _pin(blocks, state, load / np.maximum(blocks.least, 1), time, rank_scale):
        return NO_PIN
    unit = load / np.maximum(blocks.least, 1)
    for block in _hardest_first(blocks, load):
        while state.num_replicas[block] < blocks.least[block]:
            if not _add_replica(blocks, state, block, unit, time, rank_scale):
                return NO_REPLICA
    left, is_out = state.slots_left.sum(), state.num_replicas >= blocks.most
    while left > 0:
        found, most = -1, -1.0
        for block in range(load.size):
            if not is_out[block] and blocks.size[block] <= left and load[block] / state.num_replicas[block] > most:
                found, most = block, load[block] / state.num_replicas[block]
        if found < 0:
            return NO_FILLING
        unit[found] = load[found] / (state.num_replicas[found] + 1)
        if _add_replica(blocks, state, found, unit, time, rank_scale):
            left -= blocks.size[found]
            is_out[found] = state.num_replicas[found] >= blocks.most[found]
        else:
            is_out[found] = True
    return FEASIBLE


@helper
def _pack(blocks: Blocks, state: LayerState, count: Ints, load: Floats, time: Floats, rank_scale: Floats) -> bool:
    """Place so many replicas [B] of each block, those of several experts first, then by descending load a replica."""
    unit = load / count
    if not _pin(blocks, state, unit, time, rank_scale):
        return False
    order = np.argsort(-unit, kind="mergesort")
    for block in order[np.argsort(blocks.size[order] == 1, kind="mergesort")]:
        while state.num_replicas[block] < count[block]:
            if not _add_replica(blocks, state, block, unit, time, rank_scale):
                return False
    return True


@njit(
    f"void(float64[:, ::1], {BLOCKS}, {RANKS}, Array(float64, 1, 'C', readonly=True), boolean[:, :, ::1], int64[::1])"
)
def start_layers(
    load: Floats,
    block_fields: tuple[Ints, Flags, Flags, Ints, Ints, Flags, Ints],
    ranks: tuple[Ints, Ints],
    rank_scale: Floats,
    on: Flags,
    result: Ints,
) -> None:
    """Find a feasible placement of each layer that fills every slot.

    Parameters
    ----------
    load
        [L, B] load of each block, all replicas together; above 0 somewhere in each layer.
    block_fields
        The fields of `Blocks`.
    ranks
        [R] slots and [R] units of memory of each rank.
    rank_scale
        [R] time of one token.
    on
        [L, B, R] out: which ranks hold the block.
    result
        [L] out: FEASIBLE, or what found no place.
    """
    blocks = name_blocks(block_fields)
    slots, room = ranks
    for layer in range(load.shape[0]):
        state, time = empty_state(blocks.size.size, slots, room), np.zeros(slots.size)
        result[layer] = _choose_counts(blocks, state, load[layer], time, rank_scale)
        on[layer] = state.on
        if result[layer] != FEASIBLE:
            continue
        packed = empty_state(blocks.size.size, slots, room)
        time[:] = 0.0
        if _pack(blocks, packed, state.num_replicas, load[layer], time, rank_scale):
            on[layer] = packed.on
