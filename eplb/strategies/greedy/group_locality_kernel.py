"""Exchange copies while a soft maximum of rank times, plus a price on each copy away from home, falls.

Knows arrays only. The soft maximum of times t at sharpness b is log(sum(exp(b t))) / b, at most log(R) / b above the
plain one. It is smooth: taking load off one of many equally busy ranks counts, as it does not under the plain maximum.
"""

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb_traces.jit import njit

MIN_GAIN = 1e-9


@njit("uint64(uint64)")
def _next_random(state: int) -> int:
    """Marsaglia's xorshift64."""
    state ^= state << np.uint64(13)
    state ^= state >> np.uint64(7)
    return state ^ (state << np.uint64(17))


@njit("boolean(int32[::1], int64, int64, int64)")
def _holds(phy2log: Map, first: int, last: int, expert: int) -> bool:
    """Whether one of the slots first..last-1 holds the expert."""
    for slot in range(first, last):  # noqa: SIM110  # numba compiles the loop, not any()
        if phy2log[slot] == expert:
            return True
    return False


@njit("int64(int32[::1], int64[::1], float64[::1], int64, float64, float64[::1], int64[::1], int64)")
def _add_to_holders(
    phy2log: Map,
    rank_of_slot: Ints,
    rank_scale: Floats,
    expert: int,
    more: float,
    change: Floats,
    touched: Ints,
    num_touched: int,
) -> int:
    """Note that every copy of the expert takes `more`; returns the number of touched ranks."""
    for slot in range(phy2log.size):
        if phy2log[slot] == expert:
            rank = rank_of_slot[slot]
            change[rank] += more * rank_scale[rank]
            touched[num_touched] = rank
            num_touched += 1
    return num_touched


@njit(
    "void(float64[::1], int64[::1], int64[::1], int64[::1], int64[::1], float64[::1], float64, float64, int64, uint64,"
    " int64[::1], int32[::1], float64[::1])"
)
def _descend(
    load: Floats,
    home_of_expert: Ints,
    first_slot: Ints,
    rank_of_slot: Ints,
    node_of_rank: Ints,
    rank_scale: Floats,
    price: float,
    sharpness: float,
    num_tries: int,
    random: int,
    count: Ints,
    phy2log: Map,
    time: Floats,
) -> None:
    """Try exchanges of two copies and, every third turn, to give a slot of a replicated expert to another expert.

    Every second turn of each kind takes load off the busiest rank. A try is kept if soft maximum plus price falls.
    """
    num_ranks, num_slots = time.size, phy2log.size
    change, touched = np.zeros(num_ranks), np.empty(2 * num_slots, dtype=np.int64)
    busiest = np.argmax(time)
    weight = np.exp(sharpness * (time - time[busiest]))
    total, offset = weight.sum(), time[busiest]
    for turn in range(num_tries):
        random = _next_random(random)
        if turn & 1 == 0:
            width = np.uint64(first_slot[busiest + 1] - first_slot[busiest])
            slot = first_slot[busiest] + np.int64((random >> np.uint64(4)) % width)
        else:
            slot = np.int64((random >> np.uint64(4)) % np.uint64(num_slots))
        other_slot = np.int64((random >> np.uint64(34)) % np.uint64(num_slots))
        rank, other_rank = rank_of_slot[slot], rank_of_slot[other_slot]
        expert, other = phy2log[slot], phy2log[other_slot]
        if rank == other_rank or expert == other:
            continue
        if _holds(phy2log, first_slot[other_rank], first_slot[other_rank + 1], expert):
            continue
        gives_slot = turn % 3 == 0  # `other` gives its slot to one more copy of `expert`
        node, other_node = node_of_rank[rank], node_of_rank[other_rank]
        home, other_home = home_of_expert[expert], home_of_expert[other]
        away = np.int64(other_node != home) - np.int64(other_node != other_home)
        num_touched = 0
        if gives_slot:
            if count[other] == 1 or count[expert] == num_ranks:
                continue
            unit, fewer = load[expert] / (count[expert] + 1), load[other] / count[other]
            num_touched = _add_to_holders(
                phy2log, rank_of_slot, rank_scale, expert, unit - load[expert] / count[expert], change, touched, 0
            )
            num_touched = _add_to_holders(
                phy2log, rank_of_slot, rank_scale, other, load[other] / (count[other] - 1) - fewer, change, touched,
                num_touched,
            )  # fmt: skip
            change[other_rank] += (unit - load[other] / (count[other] - 1)) * rank_scale[other_rank]
        else:
            if _holds(phy2log, first_slot[rank], first_slot[rank + 1], other):
                continue
            moved = load[expert] / count[expert] - load[other] / count[other]
            away += np.int64(node != other_home) - np.int64(node != home)
            if -(weight[rank] if moved > 0 else weight[other_rank]) >= total * np.expm1(-sharpness * price * away):
                continue  # not even if that rank became idle
            change[rank] = -moved * rank_scale[rank]
            change[other_rank] = moved * rank_scale[other_rank]
            touched[0], touched[1], num_touched = rank, other_rank, 2
        # A rank that holds both experts is in the list twice; its change counts once.
        distinct = 0
        for i in range(num_touched):
            seen = False
            for j in range(distinct):
                seen = seen or touched[j] == touched[i]
            if not seen:
                touched[distinct] = touched[i]
                distinct += 1
        growth = 0.0
        for i in range(distinct):
            touched_rank = touched[i]
            growth += np.exp(sharpness * (time[touched_rank] + change[touched_rank] - offset)) - weight[touched_rank]
        kept = growth < total * np.expm1(-sharpness * (price * away + MIN_GAIN))
        if kept:
            for i in range(distinct):
                time[touched[i]] += change[touched[i]]
            phy2log[other_slot] = expert
            if gives_slot:
                count[expert] += 1
                count[other] -= 1
            else:
                phy2log[slot] = other
            busiest = np.argmax(time)
            offset = time[busiest]
            weight[:] = np.exp(sharpness * (time - offset))
            total = weight.sum()
        for i in range(distinct):
            change[touched[i]] = 0.0


@njit(
    "void(float64[:, ::1], int64[:, ::1], int64[::1], int64[::1], int64[::1], float64[::1],"
    " float64, float64[::1], int64, uint64, int64, int64[:, ::1], int32[:, ::1])"
)
def descend_priced_layers(
    load: Floats,
    home_of_expert: Ints,
    first_slot: Ints,
    rank_of_slot: Ints,
    node_of_rank: Ints,
    rank_scale: Floats,
    price: float,
    sharpness: Floats,
    num_tries: int,
    seed: int,
    first_layer: int,
    count: Ints,
    phy2log: Map,
) -> None:
    """Improve every layer's map in place.

    Parameters
    ----------
    load
        [L, E], each layer scaled so that the mean rank time is 1.
    home_of_expert
        [L, E] node.
    first_slot, rank_of_slot, node_of_rank, rank_scale
        [R + 1] first slot of each rank, then P; [P]; [R]; [R] 1 / relative speed.
    price
        What one copy away from home costs, in mean rank times.
    sharpness
        One descent for each.
    num_tries
        Moves tried in each descent.
    seed, first_layer
        Layer l of this call draws its random numbers from seed and first_layer + l.
    count, phy2log
        [L, E], [L, P] in and out; no expert twice on a rank.
    """
    time = np.empty(rank_scale.size)
    for layer in range(load.shape[0]):
        time[:] = 0.0
        for slot in range(rank_of_slot.size):
            expert, rank = phy2log[layer, slot], rank_of_slot[slot]
            time[rank] += load[layer, expert] / count[layer, expert] * rank_scale[rank]
        random = np.uint64(seed) * np.uint64(2654435761) + np.uint64(first_layer + layer + 1) * np.uint64(
            0x9E3779B97F4A7C15
        )
        random = random | np.uint64(1)
        for sharp in sharpness:
            _descend(
                load[layer], home_of_expert[layer], first_slot, rank_of_slot, node_of_rank, rank_scale, price, sharp,
                num_tries, random, count[layer], phy2log[layer], time,
            )  # fmt: skip
            random = _next_random(random)
