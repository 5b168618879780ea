"""Carries a live layer over to ranks with other slots: which replicas stay, and which experts fill the empty slots.

Loads are scaled so that the mean rank load is 1. -1 is an empty slot.
"""

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import READ_FLOATS, READ_INTS, READ_MAPS, holds, sum_rank_time
from eplb_traces.jit import helper, njit

Flags = NDArray[np.bool_]

POWER = 8  # an expert fills a slot where the sum of these powers of the rank times ends lowest


@helper
def _choose_kept(unit: Floats, live: Map, begin: int, end: int, room: int, kept: Flags) -> None:
    """Mark the replicas live[begin:end] of one rank that stay: all, or as many as there is room for.

    A rank that has too many gives up duplicates, then replicas evenly spaced in order of load, so that its load falls
    as its slots do.
    """
    size = 0
    for slot in range(begin, end):
        kept[slot] = live[slot] >= 0
        size += kept[slot]
    if size <= room:
        return
    for slot in range(begin, end):
        if kept[slot] and holds(live, begin, slot, live[slot]):
            kept[slot] = False
            size -= 1
    key = np.empty(end - begin)
    for slot in range(begin, end):
        key[slot - begin] = -unit[live[slot]] if kept[slot] else 1.0
    if size > room:
        for place, at in enumerate(np.argsort(key, kind="mergesort")[:size]):
            kept[begin + at] = (place + 1) * room // size > place * room // size


@helper
def _lay_out(live: Map, first_live: Ints, first_slot: Ints, kept: Flags, new: Map) -> None:
    """Write the kept replicas into the new slots, each at its old place on the rank where there is one."""
    new[:] = -1
    for rank in range(first_slot.size - 1):
        begin, first, room = first_live[rank], first_slot[rank], first_slot[rank + 1] - first_slot[rank]
        for slot in range(begin, min(first_live[rank + 1], begin + room)):
            if kept[slot]:
                new[first + slot - begin] = live[slot]
        free = first
        for slot in range(begin + room, first_live[rank + 1]):
            if kept[slot]:
                while new[free] >= 0:
                    free += 1
                new[free] = live[slot]


@helper
def _keep_missing(load: Floats, count: Ints, live: Map, first_live: Ints, first_slot: Ints, new: Map) -> None:
    """Where experts without a replica outnumber the empty slots, keep them instead of redundant replicas."""
    lacking = (count == 0).sum() - (new < 0).sum()
    for rank in range(first_slot.size - 1):
        for live_slot in range(first_live[rank], first_live[rank + 1]):
            expert, best, least = live[live_slot], -1, np.inf
            if lacking <= 0 or expert < 0 or count[expert] > 0:
                continue
            for slot in range(first_slot[rank], first_slot[rank + 1]):
                other = new[slot]
                if other >= 0 and count[other] > 1 and load[other] / (count[other] - 1) < least:
                    best, least = slot, load[other] / (count[other] - 1)
            if best >= 0:
                count[new[best]] -= 1
                count[expert] = 1
                new[best] = expert
                lacking -= 1


@helper
def _place_missing(
    load: Floats, count: Ints, first_slot: Ints, rank_scale: Floats, new: Map, free: Ints, rank_time: Floats
) -> None:
    """Put experts without a replica into empty slots, hottest first, each on the rank that ends lowest."""
    for expert in np.argsort(-load, kind="mergesort"):
        if count[expert] > 0:
            continue
        best, lowest = -1, np.inf
        for rank in range(free.size):
            if free[rank] > 0 and rank_time[rank] + load[expert] * rank_scale[rank] < lowest:
                best, lowest = rank, rank_time[rank] + load[expert] * rank_scale[rank]
        if best < 0:
            return
        _put(first_slot, new, free, best, expert)
        count[expert], rank_time[best] = 1, lowest


@helper
def _put(first_slot: Ints, new: Map, free: Ints, rank: int, expert: int) -> None:
    """Write an expert into the first empty slot of a rank."""
    slot = first_slot[rank]
    while new[slot] >= 0:
        slot += 1
    new[slot] = expert
    free[rank] -= 1


@helper
def _fill(
    load: Floats, count: Ints, first_slot: Ints, rank_scale: Floats, new: Map, free: Ints, rank_time: Floats
) -> None:
    """Give every empty slot, on the least loaded rank first, the replica that leaves the ranks most even."""
    num_experts, num_ranks = load.size, free.size
    held = np.zeros((num_experts, num_ranks), np.bool_)
    for rank in range(num_ranks):
        for slot in range(first_slot[rank], first_slot[rank + 1]):
            if new[slot] >= 0:
                held[new[slot], rank] = True
    for _ in range(free.sum()):
        to = -1
        for rank in range(num_ranks):
            if free[rank] > 0 and (to < 0 or rank_time[rank] < rank_time[to]):
                to = rank
        best, lowest = -1, np.inf
        for expert in range(num_experts):
            if held[expert, to] or count[expert] == 0:
                continue
            unit = load[expert] / (count[expert] + 1)
            fall = load[expert] / count[expert] - unit
            rise = (rank_time[to] + unit * rank_scale[to]) ** POWER - rank_time[to] ** POWER
            for rank in range(num_ranks):
                if held[expert, rank]:
                    rise += (rank_time[rank] - fall * rank_scale[rank]) ** POWER - rank_time[rank] ** POWER
            if rise < lowest:
                best, lowest = expert, rise
        _put(first_slot, new, free, to, best)
        held[best, to] = True
        count[best] += 1
        unit = load[best] / count[best]
        for rank in range(num_ranks):
            if held[best, rank]:
                change = unit if rank == to else unit - load[best] / (count[best] - 1)
                rank_time[rank] += change * rank_scale[rank]


@njit(
    f"void(float64[:, ::1], {READ_MAPS}, {READ_INTS}, {READ_INTS}, {READ_INTS}, {READ_FLOATS}, int32[:, ::1])",
)
def carry_over(
    load: Floats, live: Map, first_live: Ints, first_slot: Ints, rank_of_slot: Ints, rank_scale: Floats, new: Map
) -> None:
    """Carry each layer over. O(P (E R + E log E)) a layer.

    Experts without a replica are placed before empty slots get redundant replicas. Where there are more of them than
    empty slots, some are left without one, and no slot is empty.

    Parameters
    ----------
    load, live, first_live
        [L, E] scaled to mean rank load 1; [L, Q] what the new ranks have, by rank; [R + 1] where each rank's begin.
    first_slot, rank_of_slot, rank_scale
        [R + 1], [P], [R] time of one token.
    new
        [L, P] out.
    """
    num_experts, num_ranks = load.shape[1], rank_scale.size
    kept, count = np.empty(live.shape[1], np.bool_), np.empty(num_experts, np.int64)
    free, unit, rank_time = np.empty(num_ranks, np.int64), np.empty(num_experts + 1), np.empty(num_ranks)
    for layer in range(load.shape[0]):
        count[:] = 0
        for expert in live[layer]:
            if expert >= 0:
                count[expert] += 1
        unit[:num_experts] = load[layer] / np.maximum(count, 1)
        for rank in range(num_ranks):
            room = first_slot[rank + 1] - first_slot[rank]
            _choose_kept(unit, live[layer], first_live[rank], first_live[rank + 1], room, kept)
        _lay_out(live[layer], first_live, first_slot, kept, new[layer])
        count[:] = 0
        for expert in new[layer]:
            if expert >= 0:
                count[expert] += 1
        _keep_missing(load[layer], count, live[layer], first_live, first_slot, new[layer])
        unit[:num_experts] = load[layer] / np.maximum(count, 1)
        unit[num_experts] = 0.0  # of empty slots: id -1
        sum_rank_time(unit, new[layer], rank_of_slot, rank_scale, rank_time)
        free[:] = 0
        for slot in range(new.shape[1]):
            free[rank_of_slot[slot]] += new[layer, slot] < 0
        _place_missing(load[layer], count, first_slot, rank_scale, new[layer], free, rank_time)
        _fill(load[layer], count, first_slot, rank_scale, new[layer], free, rank_time)
