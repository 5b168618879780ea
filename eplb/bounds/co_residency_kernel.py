"""Computes the co-residency bound: large replicas need small ones beside them, and there are only so many small ones.

The argument is our own, a Hall condition with free replica counts. `co_residency_bound` in `eplb.bounds.lower_bounds`
states and proves it.
"""

import math
from typing import NamedTuple

import numpy as np

from eplb.core.arrays import Floats, Ints
from eplb.core.kernel_helpers import READ_FLOATS, READ_FLOATS_2D
from eplb_traces.jit import helper, njit

NUM_CANDIDATES = 4  # thresholds tried for each family and trial load; more prove hardly more
NUM_PRICES = 9  # halvings of the price of a replica
ROUNDING = 1e-12
JUST_BELOW = 4e-10  # relative: refuting this much below what is reached counts as meeting it


class Ranks(NamedTuple):
    """Equally fast ranks; every slot is taken, no expert is twice on a rank."""

    num_ranks: int
    num_slots: int
    num_others: int  # slots beside a replica on the largest rank
    num_empty: int  # slots that smaller ranks lack


class Scratch(NamedTuple):
    """Arrays for one trial load."""

    least: Ints  # [E] fewest replicas that keep the trial load
    size: Floats  # [P] of the replicas at these counts
    prefix: Floats  # [P + 1] sums of the sizes before each
    value: Floats  # [E, 2] potential that an expert loses with the first or the second of its other counts
    cost: Ints  # [E, 2] further replicas that these take
    candidate: Floats  # [2 NUM_CANDIDATES, 3] score, large, small


@helper
def _least_potential(
    load: Floats, limit: float, large: float, small: float, reward: float, num_free: int, num_empty: int, state: Scratch
) -> float:
    """Bound from below the summed potential of all replicas over every choice of counts; infeasible if above 0.

    ``reward < 0`` takes the potential of counting: +1 from `large` on, -1 up to `small`. Otherwise it is that of
    summing: ``x - limit + reward`` from `large` on, ``-(small - x)`` below `small`. Lagrange: a replica beyond the
    least counts costs a price, and any price proves; the search over it only looks for a good one.
    """
    value, cost = state.value, state.cost
    base = -float(num_empty) if reward < 0 else -num_empty * small
    num_options = 0
    highest = 0.0
    for expert in range(load.size):
        weight, count = load[expert], state.least[expert]
        one = weight / count
        is_large = one >= large
        next_count = max(count, math.floor(weight / large * (1 + ROUNDING))) + 1 if is_large else count
        if reward < 0:
            here = float(count) if is_large else (-float(count) if one <= small else 0.0)
            base += here
            if one <= small:
                continue
            then = max(next_count, math.ceil(weight / small * (1 - ROUNDING)))
            first_gain, last_gain = here if is_large else 0.0, here + then
        else:
            here = weight - count * (limit - reward) if is_large else -max(0.0, small * count - weight)
            base += here
            if not is_large:
                continue
            # As many replicas as stay large, or one more: then all are small.
            then = next_count
            next_count = then - 1
            first_gain, last_gain = (next_count - count) * (limit - reward), here + max(0.0, small * then - weight)
        value[num_options, 0], cost[num_options, 0] = first_gain, next_count - count
        value[num_options, 1], cost[num_options, 1] = last_gain, then - count
        highest = max(highest, max(first_gain / max(1, next_count - count), last_gain / max(1, then - count)))
        num_options += 1
    low = 1.0 if reward < 0 else small
    high = max(low, highest)
    best = -math.inf
    price = low
    for _ in range(NUM_PRICES):
        total, used = base, 0
        for i in range(num_options):
            first, last = value[i, 0] - price * cost[i, 0], value[i, 1] - price * cost[i, 1]
            if first > last:
                if first > 0:
                    total -= first
                    used += cost[i, 0]
            elif last > 0:
                total -= last
                used += cost[i, 1]
        best = max(best, total - price * num_free)
        if used > num_free:
            low = price
        else:
            high = price
        price = 0.5 * (low + high)
    return best


@helper
def _list_least_replicas(load: Floats, limit: float, ranks: Ranks, state: Scratch) -> int:
    """Fill `least`, `size` (ascending) and `prefix`; returns the number of replicas, or -1 if they do not fit."""
    least, size, prefix = state.least, state.size, state.prefix
    num_replicas = 0
    for expert in range(load.size):
        least[expert] = max(1, math.ceil(load[expert] / limit * (1 - ROUNDING)))
        if least[expert] > ranks.num_ranks:
            return -1
        num_replicas += least[expert]
    if num_replicas > ranks.num_slots:
        return -1
    at = 0
    for expert in range(load.size):
        for _ in range(least[expert]):
            size[at] = load[expert] / least[expert]
            at += 1
    size[:num_replicas] = np.sort(size[:num_replicas])
    prefix[0] = 0.0
    for i in range(num_replicas):
        prefix[i + 1] = prefix[i] + size[i]
    return num_replicas


@helper
def _find_candidates(limit: float, ranks: Ranks, num_replicas: int, state: Scratch) -> None:
    """Keep the most violated thresholds: several of counting, one of each variant of summing.

    Each is scored with the free replicas at the worst use that is always open: making small ones smaller.
    """
    size, prefix, candidate = state.size, state.prefix, state.candidate
    num_free, others = ranks.num_slots - num_replicas, ranks.num_others
    candidate[:, 0] = -math.inf
    num_small = 0
    for i in range(num_replicas - 1, -1, -1):
        large = size[i]
        if large <= 0.5 * limit * (1 + 1e-9):
            break
        if i > 0 and size[i - 1] == large:
            continue
        num_large = num_replicas - i
        while num_small < num_replicas and size[num_small] <= (limit - large) * (1 + ROUNDING):
            num_small += 1
        # Variant 0 counts, for two slots a rank. The others sum, with `small` about where the last replica needed
        # beside a large one will lie: lower than now when free replicas make more small ones.
        num_needed = min(max(1, num_large * others - ranks.num_empty), num_replicas)
        for variant in range(0 if others == 1 else 1, 5):
            if variant == 0:
                row = candidate[:NUM_CANDIDATES, 0].argmin()
                small = limit - large
                score = float(num_large - num_small - ranks.num_empty - num_free)
            else:
                row = NUM_CANDIDATES + variant - 1
                at = (num_needed * (5 - variant) + 3) // 4
                small = size[at - 1]
                score = prefix[num_replicas] - prefix[i] - num_large * limit + prefix[at]
                score += (num_large * others - ranks.num_empty - at - num_free) * small
                if limit <= others * small:
                    continue
            if score > max(candidate[row, 0], 0.0):
                candidate[row, 0], candidate[row, 1], candidate[row, 2] = score, large, small


@helper
def _is_infeasible(load: Floats, limit: float, ranks: Ranks, state: Scratch) -> bool:
    """Whether no counts and no placement keep every rank at or below `limit`, as far as the two families can prove."""
    num_replicas = _list_least_replicas(load, limit, ranks, state)
    if num_replicas < 0:
        return True
    _find_candidates(limit, ranks, num_replicas, state)
    num_free = ranks.num_slots - num_replicas
    for row in range(2 * NUM_CANDIDATES):
        large, small = state.candidate[row, 1] * (1 - ROUNDING), state.candidate[row, 2]
        counts = row < NUM_CANDIDATES
        if state.candidate[row, 0] == -math.inf or (counts and small <= 0):
            continue
        reward, rounding = ranks.num_others * small, 1e-9 * limit
        if counts:
            small, reward, rounding = small * (1 + ROUNDING), -1.0, 1e-6
        if _least_potential(load, limit, large, small, reward, num_free, ranks.num_empty, state) > rounding:
            return True
    return False


@njit(f"void({READ_FLOATS_2D}, int64, int64, int64, {READ_FLOATS}, {READ_FLOATS}, float64, float64[::1])")
def largest_infeasible(
    load: Floats, num_ranks: int, num_slots: int, most_slots: int, lower: Floats, reached: Floats, tolerance: float,
    bound: Floats,
) -> None:  # fmt: skip
    """Raise the bound of each layer to the largest rank load that the co-residency argument refutes.

    Bisection between `lower` and the lower of `reached` and 1.25 times `lower`; what lies just below `reached` is tried
    early, so that an optimum is met exactly. O(log(1 / tolerance) P log P) a layer.

    Parameters
    ----------
    load
        [L, E]
    num_ranks, num_slots, most_slots
        Ranks; slots in all and of the largest rank.
    lower, reached
        [L] a lower bound that is known; a load that some placement reaches, infinite where unknown.
    tolerance
        Relative width at which the bisection ends.
    bound
        [L] out; at least `lower`.
    """
    num_experts = load.shape[1]
    ranks = Ranks(num_ranks, num_slots, most_slots - 1, num_ranks * most_slots - num_slots)
    state = Scratch(
        np.empty(num_experts, np.int64), np.empty(num_slots), np.empty(num_slots + 1),
        np.empty((num_experts, 2)), np.empty((num_experts, 2), np.int64), np.empty((2 * NUM_CANDIDATES, 3)),
    )  # fmt: skip
    for layer in range(load.shape[0]):
        low = lower[layer]
        high = min(1.25 * low, reached[layer] * (1 - JUST_BELOW))
        attempt = 0
        while low > 0 and high > low and (attempt < 2 or high > low * (1 + tolerance)):
            trial = 0.5 * (low + high)
            if attempt == 0:
                trial = min(high, low * (1 + tolerance))
            elif attempt == 1:
                trial = high
            attempt += 1
            if _is_infeasible(load[layer], trial, ranks, state):
                low = trial
            elif attempt == 1:
                break
            else:
                high = trial
        bound[layer] = low
