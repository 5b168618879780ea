"""From a live placement towards one that is better for many loads, step by step, each step worth its fetches.

Knows arrays only. The cost of a layer is the sum of 8th powers of rank loads over ranks and scenarios, a soft maximum.
A step exchanges two copies of two ranks, or retargets a copy of an expert with several copies to another expert. The
cost is convex, so its tangent bounds what a step can gain: one number a rank and expert, the slope, and most steps are
refused without touching their scenarios. What a search learns of two ranks, or of a slot and an expert, is a ceiling
until one of their ranks changes: a step changes few. Steps are found exactly all the same: the best one is taken until
none is worth its price. Sums over scenarios run in four fixed lanes, the same on every machine.
"""

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb_traces.jit import njit

Counts = NDArray[np.int16]

LANES = 4  # scenarios are padded with zeros to a multiple of this
POWER = 8.0
FREE_WEIGHT = 0.5  # what a step without a fetch counts, in fetches, when steps are compared
LEAST_WORTH = 1e-9  # of the layer's cost: below this a step is rounding
LOOK_DOWN = 0.5  # a search looks for merits down to this part of the best, so that its ceilings hold while merits fall

_F = "float64[::1]"
_F2 = "float64[:, ::1]"
_STATE = f"int32[::1], int64[::1], {_F}, int16[:, ::1], int16[:, ::1], int32[::1], int32[::1], {_F2}, {_F}, {_F2}"
"""phy2log [P], rank_of_slot [P], count [E + 1], held [E + 1, R], home [E + 1, R], head [E + 1], following [P],
rows [R, T], cost [R], slope [R, E + 1]: expert E is the hole, without load; head and following chain the slots of an
expert."""


@njit("float64(float64)")
def _power(x: float) -> float:
    x = x * x
    x = x * x
    return x * x


@njit(f"float64({_F})")
def _row_cost(row: Floats) -> float:
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    for t in range(0, row.size, 4):
        s0 += _power(row[t])
        s1 += _power(row[t + 1])
        s2 += _power(row[t + 2])
        s3 += _power(row[t + 3])
    return (s0 + s1) + (s2 + s3)


@njit(f"float64({_F}, {_F}, float64, {_F}, float64, float64)")
def _cost_after(row: Floats, less: Floats, less_share: float, more: Floats, more_share: float, limit: float) -> float:
    """Cost of a row without a share of `less` and with a share of `more`; >= `limit` once that is certain."""
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    for t in range(0, row.size, 4):
        s0 += _power(row[t] - less_share * less[t] + more_share * more[t])
        s1 += _power(row[t + 1] - less_share * less[t + 1] + more_share * more[t + 1])
        s2 += _power(row[t + 2] - less_share * less[t + 2] + more_share * more[t + 2])
        s3 += _power(row[t + 3] - less_share * less[t + 3] + more_share * more[t + 3])
        if (s0 + s1) + (s2 + s3) >= limit:
            return limit
    return (s0 + s1) + (s2 + s3)


@njit(f"void({_F2}, {_F2}, {_F}, {_F}, {_F2}, int64)")
def _renew_rank(scenarios: Floats, rows: Floats, rank_scale: Floats, cost: Floats, slope: Floats, rank: int) -> None:
    """Cost of a rank's row, and what the cost rises by with each expert's whole load, to first order."""
    cost[rank] = _row_cost(rows[rank])
    steep = np.empty(rows.shape[1])
    for t in range(steep.size):
        x = rows[rank, t]
        squared = x * x
        steep[t] = POWER * rank_scale[rank] * squared * squared * squared * x
    for expert in range(scenarios.shape[0]):
        s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
        for t in range(0, steep.size, 4):
            s0 += steep[t] * scenarios[expert, t]
            s1 += steep[t + 1] * scenarios[expert, t + 1]
            s2 += steep[t + 2] * scenarios[expert, t + 2]
            s3 += steep[t + 3] * scenarios[expert, t + 3]
        slope[rank, expert] = (s0 + s1) + (s2 + s3)


@njit("int64(int16[:, ::1], int16[:, ::1], int64, int64)")
def _arrival(held: Counts, home: Counts, expert: int, rank: int) -> int:
    """1 if the rank would have to fetch the expert."""
    return 1 if held[expert, rank] == 0 and home[expert, rank] == 0 else 0


@njit("int64(int16[:, ::1], int16[:, ::1], int64, int64)")
def _departure(held: Counts, home: Counts, expert: int, rank: int) -> int:
    """1 if the rank need not fetch the expert any more once it loses a copy."""
    return 1 if held[expert, rank] == 1 and home[expert, rank] == 0 else 0


@njit("float64(float64, int64)")
def _merit(worth: float, fetches: int) -> float:
    return worth / (float(fetches) if fetches > 0 else FREE_WEIGHT)


@njit(f"void(int32[::1], {_F}, {_F2}, int64[::1], {_F2}, float64, int64)")
def _renew_ceilings(
    phy2log: Map, count: Floats, slope: Floats, first_slot: Ints, ceiling: Floats, extra: float, rank: int
) -> None:
    """Tangent bounds on the merits of a rank's exchanges with all others, plus `extra`; [r, s] with r < s."""
    for partner in range(slope.shape[0]):
        if partner != rank:
            most_here, least_there = -np.inf, np.inf
            for slot in range(first_slot[rank], first_slot[rank + 1]):
                expert = phy2log[slot]
                most_here = max(most_here, (slope[rank, expert] - slope[partner, expert]) / count[expert])
            for slot in range(first_slot[partner], first_slot[partner + 1]):
                expert = phy2log[slot]
                least_there = min(least_there, (slope[rank, expert] - slope[partner, expert]) / count[expert])
            ceiling[min(rank, partner), max(rank, partner)] = (most_here - least_there) / FREE_WEIGHT + extra


@njit(f"UniTuple(float64, 4)({_STATE}, {_F2}, {_F}, int64[::1], float64, int64, float64, {_F2}, float64)")
def _best_exchange(
    phy2log: Map, rank_of_slot: Ints, count: Floats, held: Counts, home: Counts, head: Map, following: Map,
    rows: Floats, cost: Floats, slope: Floats, scenarios: Floats, rank_scale: Floats, first_slot: Ints, price: float,
    room: int, least: float, ceiling: Floats, offset: float,
) -> tuple[float, float, float, float]:  # fmt: skip
    """Merit, the two slots, fetches of the exchange with the largest merit above `least`; slots -1 if there is none."""
    num_ranks, hole = cost.size, count.size - 1
    best, best_slot, best_other, best_fetches = least, -1, -1, 0
    there = np.empty(phy2log.size)
    for pair in np.argsort(-ceiling.ravel(), kind="mergesort"):  # good steps first: they spare the others a close look
        rank, partner = pair // num_ranks, pair % num_ranks
        if ceiling[rank, partner] + offset <= best:
            break
        floor = top = LOOK_DOWN * best
        low, high = rank, partner
        if cost[rank] < cost[partner]:
            rank, partner = partner, rank
        other_first, other_last, least_there = first_slot[partner], first_slot[partner + 1], np.inf
        for slot in range(other_first, other_last):
            expert = phy2log[slot]
            there[slot] = (slope[rank, expert] - slope[partner, expert]) / count[expert]
            least_there = min(least_there, there[slot])
        for slot in range(first_slot[rank], first_slot[rank + 1]):
            expert = phy2log[slot]
            here = (slope[rank, expert] - slope[partner, expert]) / count[expert]
            may_go = expert == hole or held[expert, partner] == 0
            if not may_go or (here - least_there + 2 * price) / FREE_WEIGHT <= floor:
                continue
            fetches_here = _arrival(held, home, expert, partner) - _departure(held, home, expert, rank)
            for other_slot in range(other_first, other_last):
                bound = here - there[other_slot]
                if (bound + 2 * price) / FREE_WEIGHT <= floor:
                    continue
                other = phy2log[other_slot]
                if expert == other or (other != hole and held[other, rank] > 0):
                    continue
                fetches = fetches_here + _arrival(held, home, other, rank) - _departure(held, home, other, partner)
                merit = _merit(bound - price * fetches, fetches)
                if merit <= floor:
                    continue
                if fetches > room:
                    top = max(top, merit)
                    continue
                before = cost[rank] + cost[partner]
                limit = before - price * fetches - floor * (float(fetches) if fetches > 0 else FREE_WEIGHT)
                share, other_share = 1 / count[expert], 1 / count[other]
                partner_least = cost[partner]
                partner_least += slope[partner, expert] * share - slope[partner, other] * other_share
                after = _cost_after(
                    rows[rank], scenarios[expert], rank_scale[rank] * share, scenarios[other],
                    rank_scale[rank] * other_share, limit - partner_least,
                )  # fmt: skip
                if after >= limit - partner_least:
                    continue
                after += _cost_after(
                    rows[partner], scenarios[other], rank_scale[partner] * other_share, scenarios[expert],
                    rank_scale[partner] * share, limit - after,
                )  # fmt: skip
                merit = _merit(before - after - price * fetches, fetches)
                top = max(top, merit)
                if merit > best:
                    best, best_slot, best_other, best_fetches = merit, slot, other_slot, fetches
                    floor = LOOK_DOWN * best
        ceiling[low, high] = max(top, floor) - offset
    return best, float(best_slot), float(best_other), float(best_fetches)


@njit(f"float64({_STATE}, {_F2}, {_F}, int64, int64, {_F2}, boolean[::1])")
def _gain_of_retarget(
    phy2log: Map, rank_of_slot: Ints, count: Floats, held: Counts, home: Counts, head: Map, following: Map,
    rows: Floats, cost: Floats, slope: Floats, scenarios: Floats, rank_scale: Floats, slot: int, taker: int,
    changed: Floats, seen: NDArray[np.bool_],
) -> float:  # fmt: skip
    """What the cost falls by if a slot gets another expert. Scratch: `changed` [R, T], `seen` [R]."""
    giver, hole = phy2log[slot], count.size - 1
    seen[:] = False
    for step in range(2):
        expert = giver if step == 0 else taker
        if expert == hole:
            continue
        fewer = count[expert] - 1 if step == 0 else count[expert] + 1
        shift = 1 / fewer - 1 / count[expert]
        at = head[expert]
        while at >= 0:
            rank = rank_of_slot[at]
            if not seen[rank]:
                seen[rank] = True
                changed[rank] = rows[rank]
            share = -1 / count[expert] if at == slot else shift
            for t in range(rows.shape[1]):
                changed[rank, t] += rank_scale[rank] * share * scenarios[expert, t]
            at = following[at]
    rank = rank_of_slot[slot]
    if not seen[rank]:
        seen[rank] = True
        changed[rank] = rows[rank]
    for t in range(rows.shape[1]):
        changed[rank, t] += rank_scale[rank] / (count[taker] + 1) * scenarios[taker, t]
    gain = 0.0
    for other in range(cost.size):
        if seen[other]:
            gain += cost[other] - _row_cost(changed[other])
    return gain


@njit(f"UniTuple(float64, 4)({_STATE}, {_F2}, {_F}, int64[::1], float64, int64, float64, {_F2}, float64)")
def _best_retarget(
    phy2log: Map, rank_of_slot: Ints, count: Floats, held: Counts, home: Counts, head: Map, following: Map,
    rows: Floats, cost: Floats, slope: Floats, scenarios: Floats, rank_scale: Floats, first_slot: Ints, price: float,
    room: int, least: float, ceiling: Floats, offset: float,
) -> tuple[float, float, float, float]:  # fmt: skip
    """Merit, slot, expert that takes it, fetches, as `_best_exchange`; the last copy of an expert never goes."""
    num_ranks, hole = cost.size, count.size - 1
    best, best_slot, best_taker, best_fetches = least, -1, -1, 0
    relief = np.empty(hole)
    changed, seen = np.empty(rows.shape), np.empty(num_ranks, np.bool_)
    for expert in range(hole):
        total, at = 0.0, head[expert]
        while at >= 0:
            total += slope[rank_of_slot[at], expert]
            at = following[at]
        relief[expert] = total * (1 / count[expert] - 1 / (count[expert] + 1))
    for slot in range(phy2log.size):
        giver, rank = phy2log[slot], rank_of_slot[slot]
        if giver != hole and count[giver] < 2:
            continue
        own, saved = 0.0, 0.0
        if giver != hole:
            own = saved = slope[rank, giver] / count[giver]
            rise, at = 1 / (count[giver] - 1) - 1 / count[giver], head[giver]
            while at >= 0:
                if at != slot:
                    saved -= slope[rank_of_slot[at], giver] * rise
                at = following[at]
        leaving = _departure(held, home, giver, rank)
        for taker in range(hole):
            if ceiling[slot, taker] + offset <= best or taker == giver or held[taker, rank] > 0:
                continue
            bound = saved + relief[taker] - slope[rank, taker] / (count[taker] + 1)
            fetches = _arrival(held, home, taker, rank) - leaving
            if fetches > room or _merit(bound - price * fetches, fetches) <= best:
                continue
            elsewhere = bound - own + slope[rank, taker] / (count[taker] + 1)
            floor = LOOK_DOWN * best
            limit = cost[rank] + elsewhere - price * fetches - floor * (float(fetches) if fetches > 0 else FREE_WEIGHT)
            giver_share = 0.0 if giver == hole else 1 / count[giver]
            after = _cost_after(
                rows[rank], scenarios[giver], rank_scale[rank] * giver_share, scenarios[taker],
                rank_scale[rank] / (count[taker] + 1), limit,
            )  # fmt: skip
            merit = _merit(cost[rank] + elsewhere - after - price * fetches, fetches)
            if merit <= best and (giver == hole or held[giver, rank] == 1):
                ceiling[slot, taker] = max(merit, floor) - offset
                continue
            gain = _gain_of_retarget(
                phy2log, rank_of_slot, count, held, home, head, following, rows, cost, slope, scenarios, rank_scale,
                slot, taker, changed, seen,
            )  # fmt: skip
            merit = _merit(gain - price * fetches, fetches)
            ceiling[slot, taker] = max(merit, floor) - offset
            if merit > best:
                best, best_slot, best_taker, best_fetches = merit, slot, taker, fetches
    return best, float(best_slot), float(best_taker), float(best_fetches)


@njit("void(int32[::1], int64[::1], float64[::1], int16[:, ::1], int32[::1], int32[::1])")
def _count_copies(phy2log: Map, rank_of_slot: Ints, count: Floats, held: Counts, head: Map, following: Map) -> None:
    """Counts and chains of a map."""
    count[:], held[:], head[:] = 0.0, 0, -1
    for slot in range(phy2log.size - 1, -1, -1):
        expert = phy2log[slot]
        count[expert] += 1
        held[expert, rank_of_slot[slot]] += 1
        following[slot] = head[expert]
        head[expert] = slot


@njit(f"void(int32[::1], int64[::1], {_F}, {_F2}, {_F}, {_F2})")
def _sum_rows(
    phy2log: Map, rank_of_slot: Ints, count: Floats, scenarios: Floats, rank_scale: Floats, rows: Floats
) -> None:
    rows[:] = 0.0
    for slot in range(phy2log.size):
        rank, expert = rank_of_slot[slot], phy2log[slot]
        share = rank_scale[rank] / count[expert]
        for t in range(rows.shape[1]):
            rows[rank, t] += share * scenarios[expert, t]


@njit(
    f"void(float64[:, :, ::1], int32[:, ::1], int64[::1], int64[::1], {_F}, {_F}, int64[::1], int32[:, ::1],"
    f" int64[:, :, ::1], {_F2}, int64[::1])",
)
def improve_layers(
    scenarios: Floats, old: Map, first_slot: Ints, rank_of_slot: Ints, rank_scale: Floats, price: Floats, most: Ints,
    new: Map, steps: Ints, gains: Floats, num_steps: Ints,
) -> None:  # fmt: skip
    """Take the step with the largest merit, (gain - price) per fetch, until none is left or the log is full.

    A step costs O(R^2 log R + R S^2 + P E) for bounds and O(T) for each neighbour that they leave.

    Parameters
    ----------
    scenarios
        [L, E + 1, T] tokens scaled so that the mean rank has 1 in each scenario of weight 1; expert E has none.
    old
        [L, P] live map, E in holes.
    first_slot, rank_of_slot, rank_scale
        [R + 1], [P], [R] 1 / relative speed.
    price
        [L] what a fetch must gain, as a share of the layer's cost just before.
    most
        [L] most fetches.
    new
        [L, P] out.
    steps, gains, num_steps
        [L, K, 3] out: slot, -1 - other slot of an exchange or the expert that a slot takes, fetches; [L, K] out: by
        how much the logarithm of the layer's cost fell; [L] out: how many steps.
    """
    num_slots, num_ranks, num_ids = old.shape[1], rank_scale.size, scenarios.shape[1]
    count, held = np.empty(num_ids), np.empty((num_ids, num_ranks), np.int16)
    home, touched = np.empty_like(held), np.empty(num_ranks, np.bool_)
    head, following = np.empty(num_ids, np.int32), np.empty(num_slots, np.int32)
    rows, cost, slope = np.empty((num_ranks, scenarios.shape[2])), np.empty(num_ranks), np.empty((num_ranks, num_ids))
    of_pair, of_slot = np.empty((num_ranks, num_ranks)), np.empty((num_slots, num_ids))
    for layer in range(old.shape[0]):
        loads, phy2log = scenarios[layer], new[layer]
        phy2log[:] = old[layer]
        _count_copies(phy2log, rank_of_slot, count, held, head, following)
        home[:] = held
        home[num_ids - 1] = 1  # a hole need not be fetched
        _sum_rows(phy2log, rank_of_slot, count, loads, rank_scale, rows)
        for rank in range(num_ranks):
            _renew_rank(loads, rows, rank_scale, cost, slope, rank)
        of_pair[:], of_slot[:], offset, fee = -np.inf, np.inf, 0.0, price[layer] * cost.sum()
        for rank in range(num_ranks):
            _renew_ceilings(phy2log, count, slope, first_slot, of_pair, 2 * fee / FREE_WEIGHT, rank)
        room, num_steps[layer] = most[layer], 0
        while num_steps[layer] < steps.shape[1]:
            before = cost.sum()
            last_fee, fee = fee, price[layer] * before
            offset += max(last_fee - fee, 2 / FREE_WEIGHT * (fee - last_fee))  # no merit rises by more
            found = _best_exchange(
                phy2log, rank_of_slot, count, held, home, head, following, rows, cost, slope, loads, rank_scale,
                first_slot, fee, room, LEAST_WORTH * before / FREE_WEIGHT, of_pair, offset,
            )  # fmt: skip
            better = _best_retarget(
                phy2log, rank_of_slot, count, held, home, head, following, rows, cost, slope, loads, rank_scale,
                first_slot, fee, room, found[0], of_slot, offset,
            )  # fmt: skip
            one = steps[layer, num_steps[layer]]
            if better[1] >= 0:
                slot, other_slot, one[2] = int(better[1]), int(better[1]), int(better[3])
                one[0], one[1] = slot, int(better[2])
                phy2log[slot] = one[1]
            elif found[1] >= 0:
                slot, other_slot = int(found[1]), int(found[2])
                one[0], one[1], one[2] = slot, -1 - other_slot, int(found[3])
                phy2log[slot], phy2log[other_slot] = phy2log[other_slot], phy2log[slot]
            else:
                break
            _count_copies(phy2log, rank_of_slot, count, held, head, following)
            _sum_rows(phy2log, rank_of_slot, count, loads, rank_scale, rows)
            for rank in range(num_ranks):
                is_of_step = rank == rank_of_slot[slot] or rank == rank_of_slot[other_slot]
                touched[rank] = is_of_step or cost[rank] != _row_cost(rows[rank])
                if touched[rank]:
                    _renew_rank(loads, rows, rank_scale, cost, slope, rank)
            for rank in range(num_ranks):
                if touched[rank]:
                    _renew_ceilings(phy2log, count, slope, first_slot, of_pair, 2 * fee / FREE_WEIGHT - offset, rank)
                    for held_slot in range(first_slot[rank], first_slot[rank + 1]):
                        of_slot[:, phy2log[held_slot]] = np.inf
                        at = head[phy2log[held_slot]]
                        while at >= 0:
                            of_slot[at] = np.inf
                            at = following[at]
            room -= one[2]
            gains[layer, num_steps[layer]] = np.log(before / cost.sum())
            num_steps[layer] += 1
