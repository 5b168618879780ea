"""Lowers the busiest moments of many windows under a dispatch rule, from a given map, by random exchanges.

As in `scenario.scenario_kernel`, every window is scaled to mean rank load 1 and the cost of a layer is the sum of p-th
powers of rank loads over ranks and windows: a soft maximum. A step exchanges two slots or gives a slot to another
expert; it is kept if the cost of all ranks whose shares it changes falls by more than the price of the replicas it
fetches. Sums run in four fixed lanes, the same on every machine.
"""

from typing import NamedTuple

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import (
    MIN_RELATIVE_GAIN,
    READ_FLOATS,
    fetches_saved,
    fetches_to_add,
    first_random,
    next_random,
    power,
    sum_of_powers,
)
from eplb.dispatch.replica_shares_kernel import SHARE_RULE, share_rule
from eplb.strategies.under_rule.layer_state_kernel import (
    FREEDOM,
    NONE,
    RANKS,
    Counts,
    Flags,
    Freedom,
    LayerState,
    Ranks,
    blank_state,
    exchange,
    may_move,
    replace,
    shares_after,
    start,
)
from eplb_traces.jit import helper, njit

REPLACE_EVERY = 8  # one try in so many gives a slot to another expert
UNCHANGED = 1e-14  # changes of a share that are rounding


class Windows(NamedTuple):
    """The windows of a layer, and the step under examination."""

    load: Floats  # [E + 1, W]
    rank_load: Floats  # [R, W]
    cost: Floats  # [R]
    change: Floats  # [2, R] what the step adds to the share of its first and of its second expert on each rank
    after: Floats  # [R] cost of the ranks that the step changes
    touched: Ints  # [R] ranks that hold one of the two experts before or after the step: the first `num_touched`
    num_touched: Ints  # [1]


@helper
def _touch(windows: Windows, which: int, rank: int, share: float) -> None:
    is_new = True
    for i in range(windows.num_touched[0]):
        is_new &= windows.touched[i] != rank
    if is_new:
        windows.touched[windows.num_touched[0]] = rank
        windows.num_touched[0] += 1
        windows.change[0, rank] = windows.change[1, rank] = 0.0
    windows.change[which, rank] += share


@helper
def _add_change(state: LayerState, windows: Windows, which: int, expert: int, leaving: int, coming: int) -> None:
    """Write what a step adds to an expert's share on each rank, over relative speed; NONE: no such slot."""
    scale, rank_of_slot = state.ranks.scale, state.ranks.rank_of_slot
    if expert == state.load.size - 1:
        return
    if state.count[expert] == 1 and leaving >= 0 and coming >= 0:
        _touch(windows, which, rank_of_slot[leaving], -scale[rank_of_slot[leaving]])
        _touch(windows, which, rank_of_slot[coming], scale[rank_of_slot[coming]])
        return
    for i in range(state.count[expert]):
        slot = state.slots[expert, i]
        _touch(windows, which, rank_of_slot[slot], -state.share[slot] * scale[rank_of_slot[slot]])
    for i in range(shares_after(state, expert, leaving, coming)):
        rank = state.new_ranks[i]
        _touch(windows, which, rank, state.new_share[i] * scale[rank])


@helper
def _cost_of_row(row: Floats, share: Floats, other_share: Floats, first: float, second: float, doublings: int) -> float:
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    for t in range(0, row.size, 4):
        s0 += power(row[t] + first * share[t] + second * other_share[t], doublings)
        s1 += power(row[t + 1] + first * share[t + 1] + second * other_share[t + 1], doublings)
        s2 += power(row[t + 2] + first * share[t + 2] + second * other_share[t + 2], doublings)
        s3 += power(row[t + 3] + first * share[t + 3] + second * other_share[t + 3], doublings)
    return (s0 + s1) + (s2 + s3)


@helper
def _gains(windows: Windows, expert: int, other: int, doublings: int, least: float) -> bool:
    """Whether the step lowers the cost of the ranks that it changes by more than `least`; fills `after`."""
    before, after, num = 0.0, 0.0, 0
    for i in range(windows.num_touched[0]):
        rank = windows.touched[i]
        if abs(windows.change[0, rank]) > UNCHANGED or abs(windows.change[1, rank]) > UNCHANGED:
            before += windows.cost[rank]
            windows.touched[num] = rank
            num += 1
    windows.num_touched[0] = num
    limit = before * (1 - MIN_RELATIVE_GAIN) - least
    for i in range(num):
        rank = windows.touched[i]
        windows.after[rank] = _cost_of_row(
            windows.rank_load[rank], windows.load[expert], windows.load[other], windows.change[0, rank],
            windows.change[1, rank], doublings,
        )  # fmt: skip
        after += windows.after[rank]
        if after >= limit:
            return False
    return after < limit


@helper
def _take(windows: Windows, expert: int, other: int) -> None:
    """Add the examined step to the loads and costs of the ranks."""
    for i in range(windows.num_touched[0]):
        rank = windows.touched[i]
        first, second = windows.change[0, rank], windows.change[1, rank]
        windows.cost[rank] = windows.after[rank]
        for t in range(windows.load.shape[1]):
            windows.rank_load[rank, t] += first * windows.load[expert, t] + second * windows.load[other, t]


@helper
def _sum_windows(state: LayerState, windows: Windows, doublings: int) -> None:
    """Derive loads and costs of the ranks from the map."""
    windows.rank_load[:] = 0.0
    for slot in range(state.phy2log.size):
        expert, rank = state.phy2log[slot], state.ranks.rank_of_slot[slot]
        for t in range(windows.load.shape[1]):
            windows.rank_load[rank, t] += state.share[slot] * state.ranks.scale[rank] * windows.load[expert, t]
    for rank in range(windows.cost.size):
        windows.cost[rank] = sum_of_powers(windows.rank_load[rank], doublings)


@helper
def _fetches(state: LayerState, before: Counts, expert: int, leaving: int, coming: int) -> int:
    """Fetches that a step costs more for an expert: a replica on a rank that did not hold it before is fetched."""
    num = 0
    if coming >= 0:
        num += fetches_to_add(state.held, before, expert, state.ranks.rank_of_slot[coming])
    if leaving >= 0:
        num -= fetches_saved(state.held, before, expert, state.ranks.rank_of_slot[leaving])
    return num


@helper
def _try_step(
    state: LayerState, windows: Windows, before: Counts, slot: int, other_slot: int, receiver: int, price: float,
    doublings: int,
) -> bool:  # fmt: skip
    """Exchange two slots, or give `slot` to the receiver if `other_slot` is NONE, where that is worth its fetches."""
    expert = state.phy2log[slot]
    other = receiver if other_slot < 0 else np.int64(state.phy2log[other_slot])
    if expert == other or state.fixed[slot] or (other_slot >= 0 and state.fixed[other_slot]):
        return False
    if not may_move(state, expert, slot, other_slot) or not may_move(state, other, other_slot, slot):
        return False
    fetches = _fetches(state, before, expert, slot, other_slot) + _fetches(state, before, other, other_slot, slot)
    windows.num_touched[0] = 0
    _add_change(state, windows, 0, expert, slot, other_slot)
    _add_change(state, windows, 1, other, other_slot, slot)
    least = price * windows.cost.sum() * fetches if fetches > 0 and price > 0 else 0.0
    if not _gains(windows, expert, other, doublings, least):
        return False
    if other_slot < 0:
        replace(state, slot, other)
    else:
        exchange(state, slot, other_slot)
    _take(windows, expert, other)
    return True


@helper
def _descend(
    state: LayerState, windows: Windows, before: Counts, price: float, doublings: int, num_tries: int, random: np.uint64
) -> None:
    """Try steps, every second one out of the costliest rank."""
    first_slot, num_slots = state.ranks.first_slot, np.uint64(state.phy2log.size)
    costliest = np.argmax(windows.cost)
    for turn in range(num_tries):
        random = next_random(random)
        slot = np.int64((random >> np.uint64(4)) % num_slots)
        if turn & 1 == 0:
            width = np.uint64(first_slot[costliest + 1] - first_slot[costliest])
            slot = first_slot[costliest] + np.int64((random >> np.uint64(4)) % width)
        other_slot = np.int64((random >> np.uint64(36)) % num_slots)
        if turn % REPLACE_EVERY == 0:  # a slot elsewhere goes to an expert of the costliest rank
            if state.phy2log[slot] == state.load.size - 1:
                continue
            helped = _try_step(
                state, windows, before, other_slot, NONE, np.int64(state.phy2log[slot]), price, doublings
            )
        elif state.ranks.rank_of_slot[slot] == state.ranks.rank_of_slot[other_slot]:
            continue
        else:
            helped = _try_step(state, windows, before, slot, other_slot, NONE, price, doublings)
        if helped:
            costliest = np.argmax(windows.cost)


@njit(
    f"void(float64[:, :, ::1], {SHARE_RULE}, {RANKS}, {FREEDOM}, boolean[:, ::1], UniTuple(int64, 2),"
    f" UniTuple(int64, 2), {READ_FLOATS}, uint64, int64, int32[:, ::1])"
)
def descend_windows(
    load: Floats, rule: tuple[int, Floats, Floats, Floats, Ints], ranks: tuple[Ints, Ints, Floats, Ints],
    freedom: tuple[Flags, Ints, Ints, int], fixed: Flags, doublings: tuple[int, int], sizes: tuple[int, int],
    price: Floats, seed: int, first_layer: int, phy2log: Map,
) -> None:  # fmt: skip
    """Improve every layer.

    Parameters
    ----------
    load
        [L, E + 1, W] tokens scaled so that the mean rank has 1 in each window; id E, an empty slot, has none; W padded
        with zeros to a multiple of 4.
    rule, ranks, freedom
        The fields of `ShareRule`, `Ranks` and `Freedom`, whose `allowed` is [L, E + 1, R] or the same for all layers.
    fixed
        [L, P] slots that keep their expert.
    doublings, sizes
        The costs of the two descents are of power 2 ** doublings. Most replicas of an expert; steps tried in each
        descent.
    price
        [L] what a fetched replica must take off the cost of its layer, as a share; 0: fetches are free.
    seed, first_layer
        Layer l of this call draws its random numbers from seed and first_layer + l.
    phy2log
        [L, P] in and out. The map at the start is the live one.
    """
    num_ids, num_windows, num_ranks = load.shape[1], load.shape[2], ranks[2].size
    windows = Windows(
        np.empty((num_ids, num_windows)), np.empty((num_ranks, num_windows)), np.empty(num_ranks),
        np.empty((2, num_ranks)), np.empty(num_ranks), np.empty(num_ranks, np.int64), np.zeros(1, np.int64),
    )  # fmt: skip
    for layer in range(load.shape[0]):
        state = blank_state(
            share_rule(rule), Ranks(ranks[0], ranks[1], ranks[2], ranks[3]),
            Freedom(freedom[0][layer % freedom[0].shape[0]], freedom[1], freedom[2], freedom[3]), sizes[0],
        )  # fmt: skip
        windows.load[:] = load[layer]
        start(state, np.zeros(num_ids), fixed[layer], phy2log[layer])
        before = state.held.copy()
        before[num_ids - 1] = 1  # an empty slot need not be fetched
        random = first_random(seed, first_layer + layer)
        for doubling in doublings:
            _sum_windows(state, windows, doubling)
            _descend(state, windows, before, price[layer], doubling, sizes[1], random)
            random = next_random(random)
        phy2log[layer] = state.phy2log
