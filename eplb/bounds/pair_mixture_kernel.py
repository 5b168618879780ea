"""The pairing bound: with two slots a rank, many thresholds of the companion argument at once. Knows arrays only.

`eplb.bounds.pairing_bound` states and proves the argument. A mixture of thresholds is sought by multiplicative
weights (Freund and Schapire 1999); whatever mixture is found proves.
"""

import math

import numpy as np

from eplb.core.arrays import Floats, Ints
from eplb_traces.jit import njit

NUM_OPTIONS = 8  # counts of an expert that are told apart, from the least one up; more copies are taken as smallest
NUM_STEPS = 60
NUM_PRICES = 5  # prices of a free copy tried for a mixture
PACE = 0.05  # of the weights: their logarithms move by this for each copy of violation
ROUNDING = 1e-12


@njit("int64(float64[::1], int64, float64)")
def _num_up_to(sorted_values: Floats, size: int, value: float) -> int:
    """How many of the first `size` values are at most `value`."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if sorted_values[middle] <= value:
            low = middle + 1
        else:
            high = middle
    return low


@njit("int64(int64[:, :, ::1], int64[::1], int64, int64, int64, float64[::1], float64, int64[::1], float64[::1])")
def _respond(
    option: Ints, least: Ints, num_options: int, num_free: int, num_holes: int, prefix: Floats, price: float,
    chosen: Ints, total: Floats,
) -> int:  # fmt: skip
    """Choose the count of least potential for each expert at a price a copy; returns how many free copies that takes.

    `total` [1] out: the dual value, a lower bound of the summed potential of all copies. A hole is small enough beside
    every large copy, and the weights of the thresholds sum to 1.
    """
    potential = -price * num_free - num_holes
    used = 0
    for expert in range(least.size):
        best, best_k = math.inf, 0
        for k in range(num_options):
            count = least[expert] + k
            here = count * (prefix[option[expert, k, 0]] - prefix[option[expert, k, 1]]) + price * k
            if here < best:
                best, best_k = here, k
        if num_free >= num_options:  # still more copies, each counted as if it were as small as with all the free ones
            unit = prefix[option[expert, num_options, 0]] - prefix[option[expert, num_options, 1]]
            for k in (num_options, num_free):
                here = (least[expert] + k) * unit + price * k
                if here < best:
                    best, best_k = here, k
        potential += best
        used += best_k
        chosen[expert] = best_k
    total[0] = potential
    return used


@njit("void(int64[:, :, ::1], int64[::1], int64, int64[::1], float64, float64[::1])")
def _add_violation(option: Ints, least: Ints, num_options: int, chosen: Ints, share: float, violation: Floats) -> None:
    """Add `share` times, for each threshold, how many copies are large less how many are small enough beside them."""
    for expert in range(least.size):
        count = share * (least[expert] + chosen[expert])
        row = min(chosen[expert], num_options)
        violation[option[expert, row, 0]] += count
        violation[option[expert, row, 1]] -= count


@njit("int64(float64[::1], int64, int64, float64, float64[::1], int64[::1], int64[:, :, ::1], int64[::1])")
def _set_up(
    load: Floats,
    num_ranks: int,
    num_slots: int,
    limit: float,
    threshold: Floats,
    owner: Ints,
    option: Ints,
    least: Ints,
) -> int:
    """Fill thresholds (ascending, `owner` the expert each comes from), least counts and where each option lies.

    Returns the number of thresholds, or -1 if the least counts alone refute the limit.
    """
    num_free = num_slots
    num_thresholds = 0
    for expert in range(load.size):
        least[expert] = max(1, math.ceil(load[expert] / limit * (1 - ROUNDING)))
        if least[expert] > num_ranks:
            return -1
        num_free -= least[expert]
        size = load[expert] / least[expert]
        if size > 0.5 * limit * (1 + 1e-9):
            threshold[num_thresholds] = size * (1 - ROUNDING)
            owner[num_thresholds] = expert
            num_thresholds += 1
    if num_free < 0:
        return -1
    order = np.argsort(threshold[:num_thresholds])
    threshold[:num_thresholds] = threshold[:num_thresholds][order]
    owner[:num_thresholds] = owner[:num_thresholds][order]
    for expert in range(load.size):
        num_options = min(NUM_OPTIONS, num_free + 1)
        for k in range(num_options + 1):
            size = load[expert] / (least[expert] + (k if k < num_options else num_free))
            option[expert, k, 0] = _num_up_to(threshold, num_thresholds, size)
            option[expert, k, 1] = _num_up_to(threshold, num_thresholds, limit * (1 + ROUNDING) - size)
    return num_thresholds


@njit(
    "boolean(float64[::1], int64, int64, float64, float64[::1], float64[::1], float64[::1], int64[::1], float64[::1],"
    " float64[::1], int64[:, :, ::1], int64[::1], int64[:, ::1])",
)
def _is_refuted(
    load: Floats, num_ranks: int, num_slots: int, limit: float, log_weight: Floats, price: Floats, threshold: Floats,
    owner: Ints, prefix: Floats, violation: Floats, option: Ints, least: Ints, chosen: Ints,
) -> bool:  # fmt: skip
    """Whether some mixture of thresholds proves that no counts let the copies be paired up to `limit`.

    `log_weight` [E], the mixture by the expert whose copies each threshold is, and `price` [1] start the search and are
    left where it ended.
    """
    num_thresholds = _set_up(load, num_ranks, num_slots, limit, threshold, owner, option, least)
    if num_thresholds <= 0:
        return num_thresholds < 0
    num_free, num_holes = num_slots - least.sum(), 2 * num_ranks - num_slots
    num_options = min(NUM_OPTIONS, num_free + 1)
    value = np.empty(1, dtype=np.float64)
    for step in range(NUM_STEPS):
        highest = -math.inf
        for i in range(num_thresholds):
            highest = max(highest, log_weight[owner[i]])
        total = 0.0
        for i in range(num_thresholds):
            total += math.exp(log_weight[owner[i]] - highest)
        prefix[0] = 0.0
        for i in range(num_thresholds):
            prefix[i + 1] = prefix[i] + math.exp(log_weight[owner[i]] - highest) / total
        # The best price for this mixture lies between one that takes too many free copies and one that takes too few.
        low, high, trial = -1.0, math.inf, price[0]
        over, under = 0, 0
        for _ in range(NUM_PRICES):
            used = _respond(option, least, num_options, num_free, num_holes, prefix, trial, chosen[0], value)
            if value[0] > 1e-6:
                price[0] = trial
                return True
            if used > num_free:
                low, over = trial, used - num_free
                chosen[1] = chosen[0]
            else:
                high, under = trial, num_free - used
                chosen[2] = chosen[0]
                if used == num_free or trial < 1e-6:
                    break
            price[0] = trial
            if low >= 0.0 and high < math.inf:
                trial = 0.5 * (low + high)
            else:
                trial = 1.3 * trial + 0.02 if used > num_free else trial / 1.3 - 0.01
                trial = max(trial, 0.0)
        violation[: num_thresholds + 1] = 0.0
        violation[num_thresholds] = -num_holes
        share = under / (over + under) if low >= 0.0 and over + under > 0 else 0.0
        if high == math.inf:
            share = 1.0
        if share > 0.0:
            _add_violation(option, least, num_options, chosen[1], share, violation)
        if share < 1.0:
            _add_violation(option, least, num_options, chosen[2], 1.0 - share, violation)
        after = 0.0
        pace = PACE / math.sqrt(1.0 + step / 50.0)
        for i in range(num_thresholds, 0, -1):
            after += violation[i]
            log_weight[owner[i - 1]] += pace * after
    return False


@njit("void(Array(float64, 2, 'C', readonly=True), int64, int64, float64[::1], float64[::1], float64, float64[::1])")
def largest_refuted_pairing(
    load: Floats, num_ranks: int, num_slots: int, lower: Floats, upper: Floats, tolerance: float, bound: Floats
) -> None:
    """Raise the bound of each layer, by bisection between `lower` and `upper`, if it can be raised a little.

    O(log(upper gap / tolerance) NUM_STEPS NUM_PRICES E NUM_OPTIONS) a layer at most.

    Parameters
    ----------
    load
        [L, E]
    num_ranks, num_slots
        Equally fast ranks with two slots or one each, slots in all; all taken, no expert twice on a rank.
    lower, upper
        [L] a known bound; a load that is reached.
    tolerance
        Relative distance from `upper` that is good enough, and width at which the bisection ends.
    bound
        [L] out; at least `lower`.
    """
    num_experts = load.shape[1]
    threshold = np.empty(num_experts, dtype=np.float64)
    owner = np.empty(num_experts, dtype=np.int64)
    log_weight = np.empty(num_experts, dtype=np.float64)
    prefix = np.empty(num_experts + 1, dtype=np.float64)
    violation = np.empty(num_experts + 1, dtype=np.float64)
    price = np.empty(1, dtype=np.float64)
    option = np.empty((num_experts, NUM_OPTIONS + 1, 2), dtype=np.int64)
    least = np.empty(num_experts, dtype=np.int64)
    chosen = np.empty((3, num_experts), dtype=np.int64)
    layer_load = np.empty(num_experts, dtype=np.float64)
    for layer in range(load.shape[0]):
        layer_load[:] = load[layer]
        low, high = lower[layer], upper[layer]
        log_weight[:] = 0.0
        price[0] = 1.0
        first, trial = True, low * (1 + 0.5 * tolerance)
        while low > 0 and high > low * (1 + tolerance) and trial > low:
            if _is_refuted(
                layer_load, num_ranks, num_slots, trial, log_weight, price, threshold, owner, prefix, violation,
                option, least, chosen,
            ):  # fmt: skip
                low = trial
            elif first:
                break
            else:
                high = trial
            trial = 0.5 * (low + high)
            if first:
                first, trial = False, high / (1 + tolerance)
                log_weight[:] = 0.0
                price[0] = 1.0
        bound[layer] = low
