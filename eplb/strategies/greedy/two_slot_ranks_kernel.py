"""Searches replica counts for ranks with two slots or one, and pairs the largest replica with the smallest.

A rank with one slot gets an empty slot beside it: a replica of size 0. For given counts this pairing is optimal (an
exchange argument), so that only the counts are searched. A step moves one replica from a donor expert to a receiver.

Pairs of at most T exist exactly if for every threshold t > T / 2 no more replicas are large (t or more) than small
enough beside them (T - t or less) (Hall 1935). A replica of size x is large or small for all t up to
T / 2 + |x - T / 2|, so an expert adds one constant to the surplus of large replicas over a segment of thresholds. The
sum of the surpluses above 0 is what the pairs exceed T by, together; sums over segments make a step O(E). Thresholds
whose surplus stays above 0 where no step lowers the excess gain weight (breakout method, Morris 1993).
"""

import math
from typing import NamedTuple

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import READ_FLOATS_2D, READ_INTS
from eplb_traces.jit import helper, njit

NUM_THRESHOLDS = 512  # from T / 2 to T
NUM_ABOVE = 128  # further ones, above T: replicas that large fit nowhere
NUM_TRIED = 4  # donors and receivers whose every combination is tried in a step
START_WEIGHT = 16  # of a threshold; half of it more whenever its surplus is above 0 and no step lowers the excess
ROUNDING = 1e-9
NEVER = 1 << 62

PART = (0.0, 0.1, 0.25, 0.5, 0.75, 0.25, 0.5, 0.75)
"""Targets of the descents, as parts of the way from the bound to what is reached."""
STEPS = (300, 300, 300, 300, 300, 100, 100, 200)
"""Most steps of each descent; experts and thresholds alone make their cost, not the slots."""
FIRST_WITH_WEIGHTS = 5
"""The descents before this one end where no step lowers the excess."""


class LayerState(NamedTuple):
    """A layer in the search and its scratch arrays, for N thresholds."""

    load: Floats  # [E]
    count: Ints  # [E] replicas of the present step
    best_count: Ints  # [E] counts with the lowest largest pair so far
    segment: Ints  # [E, 3, 2] one replica less, as many, one more: thresholds from the first on, surplus added there
    surplus: Ints  # [N] large replicas less those small enough beside them
    weight: Ints  # [N]
    total: Ints  # [3, N + 1] see `_sum_up`
    candidates: Ints  # [2, 2, NUM_TRIED] estimates and ids of donors, then of receivers
    size: Floats  # [2 R] of every replica and empty slot
    owner: Ints  # [2 R] expert of each; -1 for an empty slot


@helper
def _list_replicas(load: Floats, count: Ints, size: Floats, owner: Ints) -> None:
    """List empty slots, then the replicas in order of their experts."""
    at = size.size - count.sum()
    size[:at], owner[:at] = 0.0, -1
    for expert in range(load.size):
        for _ in range(count[expert]):
            size[at], owner[at] = load[expert] / count[expert], expert
            at += 1


@helper
def _keep_if_better(state: LayerState, reached: float) -> float:
    """Pair the largest replica with the smallest; keep the counts if the largest pair is below `reached`."""
    size = state.size
    _list_replicas(state.load, state.count, size, state.owner)
    size.sort()
    largest = 0.0
    for i in range(size.size // 2):
        largest = max(largest, size[i] + size[size.size - 1 - i])
    if largest < reached:
        state.best_count[:] = state.count
        return largest
    return reached


@helper
def _set_count(state: LayerState, expert: int, count: int, target: float) -> None:
    """Give an expert so many replicas, fill its segments and add the present one to the surplus."""
    per_threshold = 0.5 * target / NUM_THRESHOLDS
    segment = state.segment[expert]
    for step in range(3):
        replicas = count + step - 1
        distance = (state.load[expert] / max(1, replicas) - 0.5 * target) / per_threshold
        if distance > 0:
            segment[step, 0] = min(NUM_THRESHOLDS + NUM_ABOVE, math.ceil(distance - ROUNDING))
            segment[step, 1] = replicas
        else:
            segment[step, 0] = math.floor(-distance + ROUNDING)
            segment[step, 1] = -replicas
    state.count[expert] = count
    _add(state.surplus, segment[1, 0], segment[1, 1])


@helper
def _add(surplus: Ints, end: int, replicas: int) -> None:
    for i in range(end):
        surplus[i] += replicas


@helper
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


@helper
def _estimate(segment: Ints, total: Ints, step: int) -> int:
    """Change of the weighted excess to first order: where the surplus does not change its sign."""
    now, then = segment[1, 0], segment[step, 0]
    near, far = min(now, then), max(now, then)
    first = segment[step, 1] - segment[1, 1]
    second = segment[step, 1] if then > now else -segment[1, 1]
    rising = 1 if second > 0 else 0
    change = first * total[1 if first > 0 else 0, near]
    return change + second * (total[rising, far] - total[rising, near])


@helper
def _keep_if_low(lowest: Ints, value: int, expert: int) -> None:
    """Insert (value, expert) into the sorted columns of `lowest` [2, NUM_TRIED], behind equal values."""
    at = lowest.shape[1]
    while at > 0 and lowest[0, at - 1] > value:
        at -= 1
        if at + 1 < lowest.shape[1]:
            lowest[0, at + 1], lowest[1, at + 1] = lowest[0, at], lowest[1, at]
    if at < lowest.shape[1]:
        lowest[0, at], lowest[1, at] = value, expert


@helper
def _excess_after(donor: Ints, receiver: Ints, surplus: Ints, weight: Ints, total: Ints, least: int) -> int:
    """Weighted excess after a move; stops when it reaches `least`."""
    end = max(max(donor[0, 0], donor[1, 0]), max(receiver[1, 0], receiver[2, 0]))
    excess = total[2, surplus.size] - total[2, end]
    begin = 0
    while begin < end and excess < least:
        change, upto = 0, end
        for i in range(4):  # the present segments are subtracted, those after the move added
            segment = donor[i] if i < 2 else receiver[i - 1]
            if begin < segment[0]:
                upto = min(upto, segment[0])
                change += segment[1] if i == 0 or i == 3 else -segment[1]
        if change == 0:
            excess += total[2, upto] - total[2, begin]
        else:
            for i in range(begin, upto):
                excess += weight[i] * max(surplus[i] + change, 0)
        begin = upto
    return excess


@helper
def _best_move(state: LayerState, max_replicas: int, target: float) -> tuple[int, int]:
    """Find the donor and the receiver of a replica that lower the weighted excess most; -1s if none do.

    Only the most promising donors and receivers, each estimated alone, are combined.
    """
    load, count, segment, surplus, total = state.load, state.count, state.segment, state.surplus, state.total
    donors, receivers = state.candidates[0], state.candidates[1]
    state.candidates[:, 0], state.candidates[:, 1] = NEVER, -1
    for expert in range(load.size):
        if count[expert] > 1 and load[expert] <= 1.2 * target * (count[expert] - 1):
            _keep_if_low(donors, _estimate(segment[expert], total, 0), expert)
        if count[expert] < max_replicas:
            _keep_if_low(receivers, _estimate(segment[expert], total, 2), expert)
    least = total[2, surplus.size]
    best = (-1, -1)
    for donor in donors[1]:
        for receiver in receivers[1]:
            if donor < 0 or receiver < 0 or donor == receiver:
                continue
            excess = _excess_after(segment[donor], segment[receiver], surplus, state.weight, total, least)
            if excess < least:
                least, best = excess, (donor, receiver)
    return best


@helper
def _descend(
    state: LayerState, max_replicas: int, target: float, most_steps: int, with_weights: bool, reached: float
) -> float:
    """Move replicas until pairs keep the target, or steps run out; returns the lowest largest pair so far."""
    surplus, weight = state.surplus, state.weight
    state.count[:] = state.best_count
    surplus[:], weight[:] = 0, START_WEIGHT
    _add(surplus, NUM_THRESHOLDS, -(state.size.size - state.count.sum()))
    for expert in range(state.load.size):
        _set_count(state, expert, state.count[expert], target)
    for _ in range(most_steps):
        _sum_up(surplus, weight, state.total)
        if state.total[2, surplus.size] == 0:
            break
        donor, receiver = _best_move(state, max_replicas, target)
        if donor >= 0:
            for expert in (donor, receiver):
                _add(surplus, state.segment[expert, 1, 0], -state.segment[expert, 1, 1])
                _set_count(state, expert, state.count[expert] + (1 if expert == receiver else -1), target)
            continue
        if not with_weights:
            break
        reached = _keep_if_better(state, reached)
        for i in range(surplus.size):
            if surplus[i] > 0 and weight[i] < 1 << 24:
                weight[i] += weight[i] >> 1
    return _keep_if_better(state, reached)


@njit(f"void({READ_FLOATS_2D}, int64, float64[::1], float64, int64[:, ::1], float64[::1])")
def search_counts(load: Floats, num_ranks: int, lower: Floats, tolerance: float, count: Ints, reached: Floats) -> None:
    """Lower the largest pair of each layer by moving replicas between experts.

    Descents on the excess of large replicas, each for a target between `lower` and what is reached. Best improvement
    among the most promising moves, ties to the lowest donor, then receiver. O(E + NUM_THRESHOLDS) a step, O(P log P) a
    descent.

    Parameters
    ----------
    load
        [L, E]
    num_ranks
        Ranks with two slots or one; no expert has more replicas.
    lower
        [L] a lower bound.
    tolerance
        Relative distance from `lower` at which a layer is good enough.
    count
        [L, E] in and out; each row sums to the slots, from `num_ranks` to twice as many.
    reached
        [L] out: the largest pair.
    """
    num_experts, num_thresholds = load.shape[1], NUM_THRESHOLDS + NUM_ABOVE
    state = LayerState(
        np.empty(num_experts), np.empty(num_experts, np.int64), np.empty(num_experts, np.int64),
        np.empty((num_experts, 3, 2), np.int64), np.empty(num_thresholds, np.int64), np.empty(num_thresholds, np.int64),
        np.empty((3, num_thresholds + 1), np.int64), np.empty((2, 2, NUM_TRIED), np.int64),
        np.empty(2 * num_ranks), np.empty(2 * num_ranks, np.int64),
    )  # fmt: skip
    for layer in range(load.shape[0]):
        state.load[:], state.count[:], state.best_count[:] = load[layer], count[layer], count[layer]
        best = _keep_if_better(state, np.inf)
        for i in range(len(PART)):
            if best <= lower[layer] * (1 + tolerance):
                break
            target = lower[layer] + PART[i] * (best - lower[layer])
            best = _descend(state, num_ranks, target, STEPS[i], i >= FIRST_WITH_WEIGHTS, best)
        count[layer] = state.best_count
        reached[layer] = best


@helper
def _separate(first_slot: Ints, rank: int, experts: Map, sizes: Floats) -> bool:
    """Exchange the second slot of a rank for the one that leaves the larger of the two ranks lowest; False if none."""
    kept = first_slot[rank]
    moved, shared = kept + 1, experts[kept]
    best, best_slot = math.inf, -1
    for other in range(first_slot.size - 1):
        for slot in range(first_slot[other], first_slot[other + 1]):
            partner = first_slot[other] + first_slot[other + 1] - 1 - slot
            if experts[slot] == shared or experts[partner] == shared:
                continue
            beside = sizes[partner] if partner != slot else 0.0
            top = max(sizes[kept] + sizes[slot], beside + sizes[moved])
            if top < best:
                best, best_slot = top, slot
    if best_slot < 0:
        return False
    experts[moved], experts[best_slot] = experts[best_slot], experts[moved]
    sizes[moved], sizes[best_slot] = sizes[best_slot], sizes[moved]
    return True


@njit(f"boolean({READ_FLOATS_2D}, int64[:, ::1], {READ_INTS}, int32[:, ::1], float64[:, ::1], float64[:, ::1])")
def pair_layers(
    load: Floats, count: Ints, first_slot: Ints, phy2log: Map, slot_load: Floats, rank_load: Floats
) -> bool:
    """Pair the largest replica with the smallest and so on; ranks with one slot take the largest replicas, alone.

    Pairs go to the ranks in order, the largest replica first. Two replicas of one expert are separated by an exchange
    that leaves the larger of the two ranks lowest, ties to the lowest rank. O(P log P) a layer.

    Parameters
    ----------
    load, count
        [L, E]; the counts of a layer sum to P and none exceeds R.
    first_slot
        [R + 1] first slot of each rank, two or one apart, then P.
    phy2log, slot_load, rank_load
        [L, P], [L, P], [L, R] out.

    Returns False if some layer's replicas of one expert could not be separated.
    """
    num_ranks = rank_load.shape[1]
    size, owner = np.empty(2 * num_ranks, dtype=np.float64), np.empty(2 * num_ranks, dtype=np.int64)
    for layer in range(load.shape[0]):
        _list_replicas(load[layer], count[layer], size, owner)
        order = np.argsort(size, kind="mergesort")  # ties to the lower expert id
        next_alone, next_pair = 0, 2 * num_ranks - phy2log.shape[1]
        experts, sizes = phy2log[layer], slot_load[layer]
        for rank in range(num_ranks):
            slot, at = first_slot[rank], next_alone
            if first_slot[rank + 1] == slot + 1:
                next_alone += 1
            else:
                at = next_pair
                next_pair += 1
                experts[slot + 1], sizes[slot + 1] = owner[order[at]], size[order[at]]
            largest = order[2 * num_ranks - 1 - at]
            experts[slot], sizes[slot] = owner[largest], size[largest]
        for rank in range(num_ranks):
            slot = first_slot[rank]
            is_pair = first_slot[rank + 1] == slot + 2
            if is_pair and experts[slot + 1] == experts[slot] and not _separate(first_slot, rank, experts, sizes):
                return False
        for rank in range(num_ranks):
            slot = first_slot[rank]
            rank_load[layer, rank] = sizes[slot] + (sizes[slot + 1] if first_slot[rank + 1] == slot + 2 else 0.0)
    return True
