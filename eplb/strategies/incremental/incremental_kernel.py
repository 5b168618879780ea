"""Bring every rank of a layer under a limit with few fetched copies, starting from the placement that is live.

Knows arrays only. Loads are scaled so that the mean rank load is 1. Expert E stands for "nothing": a hole is a slot
that holds expert E, which has no load and is at home everywhere.

The price of a placement is the number of (rank, expert) pairs that the old placement lacks: what ranks must fetch.
Two steps exist: exchange the copies of two slots on two ranks (two fetches), or retarget a slot to be a copy of another
expert (one fetch, and it cools every rank with that expert). On what was moved before they may cost less. The search
takes the step that removes the most excess per fetch. A layer's state, in the order in which kernels take it:

    phy2log       [P]        expert of each slot             held       [E + 1, R]  copies of an expert on a rank
    rank_of_slot  [P]                                        head       [E + 1]     first slot of each expert's list
    unit          [E + 1]    load of one copy                following  [P]         next slot of the same list, or -1
    count         [E + 1]    copies                          rank_load  [R]

`home` is `held` of the old placement; `changed` collects the ranks whose load or experts a step changes.
"""

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb_traces.jit import njit

Counts = NDArray[np.int16]
Flags = NDArray[np.bool_]

ROUNDING = 1e-11  # a rank is over its limit when it is so by more than this part of the mean rank load
FREE_RATE = 2.0  # steps that cost no fetch, or save one, are compared as if they cost half of one
MANY_SLOTS, MOST_MOVED, MOST_OVER = 1024, 0.25, 0.15  # with more slots: shares of slots, of load, to give up for
SLACK_VALUE = 0.02  # worth of room left on the rank that a step fills, in excess per fetch: decides between like steps

_STATE = "int32[::1], int64[::1], float64[::1], int64[::1], int16[:, ::1], int32[::1], int32[::1], float64[::1]"
_FOUND = "Tuple((float64, int64, int64))"  # score, slot, and the other slot or the expert
_F = "float64[::1]"


@njit("float64(float64, float64, float64)")
def _badness(load: float, limit: float, over_price: float) -> float:
    """Excess of a rank, plus `over_price` for being over at all: it makes finishing a rank better than easing two."""
    return load - limit + over_price if load > limit + ROUNDING else 0.0


@njit("float64(int64)")
def _rate(price: int) -> float:
    """One over the fetches that a step costs, which are two at most."""
    return 1.0 if price == 1 else 0.5 if price == 2 else FREE_RATE


@njit("int64(int16[:, ::1], int16[:, ::1], int64, int64)")
def _arrival(held: Counts, home: Counts, expert: int, rank: int) -> int:
    """Fetches that one more copy of the expert on the rank costs."""
    return 1 if home[expert, rank] == 0 and held[expert, rank] == 0 else 0


@njit("int64(int16[:, ::1], int16[:, ::1], int64, int64)")
def _departure(held: Counts, home: Counts, expert: int, rank: int) -> int:
    """Fetches saved when a copy of the expert leaves the rank."""
    return 1 if home[expert, rank] == 0 and held[expert, rank] == 1 else 0


@njit("void(int32[::1], int32[::1], int64, int64)")
def _link(head: Map, following: Map, expert: int, slot: int) -> None:
    """Put a slot into the list of its expert's slots; the list of nothing is empty."""
    if expert < head.size - 1:
        following[slot] = head[expert]
        head[expert] = slot


@njit("void(int32[::1], int32[::1], int64, int64)")
def _unlink(head: Map, following: Map, expert: int, slot: int) -> None:
    """Take a slot out of the list of its expert's slots."""
    at = head[expert]
    if at == slot:
        head[expert] = following[slot]
    elif at >= 0:
        while following[at] != slot:
            at = following[at]
        following[at] = following[slot]


@njit(f"void({_STATE}, float64[::1])")
def _count_up(
    phy2log: Map, rank_of_slot: Ints, unit: Floats, count: Ints, held: Counts, head: Map, following: Map,
    rank_load: Floats, load: Floats,
) -> None:  # fmt: skip
    """Derive the rest of a layer's state from its map and its loads [E + 1]."""
    nothing = load.size - 1
    count[:], held[:], head[:], rank_load[:] = 0, 0, -1, 0.0
    for slot in range(phy2log.size - 1, -1, -1):
        count[phy2log[slot]] += 1
        held[phy2log[slot], rank_of_slot[slot]] += 1
        _link(head, following, phy2log[slot], slot)
    held[nothing] = 0  # a rank may hold nothing any number of times
    count[nothing] = phy2log.size + 2  # and nothing can always give a slot away
    unit[:] = load / np.maximum(1, count)
    for slot in range(phy2log.size):
        rank_load[rank_of_slot[slot]] += unit[phy2log[slot]]


@njit(f"void({_STATE}, int64, int64, boolean[::1])")
def _exchange(
    phy2log: Map, rank_of_slot: Ints, unit: Floats, count: Ints, held: Counts, head: Map, following: Map,
    rank_load: Floats, slot: int, other_slot: int, changed: Flags,
) -> None:  # fmt: skip
    """Exchange the experts of two slots of two ranks."""
    for here, there in ((slot, other_slot), (other_slot, slot)):
        expert, rank = phy2log[here], rank_of_slot[here]
        rank_load[rank] += unit[phy2log[there]] - unit[expert]
        changed[rank] = True
        if expert < count.size - 1:
            held[expert, rank] -= 1
            held[expert, rank_of_slot[there]] += 1
        _unlink(head, following, expert, here)
    phy2log[slot], phy2log[other_slot] = phy2log[other_slot], phy2log[slot]
    _link(head, following, phy2log[slot], slot)
    _link(head, following, phy2log[other_slot], other_slot)


@njit(f"void({_STATE}, float64[::1], int64, int64, boolean[::1])")
def _retarget(
    phy2log: Map, rank_of_slot: Ints, unit: Floats, count: Ints, held: Counts, head: Map, following: Map,
    rank_load: Floats, load: Floats, slot: int, taker: int, changed: Flags,
) -> None:  # fmt: skip
    """Turn a slot into a copy of another expert; both split their load anew."""
    giver, rank = phy2log[slot], rank_of_slot[slot]
    changed[rank] = True
    rank_load[rank] -= unit[giver]
    _unlink(head, following, giver, slot)
    for step in (-1, 1):
        expert = taker if step > 0 else giver
        if expert < count.size - 1:
            held[expert, rank] += step
            count[expert] += step
            fresh = load[expert] / count[expert]
            at = head[expert]
            while at >= 0:
                rank_load[rank_of_slot[at]] += fresh - unit[expert]
                changed[rank_of_slot[at]] = True
                at = following[at]
            unit[expert] = fresh
    rank_load[rank] += unit[taker]
    phy2log[slot] = taker
    _link(head, following, taker, slot)


@njit(
    f"{_FOUND}({_STATE}, int16[:, ::1], int64[::1], float64[::1], float64, float64[::1], boolean[::1], int64[::1],"
    " int64, boolean[::1], boolean, float64)",
)
def _best_exchange(
    phy2log: Map, rank_of_slot: Ints, unit: Floats, count: Ints, held: Counts, head: Map, following: Map,
    rank_load: Floats, home: Counts, first_slot: Ints, limit: Floats, over_price: float, bad: Floats, touched: Flags,
    by_load: Ints, rank: int, changed: Flags, every_partner: bool, least: float,
) -> tuple[float, int, int]:  # fmt: skip
    """Find the exchange of a rank that is over with one that stays under, worth more than `least`; else -1s.

    Partners are taken in the order `by_load` [R], all or only those that changed. `bad` [R] is the badness of each
    rank, `touched` [R] whether it holds another set than it did: only there can a step cost less than two fetches.
    """
    best = (least, -1, -1)
    need = rank_load[rank] - limit[rank] - ROUNDING
    for partner in by_load:
        if bad[partner] > 0.0 or not (every_partner or changed[partner]):
            continue
        room = limit[partner] - rank_load[partner]
        most_gain = need + over_price if room >= need else room
        most_rate = FREE_RATE if touched[rank] or touched[partner] else 0.5
        if most_gain * most_rate + SLACK_VALUE * room <= best[0]:
            continue
        for slot in range(first_slot[rank], first_slot[rank + 1]):
            expert = phy2log[slot]
            value = unit[expert]
            if value == 0.0 or held[expert, partner] > 0:
                continue
            price_here = _arrival(held, home, expert, partner) - _departure(held, home, expert, rank)
            most_rate = _rate(price_here + (0 if touched[rank] else 1) - (1 if touched[partner] else 0))
            if (value if value < need else most_gain) * most_rate + SLACK_VALUE * room <= best[0]:
                continue
            for other_slot in range(first_slot[partner], first_slot[partner + 1]):
                other = phy2log[other_slot]
                moved = value - unit[other]
                if moved <= ROUNDING or moved > room:
                    continue
                gain = need + over_price if moved >= need else moved
                bonus = SLACK_VALUE * (room - moved)
                if gain * most_rate + bonus <= best[0] or held[other, rank] > 0:
                    continue
                price = price_here + _arrival(held, home, other, rank) - _departure(held, home, other, partner)
                if gain * _rate(price) + bonus > best[0]:
                    best = (gain * _rate(price) + bonus, slot, other_slot)
    return best


@njit(
    f"{_FOUND}({_STATE}, {_F}, int16[:, ::1], {_F}, float64, {_F}, boolean[::1], {_F}, int64[::1], float64[:, ::1],"
    " uint64[::1], float64)",
)
def _best_retarget(
    phy2log: Map, rank_of_slot: Ints, unit: Floats, count: Ints, held: Counts, head: Map, following: Map,
    rank_load: Floats, load: Floats, home: Counts, limit: Floats, over_price: float, bad: Floats, touched: Flags,
    relief: Floats, givers: Ints, worth: Floats, others: NDArray[np.uint64], least: float,
) -> tuple[float, int, int]:  # fmt: skip
    """Find the slot that gives and the expert of a rank that is over that takes, worth more than `least`; else -1s.

    Scratch: `relief` [E + 1], `givers` [P], `worth` [3, P], `others` [P]: ranks that get warmer when a giver loses a
    copy, as bits.
    """
    best, num_givers = (least, -1, -1), 0
    rate, most, heat = worth[0], worth[1], worth[2]
    for slot in range(phy2log.size):
        giver, rank = phy2log[slot], rank_of_slot[slot]
        if count[giver] == 1:
            continue
        rise = load[giver] / (count[giver] - 1) - unit[giver]
        total, mask = 0.0, np.uint64(0)
        at = head[giver]
        while at >= 0:
            other = rank_of_slot[at]
            if other != rank:
                mask |= np.uint64(1) << np.uint64(other % 64)
                total += _badness(rank_load[other] + rise, limit[other], over_price) - bad[other]
            at = following[at]
        givers[num_givers], heat[num_givers], others[num_givers] = slot, total, mask
        rate[num_givers] = FREE_RATE if touched[rank] else 1.0
        most[num_givers] = bad[rank] * rate[num_givers] + SLACK_VALUE * (limit[rank] - rank_load[rank] + unit[giver])
        num_givers += 1
    relief[:] = -1.0
    for hot_slot in range(phy2log.size):
        taker = phy2log[hot_slot]
        if bad[rank_of_slot[hot_slot]] == 0.0 or relief[taker] >= 0.0 or unit[taker] == 0.0:
            continue
        taken = load[taker] / (count[taker] + 1)
        fall = unit[taker] - taken
        total, mask = 0.0, np.uint64(0)
        at = head[taker]
        while at >= 0:
            rank = rank_of_slot[at]
            mask |= np.uint64(1) << np.uint64(rank % 64)
            total += bad[rank] - _badness(rank_load[rank] - fall, limit[rank], over_price)
            at = following[at]
        relief[taker] = total
        for i in range(num_givers):
            sure = heat[i] if mask & others[i] == 0 else 0.0  # no rank holds both, so nothing softens the heat
            if (total - sure) * rate[i] + most[i] <= best[0]:
                continue
            slot = givers[i]
            giver, rank = phy2log[slot], rank_of_slot[slot]
            if held[taker, rank] > 0:
                continue
            after = rank_load[rank] - unit[giver] + taken
            bonus = SLACK_VALUE * (limit[rank] - after)
            per = _rate(_arrival(held, home, taker, rank) - _departure(held, home, giver, rank))
            gain = total + bad[rank] - _badness(after, limit[rank], over_price)
            if (gain - sure) * per + bonus <= best[0]:
                continue
            gain -= heat[i]
            at = head[giver] if sure == 0.0 else -1
            while at >= 0:  # where a rank holds both, it falls and rises at once
                other = rank_of_slot[at]
                if other != rank and held[taker, other] > 0:
                    rise = load[giver] / (count[giver] - 1) - unit[giver]
                    gain += _badness(rank_load[other] + rise, limit[other], over_price) - bad[other]
                    gain += _badness(rank_load[other] - fall, limit[other], over_price)
                    gain -= _badness(rank_load[other] - fall + rise, limit[other], over_price)
                at = following[at]
            if gain > ROUNDING and gain * per + bonus > best[0]:
                best = (gain * per + bonus, slot, taker)
    return best


@njit(f"boolean({_STATE}, {_F}, int16[:, ::1], int64[::1], {_F}, int32[::1], boolean[::1], boolean[::1])")
def _undo_one(
    phy2log: Map, rank_of_slot: Ints, unit: Floats, count: Ints, held: Counts, head: Map, following: Map,
    rank_load: Floats, load: Floats, home: Counts, first_slot: Ints, limit: Floats, old: Map, touched: Flags,
    changed: Flags,
) -> bool:  # fmt: skip
    """Save a fetch under the limits: put an expert back that the rank had, or exchange; False if neither can be."""
    for slot in range(phy2log.size):
        expert, rank = phy2log[slot], rank_of_slot[slot]
        if home[expert, rank] > 0:
            continue
        for old_slot in range(first_slot[rank], first_slot[rank + 1] if count[expert] > 1 else 0):
            former = old[old_slot]
            if held[former, rank] > 0 or former == count.size - 1:
                continue
            _retarget(phy2log, rank_of_slot, unit, count, held, head, following, rank_load, load, slot, former, changed)
            if (rank_load - limit).max() <= ROUNDING:
                return True
            _retarget(phy2log, rank_of_slot, unit, count, held, head, following, rank_load, load, slot, expert, changed)
        for other_slot in range(phy2log.size):
            other, partner = phy2log[other_slot], rank_of_slot[other_slot]
            if not touched[partner] or partner == rank or held[expert, partner] > 0 or held[other, rank] > 0:
                continue
            moved = unit[expert] - unit[other]
            if rank_load[rank] - moved > limit[rank] or rank_load[partner] + moved > limit[partner]:
                continue
            price = _arrival(held, home, expert, partner) + _arrival(held, home, other, rank)
            if price - 1 - _departure(held, home, other, partner) < 0:
                _exchange(phy2log, rank_of_slot, unit, count, held, head, following, rank_load, slot, other_slot,
                          changed)  # fmt: skip
                return True
    return False


@njit(
    "void(float64[:, ::1], int32[:, ::1], int64[::1], int64[::1], float64[:, ::1], float64[:, ::1], int64,"
    " int32[:, ::1], int64[::1])",
)
def relieve_layers(
    load: Floats, old: Map, first_slot: Ints, rank_of_slot: Ints, limit: Floats, over_prices: Floats,
    num_always: int, new: Map, num_fetched: Ints,
) -> None:  # fmt: skip
    """Bring each layer under its limits with few fetches: the best of some searches, one for each of `over_prices`.

    Of the searches that end under the limits the one with the fewest fetches is kept, ties to the earlier one; if none
    does, the one with the least largest excess. A step costs O(H R S^2), later only for pairs that changed, and
    O(H S G) for retargeting, with H ranks over their limit and G copies of experts with several.

    Parameters
    ----------
    load, old
        [L, E + 1] scaled to mean rank load 1, 0 for expert E; [L, P] the live placement, E in holes.
    first_slot, rank_of_slot, limit
        [R + 1], [P], [L, R]
    over_prices, num_always
        [L, K] prices of `_badness`, one a search; only so many searches are made if one of them succeeds.
    new, num_fetched
        [L, P], [L] out.
    """
    num_slots, num_ranks, num_ids = old.shape[1], limit.shape[1], load.shape[1]
    unit, count, relief = np.empty(num_ids), np.empty(num_ids, np.int64), np.empty(num_ids)
    held, home = np.empty((num_ids, num_ranks), np.int16), np.empty((num_ids, num_ranks), np.int16)
    head, following, phy2log = np.empty(num_ids, np.int32), np.empty(num_slots, np.int32), np.empty(num_slots, np.int32)
    rank_load, bad, best_score = np.empty(num_ranks), np.empty(num_ranks), np.empty(num_ranks)
    changed, touched = np.empty(num_ranks, np.bool_), np.empty(num_ranks, np.bool_)
    givers, worth, others = np.empty(num_slots, np.int64), np.empty((3, num_slots)), np.empty(num_slots, np.uint64)
    best_slot, best_other = np.empty(num_ranks, np.int64), np.empty(num_ranks, np.int64)
    for layer in range(load.shape[0]):
        loads, olds, limits = load[layer], old[layer], limit[layer]
        _count_up(olds, rank_of_slot, unit, count, home, head, following, rank_load, loads)
        home[num_ids - 1], kept_excess, num_fetched[layer], over, hopeless = 1, np.inf, 0, 0.0, False
        for trial, over_price in enumerate(over_prices[layer]):
            if trial >= num_always and (kept_excess == 0.0 or hopeless):
                break
            phy2log[:] = olds
            _count_up(phy2log, rank_of_slot, unit, count, held, head, following, rank_load, loads)
            changed[:], touched[:] = True, False
            for step in range(4 * num_slots):
                for rank in range(num_ranks):
                    bad[rank] = _badness(rank_load[rank], limits[rank], over_price)
                if num_slots > MANY_SLOTS and step % 32 == 0:  # as after the last 32 steps, how many more?
                    before, over = over if step > 0 else np.inf, np.maximum(rank_load - limits, 0.0).sum()
                    hopeless = over > MOST_OVER * num_ranks  # else, does it move too much?
                    hopeless = hopeless or 32 * over > (MOST_MOVED * num_slots - step) * (before - over)
                if hopeless or not bad.any():
                    break
                by_load = np.argsort(rank_load, kind="mergesort")
                score, slot, other_slot = 0.0, -1, -1
                for rank in range(num_ranks):
                    if bad[rank] == 0.0:
                        continue  # a rank that comes to be over has changed
                    fresh = changed[rank] or (best_slot[rank] >= 0 and changed[rank_of_slot[best_other[rank]]])
                    if fresh:
                        best_score[rank], best_slot[rank], best_other[rank] = 0.0, -1, -1
                    found = _best_exchange(
                        phy2log, rank_of_slot, unit, count, held, head, following, rank_load, home, first_slot,
                        limits, over_price, bad, touched, by_load, rank, changed, fresh, best_score[rank],
                    )  # fmt: skip
                    if found[1] >= 0:
                        best_score[rank], best_slot[rank], best_other[rank] = found
                    if best_slot[rank] >= 0 and best_score[rank] > score:
                        score, slot, other_slot = best_score[rank], best_slot[rank], best_other[rank]
                found = _best_retarget(
                    phy2log, rank_of_slot, unit, count, held, head, following, rank_load, loads, home, limits,
                    over_price, bad, touched, relief, givers, worth, others, score,
                )  # fmt: skip
                changed[:] = False
                if found[1] >= 0:
                    touched[rank_of_slot[found[1]]] = True
                    _retarget(phy2log, rank_of_slot, unit, count, held, head, following, rank_load, loads,
                              found[1], found[2], changed)  # fmt: skip
                elif slot >= 0:
                    touched[rank_of_slot[slot]] = touched[rank_of_slot[other_slot]] = True
                    _exchange(phy2log, rank_of_slot, unit, count, held, head, following, rank_load, slot,
                              other_slot, changed)  # fmt: skip
                else:
                    break
            excess = max(0.0, (rank_load - limits).max() - ROUNDING)
            while excess == 0.0 and _undo_one(phy2log, rank_of_slot, unit, count, held, head, following, rank_load,
                                              loads, home, first_slot, limits, olds, touched, changed):  # fmt: skip
                continue
            fetched = 0
            for slot in range(num_slots):  # no step puts an expert on a rank twice: each such slot is a fetch
                fetched += home[phy2log[slot], rank_of_slot[slot]] == 0
            if excess < kept_excess or (excess == kept_excess and fetched < num_fetched[layer]):
                kept_excess = excess
                new[layer], num_fetched[layer] = phy2log, fetched
