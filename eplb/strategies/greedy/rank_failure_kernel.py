"""A packing for machines that may lose a rank or a node: the copies that a unit holds have their twins all over.

Packing by load alone puts the two copies of an expert on the two least loaded ranks, again and again the same pairs, so
that a lost rank leaves its whole load to its partner. Here a copy goes where the rank would be least busy after the
worst single loss. The idea of spreading twins is chained and declustered mirroring of disks. Knows arrays only.
"""

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints
from eplb.strategies.greedy.replicate_and_pack_kernel import place_by_exchange
from eplb_traces.jit import njit


@njit(
    "boolean(float64[::1], int64[::1], int64[::1], float64[::1], int64[::1], float64[:, ::1], int64[::1], int64[::1],"
    " int32[::1], float64[::1], float64[::1])"
)
def _pack(
    unit_load: Floats,
    count: Ints,
    first_slot: Ints,
    rank_scale: Floats,
    unit_of_rank: Ints,
    extra: Floats,
    used: Ints,
    holder: Ints,
    phy2log: NDArray[np.int32],
    slot_load: Floats,
    rank_time: Floats,
) -> bool:
    """Place the experts by falling load a copy; False if some copy finds no rank.

    The first copy goes to the rank with the least time; each further one to a rank, for the second one of another unit
    if there is one, where time plus the most that the loss of one of its twins' units adds is least. Ties go to the
    lowest id. `extra` [U, R], `used` [R] and `holder` [R] are scratch.
    """
    num_ranks = rank_time.size
    extra[:] = 0.0
    used[:] = 0
    rank_time[:] = 0.0
    for expert in np.argsort(-unit_load, kind="mergesort"):
        copies, value = count[expert], unit_load[expert]
        more = value / (copies - 1)  # each twin takes this much more when one of the copies is lost
        num_held = 0
        while num_held < copies:
            best, least, best_apart = -1, np.inf, False
            for rank in range(num_ranks):
                if used[rank] == first_slot[rank + 1] - first_slot[rank]:
                    continue
                apart, held, most = num_held != 1, False, 0.0
                for i in range(num_held):
                    held = held or holder[i] == rank
                    apart = apart or unit_of_rank[holder[i]] != unit_of_rank[rank]
                    most = max(most, extra[unit_of_rank[holder[i]], rank] + more)
                time = rank_time[rank] + (value + most) * rank_scale[rank]
                if not held and (apart > best_apart or (apart == best_apart and time < least)):
                    best, least, best_apart = rank, time, apart
            if best < 0:
                break
            slot = first_slot[best] + used[best]
            phy2log[slot], slot_load[slot] = expert, value
            used[best] += 1
            rank_time[best] += value * rank_scale[best]
            holder[num_held] = best
            num_held += 1
        for i in range(num_held):
            for j in range(num_held):
                if unit_of_rank[holder[i]] != unit_of_rank[holder[j]]:
                    extra[unit_of_rank[holder[i]], holder[j]] += more
        for _ in range(copies - num_held):
            if not place_by_exchange(
                expert, value, num_ranks, first_slot, rank_scale, phy2log, slot_load, used, rank_time
            ):
                return False
    return True


@njit(
    "void(Array(float64, 2, 'C', readonly=True), int64[::1], float64[::1], int64[::1], int64[:, ::1], int32[:, ::1],"
    " float64[:, ::1], float64[:, ::1])"
)
def decluster_layers(
    load: Floats,
    first_slot: Ints,
    rank_scale: Floats,
    unit_of_rank: Ints,
    count: Ints,
    phy2log: NDArray[np.int32],
    slot_load: Floats,
    rank_time: Floats,
) -> None:
    """Pack layers anew by their counts; a layer for which that finds no places keeps the packing it has. O(P R X).

    Parameters
    ----------
    load
        [L, E]
    first_slot, rank_scale, unit_of_rank
        [R + 1], [R], [R]
    count
        [L, E] copies, two or more of each expert, X at most.
    phy2log, slot_load, rank_time
        [L, P], [L, P], [L, R] in and out.
    """
    num_ranks = rank_scale.size
    extra = np.empty((unit_of_rank.max() + 1, num_ranks), dtype=np.float64)
    used = np.empty(num_ranks, dtype=np.int64)
    holder = np.empty(num_ranks, dtype=np.int64)
    experts = np.empty(phy2log.shape[1], dtype=np.int32)
    slots = np.empty(phy2log.shape[1], dtype=np.float64)
    times = np.empty(num_ranks, dtype=np.float64)
    for layer in range(load.shape[0]):
        unit_load = load[layer] / count[layer]
        if _pack(
            unit_load, count[layer], first_slot, rank_scale, unit_of_rank, extra, used, holder, experts, slots, times
        ):
            phy2log[layer], slot_load[layer], rank_time[layer] = experts, slots, times
