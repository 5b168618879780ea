"""Descent on the busiest rank: exchange one expert, then two, then move a copy from one expert to another.

Knows arrays only. The idea of exchanging the busiest rank's experts is as old as local search for multiprocessor
scheduling; exchanging two at once is what makes the remaining differences fine enough to reach the mean.

Ranks may differ in speed: `rank_scale` [R] is the time of one token on each rank, and `rank_time` [R] its load times
that. With equal ranks the scale is 1 and times are loads. Moving d tokens from rank a to rank b changes their times by
-d scale_a and +d scale_b; both end at the same level when d = (time_a - time_b) / (scale_a + scale_b).
"""

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb_traces.jit import njit

MIN_RELATIVE_GAIN = 1e-9  # a step must lower the busiest rank by this much, or rounding could make it circle


@njit("boolean(int32[::1], int64, int64, int64)")
def _holds(phy2log: Map, first: int, last: int, expert: int) -> bool:
    """Whether one of the slots first..last-1 holds the expert."""
    for slot in range(first, last):  # noqa: SIM110  # numba compiles the loop, not any()
        if phy2log[slot] == expert:
            return True
    return False


@njit("void(int32[::1], float64[::1], float64[::1], float64[::1], int64, int64, int64, int64)")
def _exchange(
    phy2log: Map,
    slot_load: Floats,
    rank_time: Floats,
    rank_scale: Floats,
    slot: int,
    partner_slot: int,
    rank: int,
    partner: int,
) -> None:
    moved = slot_load[slot] - slot_load[partner_slot]
    rank_time[rank] -= moved * rank_scale[rank]
    rank_time[partner] += moved * rank_scale[partner]
    phy2log[slot], phy2log[partner_slot] = phy2log[partner_slot], phy2log[slot]
    slot_load[slot], slot_load[partner_slot] = slot_load[partner_slot], slot_load[slot]


@njit("float64(float64, float64, float64)")
def _above_level(excess: float, scale: float, partner_scale: float) -> float:
    """How far above their common level the later of two ranks ends when `excess` tokens too many are moved."""
    return max(excess * partner_scale, -excess * scale)


@njit(
    "UniTuple(int64, 2)(int32[::1], float64[::1], int64[::1], int64[::1], float64, float64, float64, int64, int64,"
    " float64, float64)"
)
def _best_single(
    phy2log: Map,
    slot_load: Floats,
    count: Ints,
    first_slot: Ints,
    scale: float,
    partner_scale: float,
    per_load: float,
    rank: int,
    partner: int,
    wanted: float,
    tolerance: float,
) -> tuple[int, int]:
    """Find the exchange of one expert that moves closest to `wanted` load; -1s if none.

    Close is what leaves both ranks less than `tolerance` above the level at which they would be equal.
    """
    near = tolerance * per_load  # the inner loop compares loads: no exchange further off can be close enough
    begin, end = first_slot[rank], first_slot[rank + 1]
    partner_begin, partner_end = first_slot[partner], first_slot[partner + 1]
    best = (-1, -1)
    for slot in range(begin, end):
        target = slot_load[slot] - wanted
        for partner_slot in range(partner_begin, partner_end):
            excess = target - slot_load[partner_slot]
            if abs(excess) < near:
                distance = _above_level(excess, scale, partner_scale)
                if distance >= tolerance:
                    continue
                expert, other = phy2log[slot], phy2log[partner_slot]
                if count[expert] > 1 and _holds(phy2log, partner_begin, partner_end, expert):
                    continue
                if count[other] > 1 and _holds(phy2log, begin, end, other):
                    continue
                tolerance = distance
                near = tolerance * per_load
                best = (slot, partner_slot)
    return best


@njit(
    "UniTuple(int64, 4)(int32[::1], float64[::1], int64[::1], int64[::1], float64, float64, float64, int64, int64,"
    " float64, float64, float64)"
)
def _best_double(
    phy2log: Map,
    slot_load: Floats,
    count: Ints,
    first_slot: Ints,
    scale: float,
    partner_scale: float,
    per_load: float,
    rank: int,
    partner: int,
    wanted: float,
    tolerance: float,
    enough: float,
) -> tuple[int, int, int, int]:
    """Find an exchange of two experts that moves as close to `wanted` load as `enough`, the first one in slot order.

    If there is none, the closest one that is closer than `tolerance`; -1s if there is none either. Closeness is as in
    `_best_single`.
    """
    near = tolerance * per_load
    begin, end = first_slot[rank], first_slot[rank + 1]
    partner_begin, partner_end = first_slot[partner], first_slot[partner + 1]
    best = (-1, -1, -1, -1)
    for slot in range(begin, end - 1):
        if count[phy2log[slot]] > 1 and _holds(phy2log, partner_begin, partner_end, phy2log[slot]):
            continue
        for slot2 in range(slot + 1, end):
            if count[phy2log[slot2]] > 1 and _holds(phy2log, partner_begin, partner_end, phy2log[slot2]):
                continue
            pair = slot_load[slot] + slot_load[slot2] - wanted
            for partner_slot in range(partner_begin, partner_end - 1):
                target = pair - slot_load[partner_slot]
                for partner_slot2 in range(partner_slot + 1, partner_end):
                    excess = target - slot_load[partner_slot2]
                    if abs(excess) < near:
                        distance = _above_level(excess, scale, partner_scale)
                        if distance >= tolerance:
                            continue
                        other, other2 = phy2log[partner_slot], phy2log[partner_slot2]
                        if count[other] > 1 and _holds(phy2log, begin, end, other):
                            continue
                        if count[other2] > 1 and _holds(phy2log, begin, end, other2):
                            continue
                        tolerance = distance
                        near = tolerance * per_load
                        best = (slot, slot2, partner_slot, partner_slot2)
                        if distance <= enough:
                            return best
    return best


@njit(
    "boolean(int32[::1], float64[::1], float64[::1], float64[::1], int64[::1], int64[::1], int64, int64, float64,"
    " int64)"
)
def _exchange_with_best_partner(
    phy2log: Map,
    slot_load: Floats,
    rank_time: Floats,
    rank_scale: Floats,
    count: Ints,
    first_slot: Ints,
    busiest: int,
    idlest: int,
    target: float,
    num_exchanged: int,
) -> bool:
    """Exchange one or two experts of the busiest rank so that it and its partner end lowest; False if nothing helps.

    The idlest rank is tried first and the search ends at the first exchange that brings both ranks to the target.
    """
    top, scale = rank_time[busiest], rank_scale[busiest]
    per_time = 1 / scale
    reached = top * (1 - MIN_RELATIVE_GAIN)
    partner_found = -1
    slot = slot2 = partner_slot = partner_slot2 = -1
    for i in range(-1, rank_time.size):
        partner = idlest if i < 0 else i
        partner_scale = rank_scale[partner]
        if scale == partner_scale:  # divisions are slow: equal ranks do without
            level = 0.5 * (top + rank_time[partner])
            per_load = per_time
        else:
            level = (top * partner_scale + rank_time[partner] * scale) / (scale + partner_scale)
            per_load = 1 / min(scale, partner_scale)
        if i == idlest or partner == busiest or level >= reached:
            continue
        wanted = (top - level) * per_time
        if num_exchanged == 1:
            found, found_partner = _best_single(
                phy2log,
                slot_load,
                count,
                first_slot,
                scale,
                partner_scale,
                per_load,
                busiest,
                partner,
                wanted,
                reached - level,
            )
            if found < 0:
                continue
            slot, partner_slot = found, found_partner
            moved = slot_load[slot] - slot_load[partner_slot]
        else:
            found, found2, found_partner, found_partner2 = _best_double(
                phy2log,
                slot_load,
                count,
                first_slot,
                scale,
                partner_scale,
                per_load,
                busiest,
                partner,
                wanted,
                reached - level,
                target - level,
            )
            if found < 0:
                continue
            slot, slot2, partner_slot, partner_slot2 = found, found2, found_partner, found_partner2
            moved = slot_load[slot] + slot_load[slot2] - slot_load[partner_slot] - slot_load[partner_slot2]
        partner_found = partner
        reached = level + _above_level(moved - wanted, scale, partner_scale)
        if reached <= target:
            break
    if partner_found < 0:
        return False
    _exchange(phy2log, slot_load, rank_time, rank_scale, slot, partner_slot, busiest, partner_found)
    if num_exchanged == 2:
        _exchange(phy2log, slot_load, rank_time, rank_scale, slot2, partner_slot2, busiest, partner_found)
    return True


@njit(
    "boolean(float64[::1], int32[::1], float64[::1], float64[::1], float64[::1], int64[::1], int64[::1], int64[::1],"
    " int64, int64, float64[::1], int64[::1], int64[::1])",
)
def _move_copy(
    load: Floats,
    phy2log: Map,
    slot_load: Floats,
    rank_time: Floats,
    rank_scale: Floats,
    count: Ints,
    first_slot: Ints,
    rank_of_slot: Ints,
    busiest: int,
    least_copies: int,
    trial: Floats,
    first_member: Ints,
    member: Ints,
) -> bool:
    """Turn a copy of some expert into one more copy of an expert of the busiest rank; False if nothing helps.

    Of all such moves the one is made that leaves the touched ranks lowest; every expert keeps `least_copies`.
    `trial` [R], `first_member` [E + 1] and `member` [P] are scratch; the latter two become the slots of each expert.
    """
    first_member[0] = 0
    for expert in range(load.size):
        first_member[expert + 1] = first_member[expert] + count[expert]
    for slot in range(phy2log.size - 1, -1, -1):
        first_member[phy2log[slot] + 1] -= 1
        member[first_member[phy2log[slot] + 1]] = slot
    for expert in range(load.size):  # undo the shift that the filling used up
        first_member[expert] = first_member[expert + 1]
    first_member[load.size] = phy2log.size
    reached = rank_time[busiest] * (1 - MIN_RELATIVE_GAIN)
    best_slot, best_taker = -1, -1
    for slot in range(phy2log.size):
        giver, rank = phy2log[slot], rank_of_slot[slot]
        if count[giver] <= least_copies or rank == busiest:
            continue
        giver_unit = load[giver] / (count[giver] - 1)
        for busy_slot in range(first_slot[busiest], first_slot[busiest + 1]):
            taker = phy2log[busy_slot]
            if taker == giver or _holds(phy2log, first_slot[rank], first_slot[rank + 1], taker):
                continue
            taker_unit = load[taker] / (count[taker] + 1)
            trial[rank] = rank_time[rank]
            for i in range(first_member[giver], first_member[giver + 1]):
                trial[rank_of_slot[member[i]]] = rank_time[rank_of_slot[member[i]]]
            for i in range(first_member[taker], first_member[taker + 1]):
                trial[rank_of_slot[member[i]]] = rank_time[rank_of_slot[member[i]]]
            for i in range(first_member[giver], first_member[giver + 1]):
                home = rank_of_slot[member[i]]
                trial[home] += (giver_unit - slot_load[member[i]]) * rank_scale[home]
            for i in range(first_member[taker], first_member[taker + 1]):
                home = rank_of_slot[member[i]]
                trial[home] += (taker_unit - slot_load[member[i]]) * rank_scale[home]
            trial[rank] += (taker_unit - giver_unit) * rank_scale[rank]
            top = trial[rank]
            for i in range(first_member[giver], first_member[giver + 1]):
                top = max(top, trial[rank_of_slot[member[i]]])
            for i in range(first_member[taker], first_member[taker + 1]):
                top = max(top, trial[rank_of_slot[member[i]]])
            if top < reached:
                reached, best_slot, best_taker = top, slot, taker
    if best_slot < 0:
        return False
    giver = phy2log[best_slot]
    count[giver] -= 1
    count[best_taker] += 1
    rank_time[rank_of_slot[best_slot]] -= slot_load[best_slot] * rank_scale[rank_of_slot[best_slot]]
    slot_load[best_slot] = 0.0
    phy2log[best_slot] = best_taker
    for slot in range(phy2log.size):
        expert = phy2log[slot]
        if expert == giver or expert == best_taker:  # noqa: SIM109  # numba has no `in` for mixed integers
            unit = load[expert] / count[expert]
            rank_time[rank_of_slot[slot]] += (unit - slot_load[slot]) * rank_scale[rank_of_slot[slot]]
            slot_load[slot] = unit
    return True


@njit(
    "void(Array(float64, 2, 'C', readonly=True), int64[::1], int64[::1], float64[::1], float64[::1], int64, int64,"
    " int64, int64[:, ::1], int32[:, ::1], float64[:, ::1], float64[:, ::1])",
)
def descend_layers(
    load: Floats,
    first_slot: Ints,
    rank_of_slot: Ints,
    rank_scale: Floats,
    target: Floats,
    least_copies: int,
    most_slots_for_doubles: int,
    most_slots_for_count_moves: int,
    count: Ints,
    phy2log: Map,
    slot_load: Floats,
    rank_time: Floats,
) -> None:
    """Lower the busiest rank of each layer until it meets the layer's target or no step helps.

    Steps, each tried only when the ones before fail: exchange one expert, exchange two, move a copy. The busiest rank's
    time falls with every step or another equally busy rank is left, so the descent ends. Ties go to the lowest id.

    Parameters
    ----------
    load
        [L, E]
    first_slot, rank_of_slot, rank_scale
        [R + 1], [P], [R]
    target
        [L] rank time at which a layer is good enough.
    least_copies
        No move of a copy leaves an expert with fewer.
    most_slots_for_doubles, most_slots_for_count_moves
        Exchanges of two experts and moves of copies are tried on ranks with at most so many slots: with more, single
        exchanges are fine enough and these are slow.
    count, phy2log, slot_load, rank_time
        [L, E], [L, P], [L, P], [L, R] in and out; every slot holds an expert.
    """
    num_ranks = rank_time.shape[1]
    trial = np.empty(num_ranks, dtype=np.float64)
    first_member = np.empty(load.shape[1] + 1, dtype=np.int64)
    member = np.empty(phy2log.shape[1], dtype=np.int64)
    layer_load = np.empty(load.shape[1], dtype=np.float64)
    for layer in range(load.shape[0]):
        layer_load[:] = load[layer]
        ranks, slots, experts = rank_time[layer], slot_load[layer], phy2log[layer]
        helped = True
        while helped:
            busiest = idlest = 0
            for rank in range(1, num_ranks):
                if ranks[rank] > ranks[busiest]:
                    busiest = rank
                if ranks[rank] < ranks[idlest]:
                    idlest = rank
            if ranks[busiest] <= target[layer]:
                break
            num_held = first_slot[busiest + 1] - first_slot[busiest]
            helped = _exchange_with_best_partner(
                experts, slots, ranks, rank_scale, count[layer], first_slot, busiest, idlest, target[layer], 1
            )
            if not helped and num_held <= most_slots_for_doubles:
                helped = _exchange_with_best_partner(
                    experts, slots, ranks, rank_scale, count[layer], first_slot, busiest, idlest, target[layer], 2
                )
            if not helped and num_held <= most_slots_for_count_moves:
                helped = _move_copy(
                    layer_load, experts, slots, ranks, rank_scale, count[layer], first_slot, rank_of_slot, busiest,
                    least_copies, trial, first_member, member,
                )  # fmt: skip
