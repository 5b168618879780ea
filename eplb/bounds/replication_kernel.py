"""The exact replication bound by bisection: other code than the greedy that attains it. Knows arrays only."""

import math

import numpy as np

from eplb.core.arrays import Floats
from eplb_traces.jit import njit

TOO_MANY = 1 << 40


@njit("int64(float64[::1], float64, int64)")
def _copies_needed(load: Floats, limit: float, max_copies: int) -> int:
    """How many copies bring every copy to at most `limit`; very many if some expert needs more than `max_copies`."""
    total = 0
    for expert in range(load.size):
        copies = max(1, math.ceil(load[expert] / limit))
        total += copies if copies <= max_copies else TOO_MANY
    return total


@njit("int64(float64[::1], float64, int64)")
def _copies_needed_below(load: Floats, limit: float, max_copies: int) -> int:
    """How many copies bring every copy strictly below `limit`, rounding apart; very many if `max_copies` forbids it."""
    total = 0
    for expert in range(load.size):
        copies = math.floor(load[expert] / limit * (1 + 1e-15)) + 1
        total += copies if copies <= max_copies else TOO_MANY
    return total


@njit("void(Array(float64, 2, 'C', readonly=True), int64, int64, float64[::1])")
def smallest_largest_copy(load: Floats, num_slots: int, max_copies: int, smallest: Floats) -> None:
    """Find for each layer the least load that the most loaded copy can have.

    That is the smallest T with ``sum_e max(1, ceil(load_e / T)) <= num_slots`` and no expert above `max_copies`.
    Bisection; every feasible point is lowered to the largest copy it really has, so that the search ends exactly.

    Parameters
    ----------
    load
        [L, E]
    num_slots, max_copies
        Copies of a layer in all; most copies of one expert.
    smallest
        [L] out; 0 for a layer without load.
    """
    num_experts = load.shape[1]
    above = np.empty(num_experts, dtype=np.float64)
    for layer in range(load.shape[0]):
        high, total = 0.0, 0.0
        for expert in range(num_experts):
            high = max(high, load[layer, expert])
            total += load[layer, expert]
        low = max(total / num_slots, high / max_copies) * (1 - 1e-12)
        # Experts at or below `low` have one copy whatever T is.
        num_above = 0
        for expert in range(num_experts):
            above[num_above] = load[layer, expert]
            num_above += load[layer, expert] > low
        layer_load = above[:num_above]
        num_left = num_slots - (num_experts - num_above)
        smallest[layer] = high
        if high == 0.0:
            continue
        for _ in range(100):
            below = _copies_needed_below(layer_load, high, max_copies)
            if below > num_left:
                break
            middle = 0.5 * (low + high)
            if middle <= low or middle >= high:
                break
            needed = _copies_needed(layer_load, middle, max_copies)
            if needed > num_left:
                low = middle
                continue
            high = 0.0
            for expert in range(layer_load.size):
                high = max(high, layer_load[expert] / max(1, math.ceil(layer_load[expert] / middle)))
        smallest[layer] = high


@njit("int64(float64[::1], float64, float64[::1])")
def _copies_for_capacity(load: Floats, limit: float, capacity: Floats) -> int:
    """How many copies bring every expert within `limit` times the capacity of its copies; very many if none do."""
    total = 0
    for expert in range(load.size):
        low, high = 0, capacity.size
        while low < high:
            middle = (low + high) // 2
            if capacity[middle] * limit >= load[expert]:
                high = middle
            else:
                low = middle + 1
        total += low + 1 if low < capacity.size else TOO_MANY
    return total


@njit("void(Array(float64, 2, 'C', readonly=True), int64, float64[::1], float64[::1])")
def smallest_largest_share(load: Floats, num_slots: int, capacity: Floats, smallest: Floats) -> None:
    """Find for each layer the least load at which the copies suffice to carry every expert.

    That is the smallest t with ``sum_e min{c : capacity[c - 1] t >= load_e} <= num_slots``. Bisection to 1e-13, then
    the largest load over capacity that the counts found really have.

    Parameters
    ----------
    load
        [L, E]
    num_slots
        Copies of a layer in all.
    capacity
        [R] what c copies carry at t = 1, for c from 1; non-decreasing.
    smallest
        [L] out; 0 for a layer without load.
    """
    layer_load = np.empty(load.shape[1], dtype=np.float64)
    for layer in range(load.shape[0]):
        layer_load[:] = load[layer]
        high = layer_load.max() / capacity[0]
        low = layer_load.max() / capacity[capacity.size - 1] * (1 - 1e-12)
        while high > low * (1 + 1e-13):
            middle = 0.5 * (low + high)
            if middle <= low or middle >= high:
                break
            if _copies_for_capacity(layer_load, middle, capacity) > num_slots:
                low = middle
            else:
                high = middle
        smallest[layer] = 0.0
        for expert in range(load.shape[1]):
            copies = 0
            while capacity[copies] * high < layer_load[expert]:
                copies += 1
            smallest[layer] = max(smallest[layer], layer_load[expert] / capacity[copies])
