"""Computes the pair-mixture bound: with two slots a rank, many thresholds of the co-residency argument at once.

`pair_mixture_bound` in `eplb.bounds.lower_bounds` states and proves the argument. A mixture of thresholds is sought by
multiplicative weights (Freund and Schapire 1999); whatever mixture is found proves.
"""

import math
from typing import NamedTuple

import numpy as np

from eplb.core.arrays import Floats, Ints
from eplb.core.kernel_helpers import READ_FLOATS, READ_FLOATS_2D
from eplb_traces.jit import helper, njit

NUM_OPTIONS = 8  # counts of an expert that are told apart, from the least one up; more replicas are taken as smallest
NUM_STEPS = 60
NUM_PRICES = 5  # prices of a free replica tried for a mixture
PACE = 0.05  # of the weights: their logarithms move by this for each replica of violation
ROUNDING = 1e-12


class Search(NamedTuple):
    """Mixture and scratch arrays of a layer; there is at most one threshold an expert."""

    log_weight: Floats  # [E] the mixture, by the expert whose replicas each threshold is
    threshold: Floats  # [E] ascending
    owner: Ints  # [E] expert of each threshold
    prefix: Floats  # [E + 1] weights of the thresholds before each
    violation: Floats  # [E + 1]
    option: Ints  # [E, NUM_OPTIONS + 1, 2] thresholds up to the size of a replica, and those it is small enough for
    least: Ints  # [E] fewest replicas
    chosen: Ints  # [3, E] replicas beyond: last response; last that takes too many; last that takes too few


@helper
def _num_up_to(sorted_values: Floats, value: float) -> int:
    """How many values are at most `value`."""
    low, high = 0, sorted_values.size
    while low < high:
        middle = (low + high) // 2
        if sorted_values[middle] <= value:
            low = middle + 1
        else:
            high = middle
    return low


@helper
def _respond(search: Search, num_free: int, num_empty: int, price: float) -> tuple[int, float]:
    """Choose the count of least potential for each expert at a price a replica.

    Returns how many free replicas that takes and the dual value, a lower bound of the summed potential of all replicas.
    An empty slot is small enough beside every large replica, and the weights of the thresholds sum to 1.
    """
    option, prefix, least, chosen = search.option, search.prefix, search.least, search.chosen[0]
    num_options = min(NUM_OPTIONS, num_free + 1)
    potential = -price * num_free - num_empty
    used = 0
    for expert in range(least.size):
        best, best_k = math.inf, 0
        for k in range(num_options):
            count = least[expert] + k
            here = count * (prefix[option[expert, k, 0]] - prefix[option[expert, k, 1]]) + price * k
            if here < best:
                best, best_k = here, k
        if num_free >= num_options:  # more replicas, each counted as if it were as small as with all the free ones
            unit = prefix[option[expert, num_options, 0]] - prefix[option[expert, num_options, 1]]
            for k in (num_options, num_free):
                here = (least[expert] + k) * unit + price * k
                if here < best:
                    best, best_k = here, k
        potential += best
        used += best_k
        chosen[expert] = best_k
    return used, potential


@helper
def _add_violation(search: Search, num_options: int, chosen: Ints, share: float) -> None:
    """Add `share` times, for each threshold, how many replicas are large less how many are small enough beside them."""
    option, least, violation = search.option, search.least, search.violation
    for expert in range(least.size):
        count = share * (least[expert] + chosen[expert])
        row = min(chosen[expert], num_options)
        violation[option[expert, row, 0]] += count
        violation[option[expert, row, 1]] -= count


@helper
def _set_up(load: Floats, num_ranks: int, num_slots: int, limit: float, search: Search) -> tuple[int, int]:
    """Fill thresholds, least counts and options; returns the numbers of thresholds and of free replicas.

    The number of thresholds is -1 if the least counts alone refute the limit.
    """
    threshold, owner, least = search.threshold, search.owner, search.least
    num_free = num_slots
    num_thresholds = 0
    for expert in range(load.size):
        least[expert] = max(1, math.ceil(load[expert] / limit * (1 - ROUNDING)))
        if least[expert] > num_ranks:
            return -1, num_free
        num_free -= least[expert]
        size = load[expert] / least[expert]
        if size > 0.5 * limit * (1 + 1e-9):
            threshold[num_thresholds], owner[num_thresholds] = size * (1 - ROUNDING), expert
            num_thresholds += 1
    if num_free < 0:
        return -1, num_free
    order = np.argsort(threshold[:num_thresholds], kind="mergesort")
    threshold[:num_thresholds] = threshold[:num_thresholds][order]
    owner[:num_thresholds] = owner[:num_thresholds][order]
    num_options = min(NUM_OPTIONS, num_free + 1)
    for expert in range(load.size):
        for k in range(num_options + 1):
            size = load[expert] / (least[expert] + (k if k < num_options else num_free))
            search.option[expert, k, 0] = _num_up_to(threshold[:num_thresholds], size)
            search.option[expert, k, 1] = _num_up_to(threshold[:num_thresholds], limit * (1 + ROUNDING) - size)
    return num_thresholds, num_free


@helper
def _set_weights(search: Search, num_thresholds: int) -> None:
    """Fill `prefix` with the weights of the thresholds, scaled to sum to 1."""
    log_weight, owner, prefix = search.log_weight, search.owner, search.prefix
    highest = -math.inf
    for i in range(num_thresholds):
        highest = max(highest, log_weight[owner[i]])
    total = 0.0
    for i in range(num_thresholds):
        total += math.exp(log_weight[owner[i]] - highest)
    prefix[0] = 0.0
    for i in range(num_thresholds):
        prefix[i + 1] = prefix[i] + math.exp(log_weight[owner[i]] - highest) / total


@helper
def _is_refuted(
    load: Floats, num_ranks: int, num_slots: int, limit: float, price: float, search: Search
) -> tuple[bool, float]:
    """Whether some mixture of thresholds proves that no counts let the replicas be paired up to `limit`.

    The mixture and `price` start the search; the mixture is left, and the price returned, where it ended.
    """
    num_thresholds, num_free = _set_up(load, num_ranks, num_slots, limit, search)
    if num_thresholds <= 0:
        return num_thresholds < 0, price
    num_empty, num_options = 2 * num_ranks - num_slots, min(NUM_OPTIONS, num_free + 1)
    chosen, violation = search.chosen, search.violation
    for step in range(NUM_STEPS):
        _set_weights(search, num_thresholds)
        # The best price for this mixture lies between one that takes too many free replicas and one that takes too few.
        low, high, trial = -1.0, math.inf, price
        over, under = 0, 0
        for _ in range(NUM_PRICES):
            used, value = _respond(search, num_free, num_empty, trial)
            if value > 1e-6:
                return True, trial
            if used > num_free:
                low, over = trial, used - num_free
                chosen[1] = chosen[0]
            else:
                high, under = trial, num_free - used
                chosen[2] = chosen[0]
                if used == num_free or trial < 1e-6:
                    break
            price = trial
            if low >= 0.0 and high < math.inf:
                trial = 0.5 * (low + high)
            else:
                trial = max(1.3 * trial + 0.02 if used > num_free else trial / 1.3 - 0.01, 0.0)
        violation[: num_thresholds + 1] = 0.0
        violation[num_thresholds] = -num_empty
        share = under / (over + under) if low >= 0.0 and over + under > 0 else 0.0
        if high == math.inf:
            share = 1.0
        if share > 0.0:
            _add_violation(search, num_options, chosen[1], share)
        if share < 1.0:
            _add_violation(search, num_options, chosen[2], 1.0 - share)
        after = 0.0
        pace = PACE / math.sqrt(1.0 + step / 50.0)
        for i in range(num_thresholds, 0, -1):
            after += violation[i]
            search.log_weight[search.owner[i - 1]] += pace * after
    return False, price


@njit(f"void({READ_FLOATS_2D}, int64, int64, {READ_FLOATS}, {READ_FLOATS}, float64, float64[::1])")
def largest_refuted(
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
    search = Search(
        np.empty(num_experts), np.empty(num_experts), np.empty(num_experts, np.int64), np.empty(num_experts + 1),
        np.empty(num_experts + 1), np.empty((num_experts, NUM_OPTIONS + 1, 2), np.int64),
        np.empty(num_experts, np.int64), np.empty((3, num_experts), np.int64),
    )  # fmt: skip
    for layer in range(load.shape[0]):
        low, high = lower[layer], upper[layer]
        search.log_weight[:], price = 0.0, 1.0
        first, trial = True, low * (1 + 0.5 * tolerance)
        while low > 0 and high > low * (1 + tolerance) and trial > low:
            refuted, price = _is_refuted(load[layer], num_ranks, num_slots, trial, price, search)
            if refuted:
                low = trial
            elif first:
                break
            else:
                high = trial
            trial = 0.5 * (low + high)
            if first:
                first, trial = False, high / (1 + tolerance)
                search.log_weight[:], price = 0.0, 1.0
        bound[layer] = low
