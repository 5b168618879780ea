"""The best split of every expert's tokens over its copies, for one map and one load. Knows arrays only.

The optimum is the densest set of ranks: max over sets U of (load of the experts all of whose copies lie in U) / (speed
of U), by max-flow min-cut (MicroMoE, equation 3). Here the set is found by discrete Newton steps: ranks above a trial
level push tokens along shortest paths to ranks below it (Edmonds and Karp 1972); where they cannot, the ranks reached
are a set that is denser than the level, and its density is the next level.
"""

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb_traces.jit import njit

TOLERANCE = 1e-9  # of the level: ranks may end this far above the optimum


@njit("void(Array(int32, 1, 'C', readonly=True), int64[::1], int64[::1])")
def _list_members(phy2log: Map, first_member: Ints, member: Ints) -> None:
    """List the slots of each expert, ascending: those of e are ``member[first_member[e] : first_member[e + 1]]``."""
    first_member[:] = 0
    for slot in range(phy2log.size):
        if phy2log[slot] >= 0:
            first_member[phy2log[slot] + 1] += 1
    for expert in range(first_member.size - 1):
        first_member[expert + 1] += first_member[expert]
    for slot in range(phy2log.size - 1, -1, -1):
        if phy2log[slot] >= 0:
            first_member[phy2log[slot] + 1] -= 1
            member[first_member[phy2log[slot] + 1]] = slot
    last = 0
    for slot in range(phy2log.size):
        last += phy2log[slot] >= 0
    # Each first_member[e + 1] has fallen to the start of e: shift back.
    for expert in range(first_member.size - 1):
        first_member[expert] = first_member[expert + 1]
    first_member[first_member.size - 1] = last


@njit(
    "float64(Array(float64, 1, 'A', readonly=True), Array(int32, 1, 'C', readonly=True), int64[::1], int64[::1],"
    " float64[::1], int64[::1], int64[::1], float64[::1], float64[::1], int64[::1], int64[:, ::1], int64[::1])",
)
def _balance(
    load: Floats, phy2log: Map, first_slot: Ints, rank_of_slot: Ints, speed: Floats, first_member: Ints, member: Ints,
    slot_load: Floats, rank_load: Floats, queue: Ints, via: Ints, seen_expert: Ints,
) -> float:  # fmt: skip
    """Split one load; returns the optimum and leaves the tokens of each slot in `slot_load`.

    `rank_load` [R], `queue` [R], `via` [2, R] and `seen_expert` [E] are scratch.
    """
    num_ranks, num_experts = speed.size, load.size
    total = 0.0
    slot_load[:] = 0.0
    rank_load[:] = 0.0
    for expert in range(num_experts):
        total += load[expert]
        count = first_member[expert + 1] - first_member[expert]
        if count == 1:
            rank_load[rank_of_slot[member[first_member[expert]]]] += load[expert]
    if total == 0.0:
        return 0.0
    level = total / speed.sum()
    for rank in range(num_ranks):
        level = max(level, rank_load[rank] / speed[rank])
    for expert in range(num_experts):
        count = first_member[expert + 1] - first_member[expert]
        for i in range(first_member[expert], first_member[expert + 1]):
            slot_load[member[i]] = load[expert] / count
            if count > 1:
                rank_load[rank_of_slot[member[i]]] += load[expert] / count
    seen_expert[:] = -1
    turn = 0
    while True:
        above = level * TOLERANCE
        below = above / (4 * num_ranks)
        dust = below / (2 * phy2log.size)
        num_queued = 0
        for rank in range(num_ranks):
            via[0, rank] = -2
            if rank_load[rank] > level * speed[rank] + above:
                via[0, rank] = -1
                queue[num_queued] = rank
                num_queued += 1
        if num_queued == 0:
            return level
        turn += 1
        found = -1
        at = 0
        while at < num_queued and found < 0:
            rank = queue[at]
            at += 1
            for slot in range(first_slot[rank], first_slot[rank + 1]):
                expert = phy2log[slot]
                if expert < 0 or seen_expert[expert] == turn or slot_load[slot] <= dust:
                    continue
                seen_expert[expert] = turn
                for i in range(first_member[expert], first_member[expert + 1]):
                    other = rank_of_slot[member[i]]
                    if via[0, other] != -2:
                        continue
                    via[0, other], via[1, other] = slot, member[i]
                    queue[num_queued] = other
                    num_queued += 1
                    if rank_load[other] < level * speed[other] - below:
                        found = other
                        break
                if found >= 0:
                    break
        if found >= 0:
            amount = level * speed[found] - rank_load[found]
            rank = found
            while via[0, rank] >= 0:
                amount = min(amount, slot_load[via[0, rank]])
                rank = rank_of_slot[via[0, rank]]
            amount = min(amount, rank_load[rank] - level * speed[rank])
            rank_load[rank] -= amount
            rank_load[found] += amount
            rank = found
            while via[0, rank] >= 0:
                slot_load[via[0, rank]] -= amount
                slot_load[via[1, rank]] += amount
                rank = rank_of_slot[via[0, rank]]
            continue
        # No way out of the ranks seen: they are full of experts that live nowhere else.
        inside, capacity = 0.0, 0.0
        for rank in range(num_ranks):
            capacity += speed[rank] if via[0, rank] != -2 else 0.0
        for expert in range(num_experts):
            confined = True
            for i in range(first_member[expert], first_member[expert + 1]):
                if via[0, rank_of_slot[member[i]]] == -2:
                    confined = False
                    break
            if confined:
                inside += load[expert]
        if inside / capacity <= level:  # rounding alone is left
            return level
        level = inside / capacity


@njit(
    "void(Array(float64, 2, 'A', readonly=True), Array(int32, 1, 'C', readonly=True), int64[::1], float64[::1],"
    " float64[::1])",
)
def busiest_by_window(load: Floats, phy2log: Map, first_slot: Ints, speed: Floats, busiest: Floats) -> None:
    """Find the least load of the busiest rank, over its speed, for one map of a layer and each of many loads.

    Parameters
    ----------
    load
        [W, E] tokens; any strides.
    phy2log
        [P] expert of each slot, -1 for an empty one; every expert has a slot.
    first_slot, speed
        [R + 1], [R]
    busiest
        [W] out: the optimum, exact but for the rounding of sums.
    """
    num_experts, num_ranks = load.shape[1], speed.size
    first_member, member = np.empty(num_experts + 1, dtype=np.int64), np.empty(phy2log.size, dtype=np.int64)
    rank_of_slot = np.repeat(np.arange(num_ranks), first_slot[1:] - first_slot[:-1])
    slot_load, rank_load = np.empty(phy2log.size, dtype=np.float64), np.empty(num_ranks, dtype=np.float64)
    queue, via = np.empty(num_ranks, dtype=np.int64), np.empty((2, num_ranks), dtype=np.int64)
    seen_expert = np.empty(num_experts, dtype=np.int64)
    _list_members(phy2log, first_member, member)
    for window in range(load.shape[0]):
        busiest[window] = _balance(
            load[window], phy2log, first_slot, rank_of_slot, speed, first_member, member, slot_load, rank_load,
            queue, via, seen_expert,
        )  # fmt: skip


@njit(
    "void(Array(float64, 2, 'A', readonly=True), Array(int32, 2, 'C', readonly=True), int64[::1], float64[::1],"
    " float64[::1], float64[:, ::1])",
)
def split_layers(
    load: Floats, phy2log: Map, first_slot: Ints, speed: Floats, busiest: Floats, slot_load: Floats
) -> None:
    """Split one load of every layer over the copies so that the busiest rank has least.

    The split starts even and is changed only where ranks are above the optimum.

    Parameters
    ----------
    load, phy2log
        [L, E], [L, P]
    first_slot, speed
        [R + 1], [R]
    busiest
        [L] out: the optimum.
    slot_load
        [L, P] out: tokens of each slot; no rank is above the optimum by more than `TOLERANCE` of it.
    """
    num_experts, num_ranks, num_slots = load.shape[1], speed.size, phy2log.shape[1]
    first_member, member = np.empty(num_experts + 1, dtype=np.int64), np.empty(num_slots, dtype=np.int64)
    rank_of_slot = np.repeat(np.arange(num_ranks), first_slot[1:] - first_slot[:-1])
    rank_load = np.empty(num_ranks, dtype=np.float64)
    queue, via = np.empty(num_ranks, dtype=np.int64), np.empty((2, num_ranks), dtype=np.int64)
    seen_expert = np.empty(num_experts, dtype=np.int64)
    for layer in range(load.shape[0]):
        _list_members(phy2log[layer], first_member, member)
        busiest[layer] = _balance(
            load[layer], phy2log[layer], first_slot, rank_of_slot, speed, first_member, member, slot_load[layer],
            rank_load, queue, via, seen_expert,
        )  # fmt: skip
