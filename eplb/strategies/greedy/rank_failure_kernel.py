"""Packs replicas so that the load of a failed rank or node is spread over many surviving ranks.

Packing by load alone puts the two replicas of an expert on the two least loaded ranks, again and again the same pairs,
so that a failed rank leaves its whole load to its partner. Here a replica goes where the rank would be least busy after
the worst single failure. Mirrored disks are scattered in the same way (chained and declustered mirroring).
"""

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import READ_FLOATS_2D, READ_INTS
from eplb.strategies.greedy.replicate_and_pack_kernel import place_by_exchange
from eplb_traces.jit import helper, njit


@helper
def _pack(
    unit: Floats, count: Ints, first_slot: Ints, rank_scale: Floats, domain: Ints, inherited: Floats, used: Ints,
    holder: Ints, phy2log: Map, slot_load: Floats, rank_time: Floats,
) -> bool:  # fmt: skip
    """Place the experts by falling load of a replica; False if some replica finds no rank.

    The first replica goes to the rank with the least time; each further one to a rank, for the second one in another
    failure domain if there is one, where time plus the most that the failure of a holder's domain adds is least. Ties
    go to the lowest id. `inherited` [D, R] (time that a rank takes over from a domain), `used` [R] and `holder` [R] are
    scratch.
    """
    num_ranks = rank_time.size
    inherited[:], used[:], rank_time[:] = 0.0, 0, 0.0
    for expert in np.argsort(-unit, kind="mergesort"):
        value = unit[expert]
        more = value / (count[expert] - 1)  # each other replica takes this much more when one of them is lost
        num_held = 0
        while num_held < count[expert]:
            best, least, best_apart = -1, np.inf, False
            for rank in range(num_ranks):
                if used[rank] == first_slot[rank + 1] - first_slot[rank]:
                    continue
                apart, held, most = num_held != 1, False, 0.0
                for i in range(num_held):
                    held = held or holder[i] == rank
                    apart = apart or domain[holder[i]] != domain[rank]
                    most = max(most, inherited[domain[holder[i]], rank] + more)
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
                if domain[holder[i]] != domain[holder[j]]:
                    inherited[domain[holder[i]], holder[j]] += more
        for _ in range(count[expert] - num_held):
            if not place_by_exchange(
                expert, value, num_ranks, first_slot, rank_scale, phy2log, slot_load, used, rank_time
            ):
                return False
    return True


@njit(
    f"void({READ_FLOATS_2D}, {READ_INTS}, float64[::1], {READ_INTS}, int64[:, ::1], int32[:, ::1], float64[:, ::1],"
    " float64[:, ::1])"
)
def scatter_layers(
    load: Floats, first_slot: Ints, rank_scale: Floats, domain: Ints, count: Ints, phy2log: Map, slot_load: Floats,
    rank_time: Floats,
) -> None:  # fmt: skip
    """Pack layers anew by their counts; a layer for which that finds no places keeps the packing it has. O(P R X).

    Parameters
    ----------
    load
        [L, E]
    first_slot, rank_scale, domain
        [R + 1], [R], [R]; ranks of one failure domain, a rank or a node, are lost together.
    count
        [L, E] replicas, two or more of each expert, X at most.
    phy2log, slot_load, rank_time
        [L, P], [L, P], [L, R] in and out.
    """
    num_ranks = rank_scale.size
    inherited = np.empty((domain.max() + 1, num_ranks))
    used, holder = np.empty(num_ranks, np.int64), np.empty(num_ranks, np.int64)
    experts, slots, times = np.empty(phy2log.shape[1], np.int32), np.empty(phy2log.shape[1]), np.empty(num_ranks)
    for layer in range(load.shape[0]):
        if _pack(
            load[layer] / count[layer], count[layer], first_slot, rank_scale, domain, inherited, used, holder,
            experts, slots, times,
        ):  # fmt: skip
            phy2log[layer], slot_load[layer], rank_time[layer] = experts, slots, times
