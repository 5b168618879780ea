"""Replica counts for ranks with two slots: descent on the best pairing of the copies. Knows arrays only.

With two slots a rank and given copies, pairing the largest with the smallest, the second largest with the second
smallest and so on is optimal (an exchange argument), so that only the counts are left to search. A step takes one copy
from an expert and gives it to another.
"""

import math

import numpy as np
from numpy.typing import NDArray

from eplb_traces.jit import njit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Map = NDArray[np.int32]

MIN_RELATIVE_GAIN = 1e-9  # a step must lower the excess by this much, or rounding could make it circle
NEVER = 1 << 40


@njit("void(float64[::1], int64[::1], float64[::1], int64[::1])")
def _sort_copies(load: Floats, count: Ints, size: Floats, owner: Ints) -> None:
    """List all copies by ascending size, ties to the lower expert id."""
    at = 0
    for expert in range(load.size):
        for _ in range(count[expert]):
            size[at] = load[expert] / count[expert]
            owner[at] = expert
            at += 1
    order = np.argsort(size, kind="mergesort")
    size[:] = size[order]
    owner[:] = owner[order]


@njit("UniTuple(float64, 2)(float64[::1], float64)")
def _excess(size: Floats, target: float) -> tuple[float, float]:
    """Sum over the folded pairs of what exceeds the target, and the largest pair."""
    total, largest = 0.0, 0.0
    for i in range(size.size // 2):
        pair = size[i] + size[size.size - 1 - i]
        largest = max(largest, pair)
        total += max(0.0, pair - target)
    return total, largest


@njit("float64(float64[::1], int64[::1], float64[::1], int64[::1], int64, int64, float64, float64, float64[::1])")
def _excess_after(
    load: Floats, count: Ints, size: Floats, owner: Ints, giver: int, taker: int, target: float, least: float,
    merged: Floats,
) -> float:  # fmt: skip
    """The excess once `giver` has one copy less and `taker` one more; stops when it reaches `least`."""
    giver_left, taker_left = count[giver] - 1, count[taker] + 1
    giver_size, taker_size = load[giver] / giver_left, load[taker] / taker_left
    at = 0
    for i in range(size.size):
        if owner[i] == giver or owner[i] == taker:
            continue
        while giver_left > 0 and giver_size <= size[i] and (taker_left == 0 or giver_size <= taker_size):
            merged[at] = giver_size
            at += 1
            giver_left -= 1
        while taker_left > 0 and taker_size <= size[i]:
            merged[at] = taker_size
            at += 1
            taker_left -= 1
        while giver_left > 0 and giver_size <= size[i]:
            merged[at] = giver_size
            at += 1
            giver_left -= 1
        merged[at] = size[i]
        at += 1
    while giver_left > 0 and (taker_left == 0 or giver_size <= taker_size):
        merged[at] = giver_size
        at += 1
        giver_left -= 1
    while taker_left > 0:
        merged[at] = taker_size
        at += 1
        taker_left -= 1
    while giver_left > 0:
        merged[at] = giver_size
        at += 1
        giver_left -= 1
    total = 0.0
    for i in range(size.size // 2):
        pair = merged[i] + merged[size.size - 1 - i]
        if pair > target:
            total += pair - target
            if total >= least:
                break
    return total


@njit("int64(float64, int64, float64, float64)")
def _violation(load: float, count: int, large: float, small: float) -> int:
    """What the copies of an expert add to the surplus of large copies over small ones."""
    size = load / count
    if size >= large:
        return count
    return -count if size <= small else 0


@njit(
    "int64(float64[::1], int64, float64, int64, int64[::1], float64[::1], int64[::1], float64[::1], int64[:, ::1],"
    " int64[::1], float64[::1])",
)
def _descend(
    load: Floats, max_copies: int, target: float, most_trials: int, count: Ints, size: Floats, owner: Ints,
    merged: Floats, change: Ints, best_count: Ints, reached: Floats,
) -> int:  # fmt: skip
    """Move copies while that lowers the excess over `target`; keeps the counts with the least largest pair.

    A move is tried only if it relieves the largest pair: its large copies become fewer or its small ones more. Returns
    the number of moves tried.
    """
    num_slots = size.size
    num_tried = 0
    _sort_copies(load, count, size, owner)
    excess, _ = _excess(size, target)
    while excess > 1e-12 * target and num_tried < most_trials:
        worst = 0
        for i in range(1, num_slots // 2):
            if size[i] + size[num_slots - 1 - i] > size[worst] + size[num_slots - 1 - worst]:
                worst = i
        large = size[num_slots - 1 - worst]
        for expert in range(load.size):
            here = _violation(load[expert], count[expert], large, target - large)
            change[0, expert] = change[1, expert] = NEVER
            if count[expert] > 1 and load[expert] / (count[expert] - 1) <= target:
                change[0, expert] = _violation(load[expert], count[expert] - 1, large, target - large) - here
            if count[expert] < max_copies:
                change[1, expert] = _violation(load[expert], count[expert] + 1, large, target - large) - here
        least = excess * (1 - MIN_RELATIVE_GAIN)
        best_giver, best_taker = -1, -1
        for giver in range(load.size):
            if change[0, giver] == NEVER:
                continue
            for taker in range(load.size):
                if taker == giver or change[0, giver] + change[1, taker] >= 0:
                    continue
                num_tried += 1
                after = _excess_after(load, count, size, owner, giver, taker, target, least, merged)
                if after < least:
                    least, best_giver, best_taker = after, giver, taker
        if best_giver < 0:
            break
        count[best_giver] -= 1
        count[best_taker] += 1
        _sort_copies(load, count, size, owner)
        excess, largest = _excess(size, target)
        if largest < reached[0]:
            reached[0] = largest
            best_count[:] = count
    return num_tried


@njit(
    "void(Array(float64, 2, 'C', readonly=True), int64, float64[::1], float64, int64, int64[:, ::1], float64[::1])",
)
def search_counts(
    load: Floats, max_copies: int, lower: Floats, tolerance: float, most_trials: int, count: Ints, reached: Floats
) -> None:
    """Lower the largest folded pair of each layer by moving copies between experts.

    Minimises the largest sum of two copies that share a rank. The excess over a trial target is descended on, for
    targets from `lower` up to three quarters of the way to what is reached. Best improvement, ties to the lowest giver,
    then the lowest taker. O(most_trials P) a layer.

    Parameters
    ----------
    load
        [L, E]
    max_copies
        Most copies of an expert.
    lower
        [L] a lower bound.
    tolerance
        Relative distance from `lower` at which a layer is good enough.
    most_trials
        Moves tried for each target before its descent ends.
    count
        [L, E] in and out; each row sums to an even number of copies, two a rank.
    reached
        [L] out: the largest folded pair.
    """
    num_experts = load.shape[1]
    layer_load = np.empty(num_experts, dtype=np.float64)
    trial_count = np.empty(num_experts, dtype=np.int64)
    best_count = np.empty(num_experts, dtype=np.int64)
    change = np.empty((2, num_experts), dtype=np.int64)
    best = np.empty(1, dtype=np.float64)
    for layer in range(load.shape[0]):
        layer_load[:] = load[layer]
        num_slots = count[layer].sum()
        size, merged = np.empty(num_slots, dtype=np.float64), np.empty(num_slots, dtype=np.float64)
        owner = np.empty(num_slots, dtype=np.int64)
        best_count[:] = count[layer]
        _sort_copies(layer_load, best_count, size, owner)
        best[0] = _excess(size, 0.0)[1]
        for part in (0.0, 0.1, 0.25, 0.5, 0.75):
            if best[0] <= lower[layer] * (1 + tolerance):
                break
            trial_count[:] = best_count
            _descend(
                layer_load, max_copies, lower[layer] + part * (best[0] - lower[layer]), most_trials, trial_count,
                size, owner, merged, change, best_count, best,
            )  # fmt: skip
        count[layer] = best_count
        reached[layer] = best[0]


@njit(
    "boolean(Array(float64, 2, 'C', readonly=True), int64[:, ::1], int32[:, ::1], float64[:, ::1], float64[:, ::1])",
)
def fold_layers(load: Floats, count: Ints, phy2log: Map, slot_load: Floats, rank_load: Floats) -> bool:
    """Pair the largest copy with the smallest and so on, rank r taking the r-th pair.

    Two copies of one expert are parted by an exchange with the pair where that leaves the larger of the two lowest,
    ties to the lowest rank. O(P log P) a layer.

    Parameters
    ----------
    load, count
        [L, E]; the counts of a layer sum to P and none exceeds R.
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
        for rank in range(num_ranks):
            last = 2 * num_ranks - 1 - rank
            phy2log[layer, 2 * rank], phy2log[layer, 2 * rank + 1] = owner[last], owner[rank]
            slot_load[layer, 2 * rank], slot_load[layer, 2 * rank + 1] = size[last], size[rank]
        experts, sizes = phy2log[layer], slot_load[layer]
        for rank in range(num_ranks):
            mine, shared = 2 * rank + 1, experts[2 * rank]
            if experts[mine] != shared:
                continue
            best, best_slot = math.inf, -1
            for slot in range(2 * num_ranks):
                partner = slot + 1 - 2 * (slot % 2)
                if experts[slot] == shared or experts[partner] == shared:
                    continue
                top = max(sizes[2 * rank] + sizes[slot], sizes[partner] + sizes[mine])
                if top < best:
                    best, best_slot = top, slot
            if best_slot < 0:
                return False
            experts[mine], experts[best_slot] = experts[best_slot], experts[mine]
            sizes[mine], sizes[best_slot] = sizes[best_slot], sizes[mine]
        for rank in range(num_ranks):
            rank_load[layer, rank] = sizes[2 * rank] + sizes[2 * rank + 1]
    return True
