"""The companion bound: large copies need small companions, and there are only so many small copies. Knows arrays only.

The argument is our own, a Hall condition with free replica counts; `eplb.bounds.companion_bound` states and proves it.
"""

import math

import numpy as np

from eplb.core.arrays import Floats, Ints
from eplb_traces.jit import njit

NUM_CANDIDATES = 4  # thresholds tried for each family and trial load; more prove hardly more
NUM_PRICES = 9  # halvings of the price of a copy
ROUNDING = 1e-12
JUST_BELOW = 4e-10  # relative: refuting this much below what is reached counts as meeting it


@njit(
    "float64(float64[::1], int64[::1], int64, int64, float64, float64, float64, float64[:, ::1], int64[:, ::1],"
    " float64)"
)
def _least_potential(
    load: Floats, least: Ints, num_free: int, num_holes: int, limit: float, large: float, small: float, value: Floats,
    cost: Ints, reward: float,
) -> float:  # fmt: skip
    """Bound from below the summed potential of all copies over every choice of counts; infeasible if above 0.

    ``reward < 0`` takes the potential of counting: +1 from `large` on, -1 up to `small`. Otherwise it is that of
    summing: ``x - limit + reward`` from `large` on, ``-(small - x)`` below `small`. Lagrange: a copy beyond the least
    counts costs a price, and any price proves; the search over it only looks for a good one.
    """
    num_experts = load.size
    base = -float(num_holes) if reward < 0 else -num_holes * small
    num_options = 0
    highest = 0.0
    for expert in range(num_experts):
        weight, count = load[expert], least[expert]
        one = weight / count
        last_large = max(count, math.floor(weight / large * (1 + ROUNDING)))
        next_count = last_large + 1 if one >= large else count
        if reward < 0:
            here = float(count) if one >= large else (-float(count) if one <= small else 0.0)
            then = max(next_count, math.ceil(weight / small * (1 - ROUNDING)))
            first_gain = here if one >= large else 0.0
            last_gain = here + then
            if one <= small:
                base += here
                continue
        else:
            here = weight - count * (limit - reward) if one >= large else -max(0.0, small * count - weight)
            base += here
            if one < large:
                continue
            # As many copies as stay large, or one more: then all are small.
            then = next_count
            next_count = last_large
            first_gain = (last_large - count) * (limit - reward)
            last_gain = here + max(0.0, small * then - weight)
            here = 0.0
        base += here
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


@njit(
    "boolean(float64[::1], int64, int64, int64, float64, int64[::1], float64[::1], float64[::1],"
    " float64[:, ::1], int64[:, ::1], float64[:, ::1])",
)
def _is_infeasible(
    load: Floats, num_ranks: int, num_slots: int, slots_per_rank: int, limit: float, least: Ints, size: Floats,
    prefix: Floats, value: Floats, cost: Ints, candidate: Floats,
) -> bool:  # fmt: skip
    """Whether no counts and no placement keep every rank at or below `limit`, as far as the two families can prove."""
    num_copies = 0
    for expert in range(load.size):
        least[expert] = max(1, math.ceil(load[expert] / limit * (1 - ROUNDING)))
        if least[expert] > num_ranks:
            return True
        num_copies += least[expert]
    num_free = num_slots - num_copies
    if num_free < 0:
        return True
    at = 0
    for expert in range(load.size):
        for _ in range(least[expert]):
            size[at] = load[expert] / least[expert]
            at += 1
    size[:num_copies] = np.sort(size[:num_copies])
    prefix[0] = 0.0
    for i in range(num_copies):
        prefix[i + 1] = prefix[i] + size[i]
    # Score each threshold with the free copies at the worst use that is always open, making small ones smaller, and
    # keep the most violated ones of each family.
    candidate[:, 0] = -math.inf
    num_holes = num_ranks * slots_per_rank - num_slots
    num_small = 0
    others = slots_per_rank - 1
    for i in range(num_copies - 1, -1, -1):
        large = size[i]
        if large <= 0.5 * limit * (1 + 1e-9):
            break
        if i > 0 and size[i - 1] == large:
            continue
        num_large = num_copies - i
        while num_small < num_copies and size[num_small] <= (limit - large) * (1 + ROUNDING):
            num_small += 1
        num_needed = min(max(1, num_large * others - num_holes), num_copies)
        # Family 0 counts, for two slots a rank; family 1 sums, with `small` about where the last companion needed will
        # lie: lower than now when free copies make more small ones.
        for variant in range(5):
            family = min(variant, 1)
            if family == 0:
                small = limit - large
                score = float(num_large - num_small - num_holes - num_free)
                if others > 1:
                    continue
            else:
                at = (num_needed * (5 - variant) + 3) // 4
                small = size[at - 1]
                score = prefix[num_copies] - prefix[i] - num_large * limit + prefix[at]
                score += (num_large * others - num_holes - at - num_free) * small
                if limit <= others * small:
                    continue
            if score <= 0.0:
                continue
            row = NUM_CANDIDATES + variant - 1  # the best threshold of each variant, several thresholds of family 0
            if family == 0:
                row = 0
                for j in range(1, NUM_CANDIDATES):
                    if candidate[j, 0] < candidate[row, 0]:
                        row = j
            if score > candidate[row, 0]:
                candidate[row, 0], candidate[row, 1], candidate[row, 2] = score, large, small
    for row in range(2 * NUM_CANDIDATES):
        if candidate[row, 0] == -math.inf:
            continue
        large, small = candidate[row, 1] * (1 - ROUNDING), candidate[row, 2]
        if row < NUM_CANDIDATES:
            if small > 0 and _least_potential(
                load, least, num_free, num_holes, limit, large, small * (1 + ROUNDING), value, cost, -1.0
            ) > 1e-6:  # fmt: skip
                return True
        elif _least_potential(
            load, least, num_free, num_holes, limit, large, small, value, cost, others * small
        ) > 1e-9 * limit:  # fmt: skip
            return True
    return False


@njit(
    "void(Array(float64, 2, 'C', readonly=True), int64, int64, int64, Array(float64, 1, 'C', readonly=True),"
    " Array(float64, 1, 'C', readonly=True), float64, float64[::1])",
)
def largest_infeasible(
    load: Floats,
    num_ranks: int,
    num_slots: int,
    slots_per_rank: int,
    lower: Floats,
    reached: Floats,
    tolerance: float,
    bound: Floats,
) -> None:
    """Raise the bound of each layer to the largest rank load that the companion argument refutes.

    Bisection between `lower` and the lower of `reached` and 1.25 times `lower`; what lies just below `reached` is tried
    early, so that an optimum is met exactly. O(log(1 / tolerance) P log P) a layer.

    Parameters
    ----------
    load
        [L, E]
    num_ranks, num_slots, slots_per_rank
        Equally fast ranks, slots in all and of the largest rank; every slot taken, no expert twice on a rank.
    lower, reached
        [L] a lower bound that is known; a load that some placement reaches, infinite where unknown.
    tolerance
        Relative width at which the bisection ends.
    bound
        [L] out; at least `lower`.
    """
    num_experts = load.shape[1]
    least = np.empty(num_experts, dtype=np.int64)
    size = np.empty(num_slots, dtype=np.float64)
    prefix = np.empty(num_slots + 1, dtype=np.float64)
    value = np.empty((num_experts, 2), dtype=np.float64)
    cost = np.empty((num_experts, 2), dtype=np.int64)
    candidate = np.empty((2 * NUM_CANDIDATES, 3), dtype=np.float64)
    layer_load = np.empty(num_experts, dtype=np.float64)
    for layer in range(load.shape[0]):
        layer_load[:] = load[layer]
        low = lower[layer]
        bound[layer] = low
        high = min(1.25 * low, reached[layer] * (1 - JUST_BELOW))
        trial = low * (1 + tolerance)
        attempt = 0
        while low > 0 and high > low and (attempt < 2 or high > low * (1 + tolerance)):
            trial = 0.5 * (low + high)
            if attempt == 0:
                trial = min(high, low * (1 + tolerance))
            elif attempt == 1:
                trial = high
            attempt += 1
            if _is_infeasible(
                layer_load, num_ranks, num_slots, slots_per_rank, trial, least, size, prefix, value, cost, candidate
            ):  # fmt: skip
                low = trial
                bound[layer] = trial
            elif attempt == 1:
                break
            else:
                high = trial
