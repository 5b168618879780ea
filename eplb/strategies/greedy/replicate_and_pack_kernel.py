"""Replica counts and a first packing: the two greedy steps before any search. Knows arrays only.

Sources: replica counts as DeepSeek's EPLB chooses them (argmax of load / count), here with a heap and a cap of one copy
a rank; packing by the longest-processing-time rule (Graham 1969) with a slot limit a rank; which counts can be kept
apart on ranks of unequal slots: Gale 1957 and Ryser 1957.

`rank_scale` [R] is the time of one token on each rank and `rank_time` [R] its load times that; with equal ranks the
scale is 1 and times are loads.
"""

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints
from eplb_traces.jit import njit


@njit("void(float64[::1], int64[::1], int64, float64, int64)")
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


@njit("void(float64[::1], int64[::1], int64, float64, int64)")
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


@njit("boolean(int64[::1], int64[::1], int64[::1])")
def _can_be_kept_apart(count: Ints, room: Ints, with_count: Ints) -> bool:
    """Whether ranks exist for all copies with no expert twice on a rank: `room[k]` holds the k most copied experts.

    `with_count` is scratch, longer than any count.
    """
    with_count[:] = 0
    for expert in range(count.size):
        with_count[count[expert]] += 1
    num_experts = num_copies = 0
    for copies in range(with_count.size - 1, 0, -1):
        for _ in range(with_count[copies]):
            num_experts += 1
            num_copies += copies
            if num_copies > room[num_experts]:
                return False
    return True


@njit(
    "int64(float64[::1], int64[::1], int64, int64, int64, float64, int64[::1], int64[::1], int64[::1], float64[::1],"
    " int64[::1])"
)
def count_replicas(
    load: Floats,
    order: Ints,
    num_copies: int,
    least_copies: int,
    max_copies: int,
    offset: float,
    room: Ints,
    count: Ints,
    with_count: Ints,
    heap_key: Floats,
    heap_expert: Ints,
) -> int:
    """Give `num_copies` redundant copies, each to the expert with the most load / (copies + offset); ties to lowest id.

    Offset 0 minimises the largest load a copy (an exchange argument: a copy given elsewhere leaves this maximum as it
    was); 0.5, the divisors of Webster's apportionment, keeps copies near their mean load, with fewer small ones. With
    unequal ranks an expert gets no copy that could not be kept apart from the others; as the counts that can are a
    polymatroid, one that is refused once is refused for good, the rest still find a place, and the largest load a copy
    is still least. O(E + num_copies log num_copies) for loads that are sorted already, times E with unequal ranks.

    Parameters
    ----------
    load, order
        [E] load of each expert; experts by descending load.
    num_copies, least_copies, max_copies
        Copies to give beyond the `least_copies`, 1 or 2, of each expert; most copies of one expert.
    offset
        At least 0: what is added to the copies of an expert when its load is divided by them.
    room
        [E + 1] most copies that k experts can have together, one a rank; empty where ranks have equal slots.
    count
        [E] out: copies of each expert.
    with_count, heap_key, heap_expert
        [R + 2], [E], [E] scratch.

    Returns
    -------
    int
        How many experts may have more than one copy; they are the first ones of `order`, ties aside.
    """
    count[:] = least_copies
    num_split = 0
    if least_copies > 1:
        num_split = load.size
        for i in range(num_split):
            key = 1.0 if max_copies <= least_copies else -load[order[i]] / (least_copies + offset)
            _sift_up(heap_key, heap_expert, i, key, order[i])
    while num_copies > 0:
        fresh = num_split < load.size
        if fresh and num_split > 0:
            expert = order[num_split]
            key = -load[expert] / (1 + offset)
            fresh = key < heap_key[0] or (key == heap_key[0] and expert < heap_expert[0])
        expert = order[num_split] if fresh else heap_expert[0]
        count[expert] += 1
        num_copies -= 1
        # A positive key marks an expert that has all the copies it may have: behind every other.
        key = 1.0 if count[expert] >= max_copies else -load[expert] / (count[expert] + offset)
        if room.size > 0 and not _can_be_kept_apart(count, room, with_count):
            count[expert] -= 1
            num_copies += 1
            key = 1.0
        if fresh:
            _sift_up(heap_key, heap_expert, num_split, key, expert)
            num_split += 1
        else:
            _sift_down(heap_key, heap_expert, num_split, key, expert)
    return num_split


@njit(
    "boolean(int64, float64, int64, int64[::1], float64[::1], int32[::1], float64[::1], int64[::1], float64[::1])",
)
def place_by_exchange(
    expert: int,
    load: float,
    num_ranks: int,
    first_slot: Ints,
    rank_scale: Floats,
    phy2log: NDArray[np.int32],
    slot_load: Floats,
    used: Ints,
    rank_time: Floats,
) -> bool:
    """Place a copy when every rank with a free slot holds the expert: another rank takes it and gives an expert away.

    With equal slots the exchange exists: a full rank without the expert holds one more distinct expert than the rank
    with the free slot holds beside this one.
    """
    free = 0
    while free < num_ranks and used[free] == first_slot[free + 1] - first_slot[free]:
        free += 1
    if free == num_ranks:
        return False
    for rank in range(num_ranks):
        holds = False
        for slot in range(first_slot[rank], first_slot[rank] + used[rank]):
            holds = holds or phy2log[slot] == expert
        if holds:
            continue
        for slot in range(first_slot[rank], first_slot[rank] + used[rank]):
            other = phy2log[slot]
            doubled = False
            for held in range(first_slot[free], first_slot[free] + used[free]):
                doubled = doubled or phy2log[held] == other
            if doubled:
                continue
            target = first_slot[free] + used[free]
            phy2log[target] = other
            slot_load[target] = slot_load[slot]
            rank_time[free] += slot_load[slot] * rank_scale[free]
            rank_time[rank] += (load - slot_load[slot]) * rank_scale[rank]
            phy2log[slot] = expert
            slot_load[slot] = load
            used[free] += 1
            return True
    return False


@njit(
    "boolean(float64[::1], int64[::1], int64, int64[::1], int64[::1], float64[::1], int64[::1], int64[::1],"
    " float64[::1], int64[::1], int32[::1], float64[::1], float64[::1])",
)
def pack_largest_first(
    load: Floats,
    order: Ints,
    num_split: int,
    count: Ints,
    first_slot: Ints,
    rank_scale: Floats,
    split: Ints,
    used: Ints,
    heap_key: Floats,
    heap_rank: Ints,
    phy2log: NDArray[np.int32],
    slot_load: Floats,
    rank_time: Floats,
) -> bool:
    """Place copies by descending load, each on the rank with the least time that has a free slot and lacks the expert.

    All copies of an expert are placed at once, on as many different ranks. Ties go to the lowest id. O(P log R).

    Parameters
    ----------
    load, order, count
        [E] load, experts by descending load, copies.
    num_split
        Experts at the front of `order` that may have more than one copy.
    first_slot, rank_scale
        [R + 1] first slot of each rank, then P; [R].
    split, used, heap_key, heap_rank
        [E], [R], [R], [R] scratch.
    phy2log, slot_load, rank_time
        [P], [P], [R] out: expert and load of each slot, time of each rank.

    Returns
    -------
    bool
        False if some copy found no place; the outputs are then unfinished.
    """
    num_ranks = rank_time.size
    rank_time[:] = 0.0
    used[:] = 0
    for i in range(num_split):  # insertion sort of the split experts by load a copy, descending, ties by id
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
    num_open = num_ranks
    for rank in range(num_ranks):
        heap_key[rank] = 0.0
        heap_rank[rank] = rank
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
        copies = count[expert]
        value = load[expert] / copies
        num_taken = min(copies, num_open)
        for _ in range(num_taken):  # the ranks with the least time leave the heap, their ids kept in its freed tail
            rank = heap_rank[0]
            num_open -= 1
            _sift_down(heap_key, heap_rank, num_open, heap_key[num_open], heap_rank[num_open])
            heap_rank[num_open] = rank
        num_full = 0
        for _ in range(num_taken):
            rank = heap_rank[num_open + num_full]
            slot = first_slot[rank] + used[rank]
            phy2log[slot] = expert
            slot_load[slot] = value
            used[rank] += 1
            rank_time[rank] += value * rank_scale[rank]
            if first_slot[rank + 1] - first_slot[rank] == used[rank]:
                num_full += 1
                continue
            _sift_up(heap_key, heap_rank, num_open, rank_time[rank], rank)
            num_open += 1
        if num_taken < copies:
            for _ in range(copies - num_taken):
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


@njit(
    "void(float64[::1], int64[::1], int64[::1], float64[::1], boolean[::1], int64[::1], int32[::1], float64[::1],"
    " float64[::1])"
)
def pack_by_room(
    load: Floats,
    count: Ints,
    first_slot: Ints,
    rank_scale: Floats,
    taken: NDArray[np.bool_],
    used: Ints,
    phy2log: NDArray[np.int32],
    slot_load: Floats,
    rank_time: Floats,
) -> None:
    """Place the copies of one expert after the other on the ranks with the most free slots, ties to the least time.

    This finds places whenever there are any (the construction in the proof of Gale and Ryser), with much less regard
    for balance than `pack_largest_first`. Arguments as there; `taken` [R] is scratch. O(P R).
    """
    num_ranks = rank_time.size
    rank_time[:] = 0.0
    used[:] = 0
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
            phy2log[slot] = expert
            slot_load[slot] = load[expert] / count[expert]
            rank_time[best] += slot_load[slot] * rank_scale[best]


@njit(
    "boolean(Array(float64, 2, 'C', readonly=True), int64[:, ::1], int64[::1], float64[::1], int64[::1], int64, int64,"
    " float64, int64[:, ::1], int32[:, ::1], float64[:, ::1], float64[:, ::1])",
)
def place_layers(
    load: Floats,
    order: Ints,
    first_slot: Ints,
    rank_scale: Floats,
    room: Ints,
    least_copies: int,
    max_copies: int,
    offset: float,
    count: Ints,
    phy2log: NDArray[np.int32],
    slot_load: Floats,
    rank_time: Floats,
) -> bool:
    """Count replicas and pack them, layer by layer; arguments as above with a leading layer dimension.

    Returns False if the copies cannot be kept apart; that depends on the slots alone.
    """
    num_layers, num_experts = load.shape
    num_slots, num_ranks = phy2log.shape[1], rank_time.shape[1]
    if num_slots < least_copies * num_experts or (room.size > 0 and room[num_experts] < num_slots):
        return False
    key = np.empty(max(num_experts, num_ranks), dtype=np.float64)
    item = np.empty(max(num_experts, num_ranks), dtype=np.int64)
    split = np.empty(num_experts, dtype=np.int64)
    used = np.empty(num_ranks, dtype=np.int64)
    with_count = np.empty(num_ranks + 2, dtype=np.int64)
    taken = np.empty(num_ranks, dtype=np.bool_)
    layer_load = np.empty(num_experts, dtype=np.float64)
    for layer in range(num_layers):
        layer_load[:] = load[layer]
        num_split = count_replicas(
            layer_load, order[layer], num_slots - least_copies * num_experts, least_copies, max_copies, offset, room,
            count[layer], with_count, key, item,
        )  # fmt: skip
        if not pack_largest_first(
            layer_load, order[layer], num_split, count[layer], first_slot, rank_scale, split, used, key, item,
            phy2log[layer], slot_load[layer], rank_time[layer],
        ):  # fmt: skip
            pack_by_room(
                layer_load, count[layer], first_slot, rank_scale, taken, used,
                phy2log[layer], slot_load[layer], rank_time[layer],
            )  # fmt: skip
    return True
