"""Brings every rank of a layer under a limit with few fetched replicas, starting from the live placement.

Loads are scaled so that the mean rank load is 1. Id E stands for an empty slot: it has no load and costs no fetch.

The cost of a placement is the number of (rank, expert) pairs that the live placement lacks: what ranks must fetch.
There are two steps. An exchange swaps the experts of two slots on two ranks (two fetches). A replacement gives a slot,
of an expert that has several replicas, to another expert (one fetch, and every rank with that expert has less load). On
what was moved before they may cost less. The search takes the step that removes the most overload per fetch.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import READ_INTS, READ_MAPS, fetches_saved, fetches_to_add
from eplb.strategies.incremental.layer_steps_kernel import (
    ROUNDING,
    Flags,
    LayerState,
    exchange,
    replace,
    start,
    undo_one,
)
from eplb_traces.jit import helper, njit

FREE_RATE = 2.0  # steps that cost no fetch, or save one, are compared as if they cost half of one
MANY_SLOTS, MOST_MOVED, MOST_OVER = 1024, 0.25, 0.15  # with more slots: shares of slots, of load, to give up for
SLACK_VALUE = 0.02  # worth of room left on the rank that a step fills, in overload per fetch: it decides between equals


class Candidates(NamedTuple):
    """Slots that another expert may get (scratch [P]), and the experts that were tried as receivers."""

    slot: Ints
    most_rate: Floats  # most value per overload
    own_value: Floats  # most value that the slot's own rank adds
    rise: Floats  # overload added on other ranks, when the donor loses a replica
    ranks: NDArray[np.uint64]  # these ranks, as bits modulo 64
    tried: Flags  # [E + 1]


@helper
def _overload(load: float, limit: float, over_price: float) -> float:
    """Load above the limit, plus `over_price` for being over: so one rank brought under beats two brought nearer."""
    return load - limit + over_price if load > limit + ROUNDING else 0.0


@helper
def _rate(num_fetches: int) -> float:
    """One over the fetches that a step costs, which are two at most."""
    return 1.0 if num_fetches == 1 else 0.5 if num_fetches == 2 else FREE_RATE


@helper
def _best_exchange(
    state: LayerState, by_load: Ints, rank: int, over_price: float, every_partner: bool, least: float
) -> tuple[float, int, int]:
    """Find the exchange of a rank over its limit with one that stays under, of more value than `least`; else -1s.

    Partners are taken in the order `by_load` [R], all or only those that changed.
    """
    held, before, limit, rank_load = state.held, state.held_before, state.limit, state.rank_load
    phy2log, replica_load, first_slot, touched = state.phy2log, state.replica_load, state.first_slot, state.touched
    overload, changed = state.overload, state.changed
    best = (least, -1, -1)
    need = rank_load[rank] - limit[rank] - ROUNDING
    for partner in by_load:
        if overload[partner] > 0.0 or not (every_partner or changed[partner]):
            continue
        room = limit[partner] - rank_load[partner]
        most_gain = need + over_price if room >= need else room
        most_rate = FREE_RATE if touched[rank] or touched[partner] else 0.5
        if most_gain * most_rate + SLACK_VALUE * room <= best[0]:
            continue
        for slot in range(first_slot[rank], first_slot[rank + 1]):
            expert = phy2log[slot]
            value = replica_load[expert]
            if value == 0.0 or held[expert, partner] > 0:
                continue
            fetches_here = fetches_to_add(held, before, expert, partner) - fetches_saved(held, before, expert, rank)
            most_rate = _rate(fetches_here + (0 if touched[rank] else 1) - (1 if touched[partner] else 0))
            if (value if value < need else most_gain) * most_rate + SLACK_VALUE * room <= best[0]:
                continue
            for other_slot in range(first_slot[partner], first_slot[partner + 1]):
                other = phy2log[other_slot]
                moved = value - replica_load[other]
                if moved <= ROUNDING or moved > room:
                    continue
                gain = need + over_price if moved >= need else moved
                bonus = SLACK_VALUE * (room - moved)
                if gain * most_rate + bonus <= best[0] or held[other, rank] > 0:
                    continue
                fetches = fetches_here + fetches_to_add(held, before, other, rank)
                rate = _rate(fetches - fetches_saved(held, before, other, partner))
                if gain * rate + bonus > best[0]:
                    best = (gain * rate + bonus, slot, other_slot)
    return best


@helper
def _list_candidates(state: LayerState, candidates: Candidates, over_price: float) -> int:
    """List the slots of experts with several replicas, and the empty ones; returns how many."""
    phy2log, rank_of_slot, head, following = state.phy2log, state.rank_of_slot, state.head, state.following
    load, count, replica_load, rank_load = state.load, state.num_replicas, state.replica_load, state.rank_load
    limit, overload, size = state.limit, state.overload, 0
    for slot in range(phy2log.size):
        donor, rank = phy2log[slot], rank_of_slot[slot]
        if count[donor] == 1:
            continue
        rise = load[donor] / (count[donor] - 1) - replica_load[donor]
        total, ranks = 0.0, np.uint64(0)
        at = head[donor]
        while at >= 0:
            other = rank_of_slot[at]
            if other != rank:
                ranks |= np.uint64(1) << np.uint64(other % 64)
                after = _overload(rank_load[other] + rise, limit[other], over_price)
                total += after - overload[other]
            at = following[at]
        candidates.slot[size], candidates.rise[size], candidates.ranks[size] = slot, total, ranks
        candidates.most_rate[size] = FREE_RATE if state.touched[rank] else 1.0
        room = limit[rank] - rank_load[rank] + replica_load[donor]
        candidates.own_value[size] = overload[rank] * candidates.most_rate[size] + SLACK_VALUE * room
        size += 1
    return size


@helper
def _add_shared(state: LayerState, gain: float, slot: int, receiver: int, fall: float, over_price: float) -> float:
    """Correct a gain where a rank has both experts, so that one load falls and one rises there."""
    donor = state.phy2log[slot]
    rise = state.load[donor] / (state.num_replicas[donor] - 1) - state.replica_load[donor]
    at = state.head[donor]
    while at >= 0:
        rank = state.rank_of_slot[at]
        if rank != state.rank_of_slot[slot] and state.held[receiver, rank] > 0:
            load, limit = state.rank_load[rank], state.limit[rank]
            gain += _overload(load + rise, limit, over_price) - state.overload[rank]
            gain += _overload(load - fall, limit, over_price)
            gain -= _overload(load - fall + rise, limit, over_price)
        at = state.following[at]
    return gain


@helper
def _best_replacement(
    state: LayerState, candidates: Candidates, over_price: float, least: float
) -> tuple[float, int, int]:
    """Find the slot, and the expert of a rank over its limit that gets it, of more value than `least`; else -1s."""
    held, before, rank_load, limit = state.held, state.held_before, state.rank_load, state.limit
    replica_load, own_value, most_rate = state.replica_load, candidates.own_value, candidates.most_rate
    best, size = (least, -1, -1), _list_candidates(state, candidates, over_price)
    phy2log, rank_of_slot, overload, rise = state.phy2log, state.rank_of_slot, state.overload, candidates.rise
    donor_ranks = candidates.ranks
    candidates.tried[:] = False
    for full_slot in range(phy2log.size):
        receiver = phy2log[full_slot]
        is_over = overload[rank_of_slot[full_slot]] > 0.0
        if not is_over or candidates.tried[receiver] or replica_load[receiver] == 0.0:
            continue
        candidates.tried[receiver] = True
        received = state.load[receiver] / (state.num_replicas[receiver] + 1)
        fall = replica_load[receiver] - received
        total, ranks = 0.0, np.uint64(0)
        at = state.head[receiver]
        while at >= 0:
            rank = rank_of_slot[at]
            ranks |= np.uint64(1) << np.uint64(rank % 64)
            total += overload[rank] - _overload(rank_load[rank] - fall, limit[rank], over_price)
            at = state.following[at]
        for i in range(size):
            certain = rise[i] if ranks & donor_ranks[i] == 0 else 0.0  # where no rank has both
            if (total - certain) * most_rate[i] + own_value[i] <= best[0]:
                continue
            slot = candidates.slot[i]
            donor, rank = phy2log[slot], rank_of_slot[slot]
            if held[receiver, rank] > 0:
                continue
            after = rank_load[rank] - replica_load[donor] + received
            bonus = SLACK_VALUE * (limit[rank] - after)
            rate = _rate(fetches_to_add(held, before, receiver, rank) - fetches_saved(held, before, donor, rank))
            gain = total + overload[rank] - _overload(after, limit[rank], over_price)
            if (gain - certain) * rate + bonus <= best[0]:
                continue
            gain -= rise[i]
            if certain == 0.0:
                gain = _add_shared(state, gain, slot, receiver, fall, over_price)
            if gain > ROUNDING and gain * rate + bonus > best[0]:
                best = (gain * rate + bonus, slot, receiver)
    return best


@helper
def _search(state: LayerState, candidates: Candidates, best_value: Floats, best_slots: Ints, over_price: float) -> bool:
    """Take the best step until no rank is over or none helps; True where the layer is given up as too far off.

    The best exchange of each rank, `best_value` [R] and `best_slots` [R, 2], stays valid until one of its two ranks
    changes.
    """
    num_slots, num_ranks, over = state.phy2log.size, state.rank_load.size, np.inf
    state.changed[:] = True
    for step in range(4 * num_slots):
        for rank in range(num_ranks):
            state.overload[rank] = _overload(state.rank_load[rank], state.limit[rank], over_price)
        if num_slots > MANY_SLOTS and step % 32 == 0:
            last_over, over = over, np.maximum(state.rank_load - state.limit, 0.0).sum()
            # At the pace of the last 32 steps, how many more? More than may be moved?
            if over > MOST_OVER * num_ranks or 32 * over > (MOST_MOVED * num_slots - step) * (last_over - over):
                return True
        if not state.overload.any():
            return False
        by_load = np.argsort(state.rank_load, kind="mergesort")
        value, slot, other_slot = 0.0, -1, -1
        for rank in range(num_ranks):
            if state.overload[rank] == 0.0:
                continue  # a rank that comes to be over its limit has changed
            last = best_slots[rank, 1]
            anew = state.changed[rank] or (last >= 0 and state.changed[state.rank_of_slot[last]])
            if anew:
                best_value[rank], best_slots[rank] = 0.0, -1
            found = _best_exchange(state, by_load, rank, over_price, anew, best_value[rank])
            if found[1] >= 0:
                best_value[rank], best_slots[rank, 0], best_slots[rank, 1] = found
            if best_slots[rank, 0] >= 0 and best_value[rank] > value:
                value, slot, other_slot = best_value[rank], best_slots[rank, 0], best_slots[rank, 1]
        found = _best_replacement(state, candidates, over_price, value)
        state.changed[:] = False
        if found[1] >= 0:
            replace(state, found[1], found[2])
        elif slot >= 0:
            exchange(state, slot, other_slot)
        else:
            return False
    return False


@helper
def _start_from(state: LayerState, old: Map, live: Map, first_live: Ints) -> None:
    """Derive the state from the map `old`, and mark ranks that do not hold exactly what they had."""
    start(state, old)
    state.touched[:] = False
    for slot in range(old.size):
        if state.held_before[old[slot], state.rank_of_slot[slot]] == 0:
            state.touched[state.rank_of_slot[slot]] = True
    for rank in range(first_live.size - 1):
        for slot in range(first_live[rank], first_live[rank + 1]):
            if live[slot] < state.load.size - 1 and state.held[live[slot], rank] == 0:
                state.touched[rank] = True


@njit(
    f"void(float64[:, ::1], {READ_MAPS}, {READ_MAPS}, {READ_INTS}, {READ_INTS}, {READ_INTS}, float64[:, ::1],"
    " float64[:, ::1], int64, int32[:, ::1], int64[::1])",
)
def reduce_overloads(
    load: Floats, old: Map, live: Map, first_live: Ints, first_slot: Ints, rank_of_slot: Ints, limit: Floats,
    over_prices: Floats, num_always: int, new: Map, num_fetched: Ints,
) -> None:  # fmt: skip
    """Bring each layer under its limits with few fetches: the best of some searches, one for each of `over_prices`.

    Of the searches that end under the limits the one with the fewest fetches is kept, ties to the earlier one; if none
    does, the one with the least largest excess. A step costs O(H R S^2), later only for pairs that changed, and
    O(H S G) for replacements, with H ranks over their limit and G replicas of experts with several.

    Parameters
    ----------
    load, old
        [L, E + 1] scaled to mean rank load 1, 0 for id E; [L, P] the placement to start from, E in empty slots.
    live, first_live
        [L, Q] experts that ranks have and need not fetch, by rank, E in empty slots; [R + 1] where each rank's begin.
        `old` and `first_slot` where the search starts from the live placement.
    first_slot, rank_of_slot, limit
        [R + 1], [P], [L, R]
    over_prices, num_always
        [L, K] prices of `_overload`, one a search; only so many searches are made if one of them succeeds.
    new, num_fetched
        [L, P], [L] out.
    """
    num_slots, num_ranks, num_ids = old.shape[1], limit.shape[1], load.shape[1]
    state = LayerState(
        first_slot, rank_of_slot, np.empty(num_ids), np.empty(num_ranks), np.empty((num_ids, num_ranks), np.int16),
        np.empty(num_slots, np.int32), np.empty(num_ids), np.empty(num_ids, np.int64),
        np.empty((num_ids, num_ranks), np.int16), np.empty(num_ids, np.int32), np.empty(num_slots, np.int32),
        np.empty(num_ranks), np.empty(num_ranks), np.empty(num_ranks, np.bool_), np.empty(num_ranks, np.bool_),
    )  # fmt: skip
    candidates = Candidates(
        np.empty(num_slots, np.int64), np.empty(num_slots), np.empty(num_slots), np.empty(num_slots),
        np.empty(num_slots, np.uint64), np.empty(num_ids, np.bool_),
    )  # fmt: skip
    best_value, best_slots = np.empty(num_ranks), np.empty((num_ranks, 2), np.int64)
    for layer in range(load.shape[0]):
        state.load[:], state.limit[:] = load[layer], limit[layer]
        state.held_before[:] = 0
        for rank in range(num_ranks):
            for slot in range(first_live[rank], first_live[rank + 1]):
                state.held_before[live[layer, slot], rank] += 1
        state.held_before[num_ids - 1] = 1
        kept_excess, num_fetched[layer], hopeless = np.inf, 0, False
        for trial, over_price in enumerate(over_prices[layer]):
            if trial >= num_always and (kept_excess == 0.0 or hopeless):
                break
            _start_from(state, old[layer], live[layer], first_live)
            hopeless = _search(state, candidates, best_value, best_slots, over_price)
            excess = max(0.0, (state.rank_load - state.limit).max() - ROUNDING)
            while excess == 0.0 and undo_one(state, live[layer], first_live):
                continue
            fetched = 0
            for slot in range(num_slots):  # no step puts an expert on a rank twice: each such slot is a fetch
                fetched += state.held_before[state.phy2log[slot], rank_of_slot[slot]] == 0
            if excess < kept_excess or (excess == kept_excess and fetched < num_fetched[layer]):
                kept_excess = excess
                new[layer], num_fetched[layer] = state.phy2log, fetched
