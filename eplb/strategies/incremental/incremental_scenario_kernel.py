"""Improves a live placement for many windows step by step, each step worth the replicas that it fetches.

The cost of a layer is the sum of 8th powers of rank loads over ranks and windows, a soft maximum. A step exchanges two
replicas of two ranks, or gives a slot of an expert with several replicas to another expert. The cost is convex, so its
tangent bounds what a step can gain: one number a rank and expert, the slope. Most steps are refused by it, without a
look at their windows. The best merit found for two ranks, or for a slot and an expert, is cached as an upper bound and
stays valid until one of their ranks changes. Steps are found exactly all the same: the best one is taken until none is
worth its price. Sums over windows run in four fixed lanes, the same on every machine.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import (
    READ_FLOATS,
    READ_INTS,
    READ_MAPS,
    fetches_saved,
    fetches_to_add,
    link_slots,
    power,
    sum_of_powers,
)
from eplb_traces.jit import helper, njit

Counts = NDArray[np.int16]

DOUBLINGS = 3
POWER = 8.0  # 2 ** DOUBLINGS
FREE_WEIGHT = 0.5  # what a step without a fetch counts, in fetches, when steps are compared
LEAST_WORTH = 1e-9  # of the layer's cost: below this a step is rounding
LOOK_DOWN = 0.5  # a search looks for merits down to this part of the best, so that its bounds hold while merits fall


class LayerState(NamedTuple):
    """A layer in the descent. Id E stands for an empty slot; slots of an id are chained: `head`, `following`, -1."""

    first_slot: Ints  # [R + 1]
    rank_of_slot: Ints  # [P]
    rank_scale: Floats  # [R] 1 / relative speed
    load: Floats  # [E + 1, W]
    phy2log: Map  # [P]
    num_replicas: Floats  # [E + 1]
    held: Counts  # [E + 1, R] replicas of an expert on a rank
    held_before: Counts  # [E + 1, R] the same in the live placement
    head: Map  # [E + 1]
    following: Map  # [P]
    rank_load: Floats  # [R, W]
    cost: Floats  # [R]
    slope: Floats  # [R, E + 1] what the cost of a rank rises by with each expert's whole load, to first order
    pair_bound: Floats  # [R, R] most merit of an exchange of two ranks, less the offset; [r, s] with r < s
    slot_bound: Floats  # [P, E + 1] most merit of giving a slot to an expert, less the offset


@helper
def _cost_after(row: Floats, less: Floats, less_share: float, more: Floats, more_share: float, limit: float) -> float:
    """Cost of a row without a share of `less` and with a share of `more`; >= `limit` once that is certain."""
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    for t in range(0, row.size, 4):
        s0 += power(row[t] - less_share * less[t] + more_share * more[t], DOUBLINGS)
        s1 += power(row[t + 1] - less_share * less[t + 1] + more_share * more[t + 1], DOUBLINGS)
        s2 += power(row[t + 2] - less_share * less[t + 2] + more_share * more[t + 2], DOUBLINGS)
        s3 += power(row[t + 3] - less_share * less[t + 3] + more_share * more[t + 3], DOUBLINGS)
        if (s0 + s1) + (s2 + s3) >= limit:
            return limit
    return (s0 + s1) + (s2 + s3)


@helper
def _update_rank(state: LayerState, rank: int) -> None:
    """Compute cost and slopes of a rank anew."""
    row, load, slope = state.rank_load[rank], state.load, state.slope
    state.cost[rank] = sum_of_powers(row, DOUBLINGS)
    steep = np.empty(row.size)
    for t in range(steep.size):
        x = row[t]
        squared = x * x
        steep[t] = POWER * state.rank_scale[rank] * squared * squared * squared * x
    for expert in range(load.shape[0]):
        s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
        for t in range(0, steep.size, 4):
            s0 += steep[t] * load[expert, t]
            s1 += steep[t + 1] * load[expert, t + 1]
            s2 += steep[t + 2] * load[expert, t + 2]
            s3 += steep[t + 3] * load[expert, t + 3]
        slope[rank, expert] = (s0 + s1) + (s2 + s3)


@helper
def _weight(num_fetches: int) -> float:
    return float(num_fetches) if num_fetches > 0 else FREE_WEIGHT


@helper
def _update_pair_bounds(state: LayerState, extra: float, rank: int) -> None:
    """Tangent bounds on the merits of a rank's exchanges with all others, plus `extra`."""
    phy2log, slope, count, first_slot = state.phy2log, state.slope, state.num_replicas, state.first_slot
    for partner in range(state.cost.size):
        if partner != rank:
            most_here, least_there = -np.inf, np.inf
            for slot in range(first_slot[rank], first_slot[rank + 1]):
                expert = phy2log[slot]
                most_here = max(most_here, (slope[rank, expert] - slope[partner, expert]) / count[expert])
            for slot in range(first_slot[partner], first_slot[partner + 1]):
                expert = phy2log[slot]
                least_there = min(least_there, (slope[rank, expert] - slope[partner, expert]) / count[expert])
            bound = (most_here - least_there) / FREE_WEIGHT + extra
            state.pair_bound[min(rank, partner), max(rank, partner)] = bound


@helper
def _best_exchange(
    state: LayerState, price: float, room: int, least: float, offset: float
) -> tuple[float, int, int, int]:
    """Merit, the two slots, fetches of the exchange with the largest merit above `least`; slots -1 if there is none."""
    phy2log, held, before, bounds = state.phy2log, state.held, state.held_before, state.pair_bound
    first_slot, cost, slope, count = state.first_slot, state.cost, state.slope, state.num_replicas
    load, rank_load, scale = state.load, state.rank_load, state.rank_scale
    num_ranks, empty = cost.size, count.size - 1
    best, best_slot, best_other, best_fetches = least, -1, -1, 0
    there = np.empty(phy2log.size)
    for pair in np.argsort(-bounds.ravel(), kind="mergesort"):  # good steps first: the others are refused by bounds
        low, high = pair // num_ranks, pair % num_ranks
        if bounds[low, high] + offset <= best:
            break
        floor = top = LOOK_DOWN * best
        rank, partner = (high, low) if cost[low] < cost[high] else (low, high)
        other_first, other_last, least_there = first_slot[partner], first_slot[partner + 1], np.inf
        for slot in range(other_first, other_last):
            expert = phy2log[slot]
            there[slot] = (slope[rank, expert] - slope[partner, expert]) / count[expert]
            least_there = min(least_there, there[slot])
        for slot in range(first_slot[rank], first_slot[rank + 1]):
            expert = phy2log[slot]
            here = (slope[rank, expert] - slope[partner, expert]) / count[expert]
            may_go = expert == empty or held[expert, partner] == 0
            if not may_go or (here - least_there + 2 * price) / FREE_WEIGHT <= floor:
                continue
            fetches_here = fetches_to_add(held, before, expert, partner) - fetches_saved(held, before, expert, rank)
            for other_slot in range(other_first, other_last):
                bound = here - there[other_slot]
                if (bound + 2 * price) / FREE_WEIGHT <= floor:
                    continue
                other = phy2log[other_slot]
                if expert == other or (other != empty and held[other, rank] > 0):
                    continue
                fetches = fetches_here + fetches_to_add(held, before, other, rank)
                fetches -= fetches_saved(held, before, other, partner)
                merit = (bound - price * fetches) / _weight(fetches)
                if merit > floor and fetches <= room:
                    limit = cost[rank] + cost[partner] - price * fetches - floor * _weight(fetches)
                    share, other_share = 1 / count[expert], 1 / count[other]
                    partner_least = cost[partner]
                    partner_least += slope[partner, expert] * share - slope[partner, other] * other_share
                    after = _cost_after(
                        rank_load[rank], load[expert], scale[rank] * share, load[other], scale[rank] * other_share,
                        limit - partner_least,
                    )  # fmt: skip
                    if after >= limit - partner_least:
                        continue
                    after += _cost_after(
                        rank_load[partner], load[other], scale[partner] * other_share, load[expert],
                        scale[partner] * share, limit - after,
                    )  # fmt: skip
                    merit = (cost[rank] + cost[partner] - after - price * fetches) / _weight(fetches)
                if merit <= floor:
                    continue
                top = max(top, merit)
                if merit > best and fetches <= room:
                    best, best_slot, best_other, best_fetches = merit, slot, other_slot, fetches
                    floor = LOOK_DOWN * best
        bounds[low, high] = max(top, floor) - offset
    return best, best_slot, best_other, best_fetches


@helper
def _add_share(row: Floats, more: Floats, share: float, after: Floats, seen: NDArray[np.bool_], rank: int) -> None:
    """Add a share of `more` to a rank's row in `after` [R, W], which starts as its present `row`."""
    if not seen[rank]:
        seen[rank] = True
        after[rank] = row
    for t in range(row.size):
        after[rank, t] += share * more[t]


@helper
def _gain_of_replacement(state: LayerState, slot: int, receiver: int, after: Floats, seen: NDArray[np.bool_]) -> float:
    """By how much the cost falls if a slot gets another expert. Scratch: `after` [R, W], `seen` [R]."""
    donor, count, rank_of_slot, following = state.phy2log[slot], state.num_replicas, state.rank_of_slot, state.following
    load, rank_load, scale, cost = state.load, state.rank_load, state.rank_scale, state.cost
    seen[:] = False
    for change in (-1, 1):
        expert = receiver if change > 0 else donor
        at = state.head[expert] if expert < count.size - 1 else -1
        while at >= 0:
            rank = rank_of_slot[at]
            share = -1 / count[expert] if at == slot else 1 / (count[expert] + change) - 1 / count[expert]
            _add_share(rank_load[rank], load[expert], scale[rank] * share, after, seen, rank)
            at = following[at]
    rank = rank_of_slot[slot]
    _add_share(rank_load[rank], load[receiver], scale[rank] / (count[receiver] + 1), after, seen, rank)
    gain = 0.0
    for other in range(seen.size):
        if seen[other]:
            gain += cost[other] - sum_of_powers(after[other], DOUBLINGS)
    return gain


@helper
def _gain_of_receivers(state: LayerState) -> Floats:
    """[E] to first order, by how much the cost falls on the ranks that have an expert if it gets one more replica."""
    gain = np.empty(state.num_replicas.size - 1)
    for expert in range(gain.size):
        total, at = 0.0, state.head[expert]
        while at >= 0:
            total += state.slope[state.rank_of_slot[at], expert]
            at = state.following[at]
        gain[expert] = total * (1 / state.num_replicas[expert] - 1 / (state.num_replicas[expert] + 1))
    return gain


@helper
def _gain_of_donor(
    slope: Floats, rank_of_slot: Ints, head: Map, following: Map, donor: int, count: float, slot: int
) -> float:
    """To first order, by how much the cost falls if an expert loses a slot."""
    gain = slope[rank_of_slot[slot], donor] / count
    rise, at = 1 / (count - 1) - 1 / count, head[donor]
    while at >= 0:
        if at != slot:
            gain -= slope[rank_of_slot[at], donor] * rise
        at = following[at]
    return gain


@helper
def _best_replacement(
    state: LayerState, price: float, room: int, least: float, offset: float
) -> tuple[float, int, int, int]:
    """Merit, slot, expert that gets it, fetches, as `_best_exchange`; the last replica of an expert never goes."""
    cost, slope, count, held, before = state.cost, state.slope, state.num_replicas, state.held, state.held_before
    bounds, load, rank_load, empty = state.slot_bound, state.load, state.rank_load, count.size - 1
    phy2log, rank_of_slot, head, following = state.phy2log, state.rank_of_slot, state.head, state.following
    best, best_slot, best_receiver, best_fetches = least, -1, -1, 0
    after, seen = np.empty(rank_load.shape), np.empty(cost.size, np.bool_)
    gain_of_receiver = _gain_of_receivers(state)
    for slot in range(phy2log.size):
        donor, rank = phy2log[slot], rank_of_slot[slot]
        if donor != empty and count[donor] < 2:
            continue
        own, saved = 0.0, 0.0
        if donor != empty:
            own = slope[rank, donor] / count[donor]
            saved = _gain_of_donor(slope, rank_of_slot, head, following, donor, count[donor], slot)
        scale, less = state.rank_scale[rank], 0.0 if donor == empty else 1 / count[donor]
        leaving = fetches_saved(held, before, donor, rank)
        for receiver in range(empty):
            if bounds[slot, receiver] + offset <= best or receiver == donor or held[receiver, rank] > 0:
                continue
            bound = saved + gain_of_receiver[receiver] - slope[rank, receiver] / (count[receiver] + 1)
            fetches = fetches_to_add(held, before, receiver, rank) - leaving
            if fetches > room or (bound - price * fetches) / _weight(fetches) <= best:
                continue
            elsewhere = bound - own + slope[rank, receiver] / (count[receiver] + 1)
            floor = LOOK_DOWN * best
            limit = cost[rank] + elsewhere - price * fetches - floor * _weight(fetches)
            rank_after = _cost_after(
                rank_load[rank], load[donor], scale * less, load[receiver],
                scale / (count[receiver] + 1), limit,
            )  # fmt: skip
            merit = (cost[rank] + elsewhere - rank_after - price * fetches) / _weight(fetches)
            if merit > best or not (donor == empty or held[donor, rank] == 1):
                gain = _gain_of_replacement(state, slot, receiver, after, seen)
                merit = (gain - price * fetches) / _weight(fetches)
            bounds[slot, receiver] = max(merit, floor) - offset
            if merit > best:
                best, best_slot, best_receiver, best_fetches = merit, slot, receiver, fetches
    return best, best_slot, best_receiver, best_fetches


@helper
def _count_and_sum(state: LayerState) -> None:
    """Derive counts, chains and rank loads from the map."""
    load, rank_load = state.load, state.rank_load
    state.num_replicas[:], state.held[:], rank_load[:] = 0.0, 0, 0.0
    link_slots(state.phy2log, state.head, state.following)
    for slot in range(state.phy2log.size):
        expert = state.phy2log[slot]
        state.num_replicas[expert] += 1
        state.held[expert, state.rank_of_slot[slot]] += 1
    for slot in range(state.phy2log.size):
        rank, expert = state.rank_of_slot[slot], state.phy2log[slot]
        share = state.rank_scale[rank] / state.num_replicas[expert]
        for t in range(load.shape[1]):
            rank_load[rank, t] += share * load[expert, t]


@helper
def _update(state: LayerState, rank: int, other_rank: int, extra: float) -> None:
    """Derive the state anew after a step on two ranks, and drop the bounds of every rank that changed."""
    bounds, phy2log, head, following = state.slot_bound, state.phy2log, state.head, state.following
    _count_and_sum(state)
    touched = np.empty(state.cost.size, np.bool_)
    for r in range(touched.size):
        touched[r] = r in (rank, other_rank) or state.cost[r] != sum_of_powers(state.rank_load[r], DOUBLINGS)
        if touched[r]:
            _update_rank(state, r)
    for r in range(touched.size):
        if touched[r]:
            _update_pair_bounds(state, extra, r)
            for slot in range(state.first_slot[r], state.first_slot[r + 1]):
                bounds[:, phy2log[slot]] = np.inf
                at = head[phy2log[slot]]
                while at >= 0:
                    bounds[at] = np.inf
                    at = following[at]


@njit(
    f"void(float64[:, :, ::1], {READ_MAPS}, {READ_INTS}, {READ_INTS}, {READ_FLOATS}, {READ_FLOATS}, {READ_INTS},"
    " int32[:, ::1], int64[:, :, ::1], float64[:, ::1], int64[::1])",
)
def improve_layers(
    load: Floats, old: Map, first_slot: Ints, rank_of_slot: Ints, rank_scale: Floats, price: Floats, most: Ints,
    new: Map, steps: Ints, gains: Floats, num_steps: Ints,
) -> None:  # fmt: skip
    """Take the step with the largest merit, (gain - price) per fetch, until none is left or the log is full.

    A step costs O(R^2 log R + R S^2 + P E) for bounds and O(W) for each neighbour that they leave.

    Parameters
    ----------
    load
        [L, E + 1, W] tokens scaled so that the mean rank has 1 in each window of weight 1; id E has none.
    old
        [L, P] live map, E in empty slots.
    first_slot, rank_of_slot, rank_scale
        [R + 1], [P], [R] 1 / relative speed.
    price
        [L] what a fetch must gain, as a share of the layer's cost just before.
    most
        [L] most fetches.
    new
        [L, P] out.
    steps, gains, num_steps
        [L, K, 3] out: slot, -1 - other slot of an exchange or the expert that the slot gets, fetches; [L, K] out: by
        how much the logarithm of the layer's cost fell; [L] out: how many steps.
    """
    num_slots, num_ranks, num_ids, num_windows = old.shape[1], rank_scale.size, load.shape[1], load.shape[2]
    state = LayerState(
        first_slot, rank_of_slot, rank_scale, np.empty((num_ids, num_windows)), np.empty(num_slots, np.int32),
        np.empty(num_ids), np.empty((num_ids, num_ranks), np.int16), np.empty((num_ids, num_ranks), np.int16),
        np.empty(num_ids, np.int32), np.empty(num_slots, np.int32), np.empty((num_ranks, num_windows)),
        np.empty(num_ranks), np.empty((num_ranks, num_ids)), np.empty((num_ranks, num_ranks)),
        np.empty((num_slots, num_ids)),
    )  # fmt: skip
    for layer in range(old.shape[0]):
        state.load[:], state.phy2log[:] = load[layer], old[layer]
        _count_and_sum(state)
        state.held_before[:] = state.held
        state.held_before[num_ids - 1] = 1  # an empty slot need not be fetched
        for rank in range(num_ranks):
            _update_rank(state, rank)
        fee, offset, room, num_steps[layer] = price[layer] * state.cost.sum(), 0.0, most[layer], 0
        state.pair_bound[:], state.slot_bound[:] = -np.inf, np.inf
        for rank in range(num_ranks):
            _update_pair_bounds(state, 2 * fee / FREE_WEIGHT, rank)
        while num_steps[layer] < steps.shape[1]:
            before = state.cost.sum()
            last_fee, fee = fee, price[layer] * before
            offset += max(last_fee - fee, 2 / FREE_WEIGHT * (fee - last_fee))  # no merit rises by more
            found = _best_exchange(state, fee, room, LEAST_WORTH * before / FREE_WEIGHT, offset)
            better = _best_replacement(state, fee, room, found[0], offset)
            replaces = better[1] >= 0
            _, slot, other, fetches = better if replaces else found
            if slot < 0:
                break
            if replaces:
                state.phy2log[slot] = other
            else:
                state.phy2log[slot], state.phy2log[other] = state.phy2log[other], state.phy2log[slot]
            other_rank = rank_of_slot[slot if replaces else other]
            _update(state, rank_of_slot[slot], other_rank, 2 * fee / FREE_WEIGHT - offset)
            room -= fetches
            step = steps[layer, num_steps[layer]]
            step[0], step[1], step[2] = slot, other if replaces else -1 - other, fetches
            gains[layer, num_steps[layer]] = np.log(before / state.cost.sum())
            num_steps[layer] += 1
        new[layer] = state.phy2log
