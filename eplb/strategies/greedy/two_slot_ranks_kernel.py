"""Replica counts for ranks with two slots or one: descent on the best pairing of the copies. Knows arrays only.

A rank with one slot has a hole: a copy of size 0. With two slots a rank and given copies, pairing the largest with the
smallest, the second largest with the second smallest and so on is optimal (an exchange argument), so that only the
counts are left to search. A step takes one copy from an expert and gives it to another.

The pairing stays within T exactly if for every threshold t > T / 2 no more copies are large, t or more, than small
enough beside them, T - t or less (Hall 1935). A copy of size x is large or small for all t up to T / 2 + |x - T / 2|,
so an expert adds one constant to the surplus of large copies over a stretch of thresholds. The sum of what is above 0
is what the pairs exceed T by, together; sums over stretches make a step O(E), without sorting or pairing. Thresholds
whose surplus stays above 0 where no step helps gain weight (Morris 1993, the breakout method), which leads out again.
"""

import math

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb_traces.jit import njit

NUM_THRESHOLDS = 512  # from T / 2 to T
NUM_ABOVE = 128  # further ones, above T: copies that large fit nowhere
NUM_TRIED = 4  # givers and takers whose every combination is tried in a step
START_WEIGHT = 16  # of a threshold; half of it more whenever its surplus is above 0 and no step helps
ROUNDING = 1e-9
NEVER = 1 << 62

PART = (0.0, 0.1, 0.25, 0.5, 0.75, 0.25, 0.5, 0.75)
"""Targets that are tried, as parts of the way from the bound to what is reached."""
STEPS = (300, 300, 300, 300, 300, 100, 100, 200)
"""Most steps of each descent; experts and thresholds alone make their cost, not the slots."""
FIRST_WITH_WEIGHTS = 5
"""The descents before this one end where no step helps."""


@njit("void(float64[::1], int64[::1], float64[::1], int64[::1])")
def _sort_copies(load: Floats, count: Ints, size: Floats, owner: Ints) -> None:
    """List holes, with owner -1, then all copies by ascending size, ties to the lower expert id."""
    at = size.size - count.sum()
    size[:at], owner[:at] = 0.0, -1
    for expert in range(load.size):
        for _ in range(count[expert]):
            size[at] = load[expert] / count[expert]
            owner[at] = expert
            at += 1
    order = np.argsort(size, kind="mergesort")
    size[:] = size[order]
    owner[:] = owner[order]


@njit("float64(float64[::1], int64[::1], float64[::1])")
def _largest_pair(load: Floats, count: Ints, size: Floats) -> float:
    """The most loaded pair of the best pairing; `size` [2 R] is scratch."""
    at = size.size - count.sum()
    size[:at] = 0.0
    for expert in range(load.size):
        size[at : at + count[expert]] = load[expert] / count[expert]
        at += count[expert]
    size.sort()
    largest = 0.0
    for i in range(size.size // 2):
        largest = max(largest, size[i] + size[size.size - 1 - i])
    return largest


@njit("void(float64, int64, float64, int64[:, ::1])")
def _lay_out(load: float, count: int, target: float, stretch: Ints) -> None:
    """Fill for one copy less, as many and one more: how many thresholds the copies meet, and their surplus there."""
    per_threshold = 0.5 * target / NUM_THRESHOLDS
    for step in range(3):
        copies = count + step - 1
        distance = (load / max(1, copies) - 0.5 * target) / per_threshold
        if distance > 0:
            stretch[step, 0] = min(NUM_THRESHOLDS + NUM_ABOVE, math.ceil(distance - ROUNDING))
            stretch[step, 1] = copies
        else:
            stretch[step, 0] = math.floor(-distance + ROUNDING)
            stretch[step, 1] = -copies


@njit("void(int64[::1], int64, int64)")
def _add(surplus: Ints, end: int, copies: int) -> None:
    for i in range(end):
        surplus[i] += copies


@njit("void(int64[::1], int64[::1], int64[:, ::1])")
def _sum_up(surplus: Ints, weight: Ints, total: Ints) -> None:
    """Sums over the thresholds before each: weights of those above 0, of those not below, and the weighted excess."""
    above = not_below = excess = 0
    for i in range(surplus.size):
        total[0, i], total[1, i], total[2, i] = above, not_below, excess
        if surplus[i] >= 0:
            not_below += weight[i]
            if surplus[i] > 0:
                above += weight[i]
                excess += weight[i] * surplus[i]
    total[0, surplus.size], total[1, surplus.size], total[2, surplus.size] = above, not_below, excess


@njit("int64(int64[:, ::1], int64[:, ::1], int64)")
def _estimate(stretch: Ints, total: Ints, step: int) -> int:
    """Change of the weighted excess to first order: where the surplus does not change its sign."""
    now, then = stretch[1, 0], stretch[step, 0]
    near, far = min(now, then), max(now, then)
    first = stretch[step, 1] - stretch[1, 1]
    second = stretch[step, 1] if then > now else -stretch[1, 1]
    rising = 1 if second > 0 else 0
    change = first * total[1 if first > 0 else 0, near]
    return change + second * (total[rising, far] - total[rising, near])


@njit("void(int64[:, ::1], int64, int64)")
def _keep_if_low(lowest: Ints, value: int, expert: int) -> None:
    """Insert (value, expert) into the sorted columns of `lowest` [2, NUM_TRIED], behind equal values."""
    at = lowest.shape[1]
    while at > 0 and lowest[0, at - 1] > value:
        at -= 1
        if at + 1 < lowest.shape[1]:
            lowest[0, at + 1], lowest[1, at + 1] = lowest[0, at], lowest[1, at]
    if at < lowest.shape[1]:
        lowest[0, at], lowest[1, at] = value, expert


@njit("int64(int64[:, ::1], int64[:, ::1], int64[::1], int64[::1], int64[:, ::1], int64)")
def _excess_after(giver: Ints, taker: Ints, surplus: Ints, weight: Ints, total: Ints, least: int) -> int:
    """Weighted excess after a move; stops when it reaches `least`."""
    end = max(max(giver[0, 0], giver[1, 0]), max(taker[1, 0], taker[2, 0]))
    excess = total[2, surplus.size] - total[2, end]
    begin = 0
    while begin < end and excess < least:
        change, upto = 0, end
        for i in range(4):  # what the two have now is taken away, what they will have comes
            stretch = giver[i] if i < 2 else taker[i - 1]
            if begin < stretch[0]:
                upto = min(upto, stretch[0])
                change += stretch[1] if i == 0 or i == 3 else -stretch[1]
        if change == 0:
            excess += total[2, upto] - total[2, begin]
        else:
            for i in range(begin, upto):
                excess += weight[i] * max(surplus[i] + change, 0)
        begin = upto
    return excess


@njit("UniTuple(int64, 2)(float64[::1], int64[::1], int64, float64, int64[:, :, ::1], int64[::1], int64[::1],"
      " int64[:, ::1], int64[:, :, ::1])")  # fmt: skip
def _best_move(
    load: Floats, count: Ints, max_copies: int, target: float, stretch: Ints, surplus: Ints, weight: Ints, total: Ints,
    lowest: Ints,
) -> tuple[int, int]:  # fmt: skip
    """Find the giver and the taker of a copy that lower the weighted excess most; -1s if none do.

    Only the most promising givers and takers, each estimated alone, are combined.
    """
    lowest[:, 0], lowest[:, 1] = NEVER, -1
    for expert in range(load.size):
        if count[expert] > 1 and load[expert] <= 1.2 * target * (count[expert] - 1):
            _keep_if_low(lowest[0], _estimate(stretch[expert], total, 0), expert)
        if count[expert] < max_copies:
            _keep_if_low(lowest[1], _estimate(stretch[expert], total, 2), expert)
    least = total[2, surplus.size]
    best = (-1, -1)
    for giver in lowest[0, 1]:
        for taker in lowest[1, 1]:
            if giver < 0 or taker < 0 or giver == taker:
                continue
            excess = _excess_after(stretch[giver], stretch[taker], surplus, weight, total, least)
            if excess < least:
                least, best = excess, (giver, taker)
    return best


@njit(
    "void(float64[::1], int64, float64, int64, boolean, int64[::1], int64[::1], float64[::1], float64[::1],"
    " int64[:, :, ::1], int64[:, ::1], int64[:, ::1], int64[:, :, ::1])",
)
def _descend(
    load: Floats, max_copies: int, target: float, most_steps: int, with_weights: bool, count: Ints, best_count: Ints,
    reached: Floats, size: Floats, stretch: Ints, threshold: Ints, total: Ints, lowest: Ints,
) -> None:  # fmt: skip
    """Move copies until pairs keep the target, or steps run out; keeps the counts with the least largest pair."""
    surplus, weight = threshold[0], threshold[1]
    surplus[:], weight[:] = 0, START_WEIGHT
    _add(surplus, NUM_THRESHOLDS, -(size.size - count.sum()))
    for expert in range(load.size):
        _lay_out(load[expert], count[expert], target, stretch[expert])
        _add(surplus, stretch[expert, 1, 0], stretch[expert, 1, 1])
    for _ in range(most_steps):
        _sum_up(surplus, weight, total)
        if total[2, surplus.size] == 0:
            break
        giver, taker = _best_move(load, count, max_copies, target, stretch, surplus, weight, total, lowest)
        if giver >= 0:
            for expert in (giver, taker):
                _add(surplus, stretch[expert, 1, 0], -stretch[expert, 1, 1])
                count[expert] += 1 if expert == taker else -1
                _lay_out(load[expert], count[expert], target, stretch[expert])
                _add(surplus, stretch[expert, 1, 0], stretch[expert, 1, 1])
            continue
        if not with_weights:
            break
        largest = _largest_pair(load, count, size)
        if largest < reached[0]:
            reached[0] = largest
            best_count[:] = count
        for i in range(surplus.size):
            if surplus[i] > 0 and weight[i] < 1 << 24:
                weight[i] += weight[i] >> 1
    largest = _largest_pair(load, count, size)
    if largest < reached[0]:
        reached[0] = largest
        best_count[:] = count


@njit("void(Array(float64, 2, 'C', readonly=True), int64, float64[::1], float64, int64[:, ::1], float64[::1])")
def search_counts(load: Floats, num_ranks: int, lower: Floats, tolerance: float, count: Ints, reached: Floats) -> None:
    """Lower the largest folded pair of each layer by moving copies between experts.

    Minimises the largest sum of two copies that share a rank. Descents on the excess of large copies, each for a target
    between `lower` and what is reached; see `PART` and `STEPS`. Best improvement among the most promising
    moves, ties to the lowest giver, then the lowest taker. O(E + NUM_THRESHOLDS) a step, O(P log P) a descent.

    Parameters
    ----------
    load
        [L, E]
    num_ranks
        Ranks with two slots or one; no expert has more copies.
    lower
        [L] a lower bound.
    tolerance
        Relative distance from `lower` at which a layer is good enough.
    count
        [L, E] in and out; each row sums to the slots, from `num_ranks` to twice as many.
    reached
        [L] out: the largest folded pair.
    """
    num_experts = load.shape[1]
    layer_load, size = np.empty(num_experts, dtype=np.float64), np.empty(2 * num_ranks, dtype=np.float64)
    trial_count, best_count = np.empty(num_experts, dtype=np.int64), np.empty(num_experts, dtype=np.int64)
    stretch = np.empty((num_experts, 3, 2), dtype=np.int64)
    threshold = np.empty((2, NUM_THRESHOLDS + NUM_ABOVE), dtype=np.int64)
    total = np.empty((3, NUM_THRESHOLDS + NUM_ABOVE + 1), dtype=np.int64)
    lowest = np.empty((2, 2, NUM_TRIED), dtype=np.int64)
    best = np.empty(1, dtype=np.float64)
    for layer in range(load.shape[0]):
        layer_load[:] = load[layer]
        best_count[:] = count[layer]
        best[0] = _largest_pair(layer_load, best_count, size)
        for i in range(len(PART)):
            if best[0] <= lower[layer] * (1 + tolerance):
                break
            trial_count[:] = best_count
            _descend(
                layer_load, num_ranks, lower[layer] + PART[i] * (best[0] - lower[layer]), STEPS[i],
                i >= FIRST_WITH_WEIGHTS, trial_count, best_count, best, size, stretch, threshold, total, lowest,
            )  # fmt: skip
        count[layer] = best_count
        reached[layer] = best[0]


@njit(
    "boolean(Array(float64, 2, 'C', readonly=True), int64[:, ::1], int64[::1], int32[:, ::1], float64[:, ::1],"
    " float64[:, ::1])",
)
def fold_layers(
    load: Floats, count: Ints, first_slot: Ints, phy2log: Map, slot_load: Floats, rank_load: Floats
) -> bool:
    """Pair the largest copy with the smallest and so on; ranks with one slot take the largest copies, alone.

    Pairs go to the ranks in order, the one with the largest copy first. Two copies of one expert are parted by an
    exchange with the pair where that leaves the larger of the two lowest, ties to the lowest rank. O(P log P) a layer.

    Parameters
    ----------
    load, count
        [L, E]; the counts of a layer sum to P and none exceeds R.
    first_slot
        [R + 1] first slot of each rank, two or one apart, then P.
    phy2log, slot_load, rank_load
        [L, P], [L, P], [L, R] out.

    Returns
    -------
    bool
        False if some layer's copies of one expert could not be parted.
    """
    num_ranks = rank_load.shape[1]
    layer_load = np.empty(load.shape[1], dtype=np.float64)
    size, owner = np.empty(2 * num_ranks, dtype=np.float64), np.empty(2 * num_ranks, dtype=np.int64)
    for layer in range(load.shape[0]):
        layer_load[:] = load[layer]
        _sort_copies(layer_load, count[layer], size, owner)
        next_alone, next_pair = 0, 2 * num_ranks - phy2log.shape[1]
        experts, sizes = phy2log[layer], slot_load[layer]
        for rank in range(num_ranks):
            slot = first_slot[rank]
            if first_slot[rank + 1] == slot + 1:
                at = next_alone
                next_alone += 1
            else:
                at = next_pair
                next_pair += 1
                experts[slot + 1], sizes[slot + 1] = owner[at], size[at]
            experts[slot], sizes[slot] = owner[2 * num_ranks - 1 - at], size[2 * num_ranks - 1 - at]
        for rank in range(num_ranks):
            mine, shared = first_slot[rank] + 1, experts[first_slot[rank]]
            if first_slot[rank + 1] == mine or experts[mine] != shared:
                continue
            best, best_slot = math.inf, -1
            for other in range(num_ranks):
                for slot in range(first_slot[other], first_slot[other + 1]):
                    partner = first_slot[other] + first_slot[other + 1] - 1 - slot
                    if experts[slot] == shared or experts[partner] == shared:
                        continue
                    beside = sizes[partner] if partner != slot else 0.0
                    top = max(sizes[first_slot[rank]] + sizes[slot], beside + sizes[mine])
                    if top < best:
                        best, best_slot = top, slot
            if best_slot < 0:
                return False
            experts[mine], experts[best_slot] = experts[best_slot], experts[mine]
            sizes[mine], sizes[best_slot] = sizes[best_slot], sizes[mine]
        for rank in range(num_ranks):
            rank_load[layer, rank] = sizes[first_slot[rank]]
            if first_slot[rank + 1] == first_slot[rank] + 2:
                rank_load[layer, rank] += sizes[first_slot[rank] + 1]
    return True
