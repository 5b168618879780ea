"""Splits every expert's tokens over its replicas so that the busiest rank has least, for one map and one load.

The optimum is the densest set of ranks: max over sets U of (load of the experts all of whose replicas lie in U) /
(speed of U), by max-flow min-cut (MicroMoE, equation 3). Here the set is found by discrete Newton steps: ranks above a
trial level push tokens along shortest paths to ranks below it (Edmonds and Karp 1972); where they cannot, the ranks
reached are a set that is denser than the level, and its density is the next level.
"""

from typing import NamedTuple

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import READ_FLOATS, READ_INTS, READ_MAPS
from eplb_traces.jit import helper, njit

TOLERANCE = 1e-9  # of the level: ranks may end this far above the optimum
UNSEEN, START = -2, -1


class SplitState(NamedTuple):
    """The split of one layer."""

    first_slot: Ints
    """[R + 1]"""
    rank_of_slot: Ints
    """[P]"""
    speed: Floats
    """[R]"""
    first_member: Ints
    """[E + 1] the slots of expert e are ``member[first_member[e] : first_member[e + 1]]``, ascending."""
    member: Ints
    """[P]"""
    rank_load: Floats
    """[R]"""
    queue: Ints
    """[R] ranks in the order of the search."""
    via: Ints
    """[2, R] slots that a path leaves and enters on its way to each rank; UNSEEN, or START, in the first row."""
    seen_expert: Ints
    """[E] last search that came upon each expert."""


@helper
def _list_members(phy2log: Map, first_member: Ints, member: Ints) -> None:
    first_member[:] = 0
    for expert in phy2log:
        if expert >= 0:
            first_member[expert + 1] += 1
    for expert in range(first_member.size - 1):
        first_member[expert + 1] += first_member[expert]
    end = first_member.copy()
    for slot in range(phy2log.size - 1, -1, -1):
        if phy2log[slot] >= 0:
            end[phy2log[slot] + 1] -= 1
            member[end[phy2log[slot] + 1]] = slot


@helper
def _split_evenly(state: SplitState, load: Floats, slot_load: Floats) -> float:
    """Split the load evenly; returns a lower bound: the mean, or a rank's experts with one replica over its speed."""
    first_member, member, rank_load = state.first_member, state.member, state.rank_load
    total = 0.0
    slot_load[:], rank_load[:] = 0.0, 0.0
    for expert in range(load.size):
        total += load[expert]
        if first_member[expert + 1] - first_member[expert] == 1:
            rank_load[state.rank_of_slot[member[first_member[expert]]]] += load[expert]
    level = total / state.speed.sum()
    for rank in range(rank_load.size):
        level = max(level, rank_load[rank] / state.speed[rank])
    for expert in range(load.size):
        count = first_member[expert + 1] - first_member[expert]
        for i in range(first_member[expert], first_member[expert + 1]):
            slot_load[member[i]] = load[expert] / count
            if count > 1:
                rank_load[state.rank_of_slot[member[i]]] += load[expert] / count
    return level


@helper
def _find_path(state: SplitState, phy2log: Map, slot_load: Floats, level: float, num_queued: int, search: int) -> int:
    """Search breadth first from the queued ranks for a rank below the level; -1 if none is reached."""
    via, queue, first_member, member = state.via, state.queue, state.first_member, state.member
    below = level * TOLERANCE / (4 * state.speed.size)
    epsilon = below / (2 * phy2log.size)
    at = 0
    while at < num_queued:
        rank = queue[at]
        at += 1
        for slot in range(state.first_slot[rank], state.first_slot[rank + 1]):
            expert = phy2log[slot]
            if expert < 0 or state.seen_expert[expert] == search or slot_load[slot] <= epsilon:
                continue
            state.seen_expert[expert] = search
            for i in range(first_member[expert], first_member[expert + 1]):
                other = state.rank_of_slot[member[i]]
                if via[0, other] == UNSEEN:
                    via[0, other], via[1, other] = slot, member[i]
                    queue[num_queued] = other
                    num_queued += 1
                    if state.rank_load[other] < level * state.speed[other] - below:
                        return other
    return -1


@helper
def _push(state: SplitState, slot_load: Floats, level: float, found: int) -> None:
    """Move as many tokens along the path that ends at the rank `found` as it takes and as the path lets through."""
    via, rank_load, rank = state.via, state.rank_load, found
    amount = level * state.speed[found] - rank_load[found]
    while via[0, rank] >= 0:
        amount = min(amount, slot_load[via[0, rank]])
        rank = state.rank_of_slot[via[0, rank]]
    amount = min(amount, rank_load[rank] - level * state.speed[rank])
    rank_load[rank] -= amount
    rank_load[found] += amount
    rank = found
    while via[0, rank] >= 0:
        slot_load[via[0, rank]] -= amount
        slot_load[via[1, rank]] += amount
        rank = state.rank_of_slot[via[0, rank]]


@helper
def _density_of_seen(state: SplitState, load: Floats) -> float:
    """Load of the experts all of whose replicas are on the ranks that the search reached, over the speed of these."""
    inside, capacity = 0.0, 0.0
    for rank in range(state.speed.size):
        capacity += state.speed[rank] if state.via[0, rank] != UNSEEN else 0.0
    for expert in range(load.size):
        confined = True
        for i in range(state.first_member[expert], state.first_member[expert + 1]):
            if state.via[0, state.rank_of_slot[state.member[i]]] == UNSEEN:
                confined = False
                break
        if confined:
            inside += load[expert]
    return inside / capacity


@helper
def _balance(state: SplitState, load: Floats, phy2log: Map, slot_load: Floats) -> float:
    """Split one load; returns the optimum and leaves the tokens of each slot in `slot_load`."""
    level = _split_evenly(state, load, slot_load)
    state.seen_expert[:] = -1
    search = 0
    while level > 0.0:
        num_queued = 0
        for rank in range(state.speed.size):
            state.via[0, rank] = UNSEEN
            if state.rank_load[rank] > level * state.speed[rank] + level * TOLERANCE:
                state.via[0, rank] = START
                state.queue[num_queued] = rank
                num_queued += 1
        if num_queued == 0:
            break
        search += 1
        found = _find_path(state, phy2log, slot_load, level, num_queued, search)
        if found >= 0:
            _push(state, slot_load, level, found)
            continue
        density = _density_of_seen(state, load)
        if density <= level:  # rounding alone is left
            break
        level = density
    return level


@njit(
    f"void(Array(float64, 3, 'A', readonly=True), {READ_MAPS}, {READ_INTS}, {READ_INTS}, {READ_FLOATS},"
    " float64[:, :], float64[:, ::1])"
)
def split_windows(
    load: Floats, phy2log: Map, first_slot: Ints, rank_of_slot: Ints, speed: Floats, busiest: Floats, slot_load: Floats
) -> None:
    """Split every window's load of each layer over the replicas so that the busiest rank has least.

    The split starts even and is changed only where ranks are above the optimum.

    Parameters
    ----------
    load
        [W, L, E] tokens; any strides.
    phy2log
        [L, P] expert of each slot, -1 for an empty one; every expert has a slot.
    first_slot, rank_of_slot, speed
        [R + 1], [P], [R]
    busiest
        [W, L] out: the optimum in tokens over speed, exact but for the rounding of sums; any strides.
    slot_load
        [L, P] out: tokens of each slot in the last window; no rank is above the optimum by more than `TOLERANCE` of it.
    """
    num_experts, num_ranks, num_slots = load.shape[2], speed.size, phy2log.shape[1]
    state = SplitState(
        first_slot, rank_of_slot, speed, np.empty(num_experts + 1, np.int64), np.empty(num_slots, np.int64),
        np.empty(num_ranks), np.empty(num_ranks, np.int64), np.empty((2, num_ranks), np.int64),
        np.empty(num_experts, np.int64),
    )  # fmt: skip
    for layer in range(load.shape[1]):
        _list_members(phy2log[layer], state.first_member, state.member)
        for window in range(load.shape[0]):
            busiest[window, layer] = _balance(state, load[window, layer], phy2log[layer], slot_load[layer])
