"""Replica counts and a first packing: the two greedy steps before any search.

Sources: replica counts as DeepSeek's EPLB chooses them (argmax of load / count), here with a heap and at most one
replica a rank; packing by the longest-processing-time rule (Graham 1969) with a slot limit a rank; which counts can be
kept apart on ranks of unequal slots: Gale 1957 and Ryser 1957.

`rank_scale` [R] is the time of one token on each rank and `rank_time` [R] its load times that; with equal ranks the
scale is 1 and times are loads.
"""

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import READ_FLOATS, READ_FLOATS_2D, READ_INTS, holds
from eplb_traces.jit import helper, njit


@helper
def _sift_down(keys: Floats, ids: Ints, size: int, key: float, item: int) -> None:
    """Put (key, item) at the root of a binary min-heap and let it sink. Ties go to the lower id."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        right = child + 1
        if right < size and (keys[right] < keys[child] or (keys[right] == keys[child] and ids[right] < ids[child])):
            child = right
        if keys[child] > key or (keys[child] == key and ids[child] > item):
            break
        keys[at] = keys[child]
        ids[at] = ids[child]
        at = child
    keys[at] = key
    ids[at] = item


@helper
def _sift_up(keys: Floats, ids: Ints, at: int, key: float, item: int) -> None:
    """Put (key, item) at the free place `at` of a binary min-heap and let it rise. Ties go to the lower id."""
    while at > 0:
        parent = (at - 1) // 2
        if keys[parent] < key or (keys[parent] == key and ids[parent] < item):
            break
        keys[at] = keys[parent]
        ids[at] = ids[parent]
        at = parent
    keys[at] = key
    ids[at] = item


@helper
def _can_be_kept_apart(count: Ints, room: Ints, max_replicas: int) -> bool:
    """Whether the replicas fit with no expert twice on a rank: `room[k]` holds those of the k most replicated ones."""
    with_count = np.zeros(max_replicas + 2, dtype=np.int64)
    for expert in range(count.size):
        with_count[count[expert]] += 1
    num_experts = num_replicas = 0
    for replicas in range(max_replicas + 1, 0, -1):
        for _ in range(with_count[replicas]):
            num_experts += 1
            num_replicas += replicas
            if num_replicas > room[num_experts]:
                return False
    return True


@helper
def count_replicas(
    load: Floats,
    order: Ints,
    num_redundant: int,
    least_replicas: int,
    max_replicas: int,
    offset: float,
    room: Ints,
    count: Ints,
) -> int:
    """Give redundant replicas one by one to the expert with the most load / (replicas + offset); ties to lowest id.

    Offset 0 minimises the largest load of a replica (an exchange argument: a replica given elsewhere leaves this
    maximum as it was); 0.5, the divisors of Webster's apportionment, keeps replicas near their mean load, with fewer
    small ones. With unequal ranks an expert gets no replica that could not be kept apart from the others; as the counts
    that can are a polymatroid, one that is refused once is refused for good, the rest still find a place, and the
    largest load of a replica is still least. O(E + num_redundant log num_redundant) for loads that are sorted already,
    times E with unequal ranks.

    Parameters
    ----------
    load, order
        [E] load of each expert; experts by descending load.
    num_redundant, least_replicas, max_replicas
        Replicas to give beyond the `least_replicas`, 1 or 2, of each expert; most replicas of one expert.
    offset
        At least 0: what is added to the replicas of an expert when its load is divided by them.
    room
        [E + 1] most replicas that k experts can have together, one a rank; empty where ranks have equal slots.
    count
        [E] out: replicas of each expert.

    Returns
    -------
    int
        How many experts may have more than one replica; they are the first ones of `order`, ties aside.
    """
    heap_key, heap_expert = np.empty(load.size, dtype=np.float64), np.empty(load.size, dtype=np.int64)
    count[:] = least_replicas
    num_split = 0
    if least_replicas > 1:
        num_split = load.size
        for i in range(num_split):
            key = 1.0 if max_replicas <= least_replicas else -load[order[i]] / (least_replicas + offset)
            _sift_up(heap_key, heap_expert, i, key, order[i])
    while num_redundant > 0:
        fresh = num_split < load.size
        if fresh and num_split > 0:
            expert = order[num_split]
            key = -load[expert] / (1 + offset)
            fresh = key < heap_key[0] or (key == heap_key[0] and expert < heap_expert[0])
        expert = order[num_split] if fresh else heap_expert[0]
        count[expert] += 1
        num_redundant -= 1
        # A positive key marks an expert that has all the replicas it may have: behind every other.
        key = 1.0 if count[expert] >= max_replicas else -load[expert] / (count[expert] + offset)
        if room.size > 0 and not _can_be_kept_apart(count, room, max_replicas):
            count[expert] -= 1
            num_redundant += 1
            key = 1.0
        if fresh:
            _sift_up(heap_key, heap_expert, num_split, key, expert)
            num_split += 1
        else:
            _sift_down(heap_key, heap_expert, num_split, key, expert)
    return num_split


@helper
def place_by_exchange(
    expert: int,
    load: float,
    num_ranks: int,
    first_slot: Ints,
    rank_scale: Floats,
    phy2log: Map,
    slot_load: Floats,
    used: Ints,
    rank_time: Floats,
) -> bool:
    """Place a replica when every rank with a free slot holds the expert: another rank takes it and gives an expert.

    With equal slots the exchange exists: a full rank without the expert holds one more distinct expert than the rank
    with the free slot holds beside this one.
    """
    free = 0
    while free < num_ranks and used[free] == first_slot[free + 1] - first_slot[free]:
        free += 1
    if free == num_ranks:
        return False
    target = first_slot[free] + used[free]
    for rank in range(num_ranks):
        end = first_slot[rank] + used[rank]
        if holds(phy2log, first_slot[rank], end, expert):
            continue
        for slot in range(first_slot[rank], end):
            if holds(phy2log, first_slot[free], target, phy2log[slot]):
                continue
            phy2log[target], slot_load[target] = phy2log[slot], slot_load[slot]
            rank_time[free] += slot_load[slot] * rank_scale[free]
            rank_time[rank] += (load - slot_load[slot]) * rank_scale[rank]
            phy2log[slot], slot_load[slot] = expert, load
            used[free] += 1
            return True
    return False


@helper
def _fill_slot(
    rank: int,
    expert: int,
    load: float,
    first_slot: Ints,
    rank_scale: Floats,
    phy2log: Map,
    slot_load: Floats,
    used: Ints,
    rank_time: Floats,
) -> bool:
    """Put a replica into the next slot of a rank; whether the rank is full then."""
    slot = first_slot[rank] + used[rank]
    phy2log[slot], slot_load[slot] = expert, load
    used[rank] += 1
    rank_time[rank] += load * rank_scale[rank]
    return slot + 1 == first_slot[rank + 1]


@helper
def _order_split(load: Floats, order: Ints, count: Ints, num_split: int) -> Ints:
    """[num_split] the first experts of `order` by descending load of a replica, ties by id."""
    split = np.empty(num_split, dtype=np.int64)
    for i in range(num_split):  # an insertion sort: they are nearly in order
        expert = order[i]
        at = i
        while at > 0:
            before = split[at - 1]
            here, there = load[expert] / count[expert], load[before] / count[before]
            if there > here or (there == here and before < expert):
                break
            split[at] = before
            at -= 1
        split[at] = expert
    return split


@helper
def _pack_largest_first(
    load: Floats,
    order: Ints,
    num_split: int,
    count: Ints,
    first_slot: Ints,
    rank_scale: Floats,
    phy2log: Map,
    slot_load: Floats,
    rank_time: Floats,
) -> bool:
    """Place replicas by descending load, each on the rank of least time that has a free slot and lacks the expert.

    All replicas of an expert are placed at once, on as many different ranks. Ties go to the lowest id. O(P log R).

    Parameters
    ----------
    load, order, count
        [E] load, experts by descending load, replicas.
    num_split
        Experts at the front of `order` that may have more than one replica.
    first_slot, rank_scale
        [R + 1] first slot of each rank, then P; [R].
    phy2log, slot_load, rank_time
        [P], [P], [R] out: expert and load of each slot, time of each rank.

    Returns
    -------
    bool
        False if some replica found no place; the outputs are then unfinished.
    """
    num_ranks = num_open = rank_time.size
    used, split = np.zeros(num_ranks, dtype=np.int64), _order_split(load, order, count, num_split)
    heap_key, heap_rank = np.zeros(num_ranks, dtype=np.float64), np.arange(num_ranks)
    rank_time[:] = 0.0
    next_split, next_whole = 0, num_split
    while next_split < num_split or next_whole < load.size:
        whole = next_whole < load.size
        if whole and next_split < num_split:
            expert = split[next_split]
            whole = load[order[next_whole]] > load[expert] / count[expert]
        if whole:
            expert = order[next_whole]
            next_whole += 1
        else:
            expert = split[next_split]
            next_split += 1
        value = load[expert] / count[expert]
        if count[expert] == 1 and num_open > 0:  # the root stays in the heap: one sift instead of two
            rank = heap_rank[0]
            key = rank_time[rank] + value * rank_scale[rank]
            if _fill_slot(rank, expert, value, first_slot, rank_scale, phy2log, slot_load, used, rank_time):
                num_open -= 1
                key, rank = heap_key[num_open], heap_rank[num_open]
            _sift_down(heap_key, heap_rank, num_open, key, rank)
            continue
        num_taken = min(count[expert], num_open)
        for _ in range(num_taken):  # the ranks of least time leave the heap, their ids kept in its freed tail
            rank = heap_rank[0]
            num_open -= 1
            _sift_down(heap_key, heap_rank, num_open, heap_key[num_open], heap_rank[num_open])
            heap_rank[num_open] = rank
        num_full = 0
        for _ in range(num_taken):
            rank = heap_rank[num_open + num_full]
            if _fill_slot(rank, expert, value, first_slot, rank_scale, phy2log, slot_load, used, rank_time):
                num_full += 1
                continue
            _sift_up(heap_key, heap_rank, num_open, rank_time[rank], rank)
            num_open += 1
        if num_taken < count[expert]:
            for _ in range(count[expert] - num_taken):
                if not place_by_exchange(
                    expert, value, num_ranks, first_slot, rank_scale, phy2log, slot_load, used, rank_time
                ):
                    return False
            num_open = 0
            for rank in range(num_ranks):
                if used[rank] < first_slot[rank + 1] - first_slot[rank]:
                    _sift_up(heap_key, heap_rank, num_open, rank_time[rank], rank)
                    num_open += 1
    return True


@helper
def _pack_by_room(
    load: Floats, count: Ints, first_slot: Ints, rank_scale: Floats, phy2log: Map, slot_load: Floats, rank_time: Floats
) -> None:
    """Place the replicas of one expert after the other on the ranks with the most free slots, ties to the least time.

    This finds places whenever there are any (the construction in the proof of Gale and Ryser), with much less regard
    for balance than `_pack_largest_first`. Arguments as there. O(P R).
    """
    num_ranks = rank_time.size
    used, taken = np.zeros(num_ranks, dtype=np.int64), np.empty(num_ranks, dtype=np.bool_)
    rank_time[:] = 0.0
    for expert in range(load.size):
        taken[:] = False
        for _ in range(count[expert]):
            best, most = -1, 0
            for rank in range(num_ranks):
                free = first_slot[rank + 1] - first_slot[rank] - used[rank]
                if not taken[rank] and (
                    free > most or (best >= 0 and free == most and rank_time[rank] < rank_time[best])
                ):
                    best, most = rank, free
            slot = first_slot[best] + used[best]
            taken[best] = True
            used[best] += 1
            phy2log[slot], slot_load[slot] = expert, load[expert] / count[expert]
            rank_time[best] += slot_load[slot] * rank_scale[best]


@njit(
    f"boolean({READ_FLOATS_2D}, int64[:, ::1], {READ_INTS}, {READ_FLOATS}, {READ_INTS}, int64, int64, float64,"
    " int64[:, ::1], int32[:, ::1], float64[:, ::1], float64[:, ::1])",
)
def place_layers(
    load: Floats,
    order: Ints,
    first_slot: Ints,
    rank_scale: Floats,
    room: Ints,
    least_replicas: int,
    max_replicas: int,
    offset: float,
    count: Ints,
    phy2log: Map,
    slot_load: Floats,
    rank_time: Floats,
) -> bool:
    """Count replicas and pack them, layer by layer; arguments as above with a leading layer dimension.

    Returns False if the replicas of an expert cannot be kept apart; that depends on the slots alone.
    """
    num_experts, num_slots = load.shape[1], phy2log.shape[1]
    num_redundant = num_slots - least_replicas * num_experts
    if num_redundant < 0 or (room.size > 0 and room[num_experts] < num_slots):
        return False
    for layer in range(load.shape[0]):
        num_split = count_replicas(
            load[layer], order[layer], num_redundant, least_replicas, max_replicas, offset, room, count[layer]
        )
        if not _pack_largest_first(
            load[layer], order[layer], num_split, count[layer], first_slot, rank_scale,
            phy2log[layer], slot_load[layer], rank_time[layer],
        ):  # fmt: skip
            _pack_by_room(
                load[layer], count[layer], first_slot, rank_scale, phy2log[layer], slot_load[layer], rank_time[layer]
            )
    return True
