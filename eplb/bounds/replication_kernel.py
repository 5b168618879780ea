"""Computes the replication bound by bisection, independently of the greedy counts that attain it."""

import math

import numpy as np

from eplb.core.arrays import Floats
from eplb.core.kernel_helpers import READ_FLOATS_2D
from eplb_traces.jit import helper, njit

TOO_MANY = 1 << 40


@helper
def _replicas_needed(load: Floats, limit: float, max_replicas: int, strictly: bool) -> int:
    """How many replicas bring every load to at most `limit`, or `strictly` below it but for rounding.

    Very many if some expert needs more than `max_replicas`.
    """
    total = 0
    for expert in range(load.size):
        if strictly:
            replicas = math.floor(load[expert] / limit * (1 + 1e-15)) + 1
        else:
            replicas = max(1, math.ceil(load[expert] / limit))
        total += replicas if replicas <= max_replicas else TOO_MANY
    return total


@njit(f"void({READ_FLOATS_2D}, int64, int64, float64[::1])")
def smallest_largest_replica(load: Floats, num_slots: int, max_replicas: int, smallest: Floats) -> None:
    """Find for each layer the least load that the most loaded replica can have.

    That is the smallest T with ``sum_e max(1, ceil(load_e / T)) <= num_slots`` and no expert above `max_replicas`.
    Bisection; every feasible point is lowered to the largest replica it really has, so that the search ends exactly.

    Parameters
    ----------
    load
        [L, E]
    num_slots, max_replicas
        Replicas of a layer in all; most replicas of one expert.
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
        smallest[layer] = high
        if high == 0.0:
            continue
        low = max(total / num_slots, high / max_replicas) * (1 - 1e-12)
        # Experts at or below `low` have one replica whatever T is.
        num_above = 0
        for expert in range(num_experts):
            above[num_above] = load[layer, expert]
            num_above += load[layer, expert] > low
        layer_load = above[:num_above]
        num_left = num_slots - (num_experts - num_above)
        for _ in range(100):
            middle = 0.5 * (low + high)
            if _replicas_needed(layer_load, high, max_replicas, True) > num_left or not low < middle < high:
                break
            if _replicas_needed(layer_load, middle, max_replicas, False) > num_left:
                low = middle
                continue
            high = 0.0
            for tokens in layer_load:
                high = max(high, tokens / max(1, math.ceil(tokens / middle)))
        smallest[layer] = high


@helper
def _num_replicas(capacity: Floats, limit: float, load: float) -> int:
    """Fewest replicas that carry the load at the limit; one more than `capacity` has where none do."""
    low, high = 0, capacity.size
    while low < high:
        middle = (low + high) // 2
        if capacity[middle] * limit >= load:
            high = middle
        else:
            low = middle + 1
    return low + 1


@njit(f"void({READ_FLOATS_2D}, int64, float64[::1], float64[::1])")
def smallest_largest_share(load: Floats, num_slots: int, capacity: Floats, smallest: Floats) -> None:
    """Find for each layer the least load at which the replicas suffice to carry every expert.

    That is the smallest t with ``sum_e min{c : capacity[c - 1] t >= load_e} <= num_slots``. Bisection to 1e-13, then
    the largest load over capacity that the counts found really have.

    Parameters
    ----------
    load
        [L, E]
    num_slots
        Replicas of a layer in all.
    capacity
        [R] what c replicas carry at t = 1, for c from 1; non-decreasing.
    smallest
        [L] out; 0 for a layer without load.
    """
    for layer in range(load.shape[0]):
        high = load[layer].max() / capacity[0]
        low = load[layer].max() / capacity[capacity.size - 1] * (1 - 1e-12)
        while high > low * (1 + 1e-13):
            middle = 0.5 * (low + high)
            if not low < middle < high:
                break
            total = 0
            for tokens in load[layer]:
                replicas = _num_replicas(capacity, middle, tokens)
                total += replicas if replicas <= capacity.size else TOO_MANY
            if total > num_slots:
                low = middle
            else:
                high = middle
        smallest[layer] = 0.0
        for tokens in load[layer]:
            replicas = min(_num_replicas(capacity, high, tokens), capacity.size)  # rounding of `high` may miss the last
            smallest[layer] = max(smallest[layer], tokens / capacity[replicas - 1])
