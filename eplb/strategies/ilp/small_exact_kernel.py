"""Finds the optimum of a small layer by enumeration: half of the experts listed and sorted, the other half searched.

Meet in the middle (Horowitz and Sahni 1974): every way to place the lighter experts is listed by the slots it takes and
its load on rank 0; for every way to place the heavier ones those that fill the rest are looked up.
"""

from typing import NamedTuple

import numpy as np

from eplb.core.arrays import Floats, Ints
from eplb_traces.jit import helper, njit

BETTER = 1e-12  # relative: how much lower a placement must be to count


class Ways(NamedTuple):
    """Ways to place the lighter experts, sorted by key, then by time of rank 0."""

    key: Ints  # [ways] slots taken of each rank, as digits
    times: Floats  # [ways, R] load on each rank
    code: Ints  # [ways] ranks of each expert, as digits


@helper
def _list_ways(load: Floats, slots: Ints, capacity: Floats, first: int) -> Ways:
    """List the ways to place the experts from `first` on that keep within slots and capacity."""
    num_ranks, base = slots.size, load.size + 1
    num_masks = (1 << num_ranks) - 1
    num_ways = num_masks ** (load.size - first)
    key, code = np.empty(num_ways, np.int64), np.empty(num_ways, np.int64)
    times = np.empty((num_ways, num_ranks))
    taken, carried = np.empty(num_ranks, np.int64), np.empty(num_ranks)
    size = 0
    for way in range(num_ways):
        taken[:], carried[:] = 0, 0.0
        rest = way
        for expert in range(first, load.size):
            mask = rest % num_masks + 1
            rest //= num_masks
            replicas = 0
            for rank in range(num_ranks):
                replicas += (mask >> rank) & 1
            for rank in range(num_ranks):
                if (mask >> rank) & 1:
                    taken[rank] += 1
                    carried[rank] += load[expert] / replicas
        fits = True
        here = 0
        for rank in range(num_ranks - 1, -1, -1):
            fits = fits and taken[rank] <= slots[rank] and carried[rank] <= capacity[rank]
            here = here * base + taken[rank]
        if fits:
            key[size], code[size] = here, way
            times[size] = carried
            size += 1
    order = np.argsort(times[:size, 0], kind="mergesort")
    order = order[np.argsort(key[:size][order], kind="mergesort")]
    return Ways(key[:size][order], times[:size][order], code[:size][order])


@njit("float64(float64[::1], int64[::1], float64[::1], int64, float64, int64[::1])")
def find_optimum(load: Floats, slots: Ints, speed: Floats, num_listed: int, best: float, mask_of: Ints) -> float:
    """Find the placement with the least load over speed on the busiest rank, if one is better than `best`.

    Every placement that fills all slots with no expert twice on a rank is covered, but for exchanges of equal ranks
    that stand side by side. O(M ** (E - num_listed)) look-ups and O(M ** num_listed) memory with M = 2 ** R - 1 sets
    of ranks; slots and capacity prune both. The first optimum found wins.

    Parameters
    ----------
    load
        [E] tokens, descending.
    slots, speed
        [R]
    num_listed
        How many of the lightest experts are listed, at least one.
    best
        What is reached already.
    mask_of
        [E] out: ranks of each expert as bits, written only if something better is found.

    Returns
    -------
    float
        The optimum, or `best` if nothing is better by more than `BETTER` of it.
    """
    num_experts, num_ranks = load.size, slots.size
    first, base = num_experts - num_listed, num_experts + 1
    num_masks = (1 << num_ranks) - 1
    total = load.sum()
    capacity = best * (1 - BETTER) * speed
    key, times, code = _list_ways(load, slots, capacity, first)
    alike = 0  # bit r: rank r + 1 is still interchangeable with rank r
    for rank in range(num_ranks - 1):
        if slots[rank] == slots[rank + 1] and speed[rank] == speed[rank + 1]:
            alike |= 1 << rank
    replicas_of = np.zeros(num_masks + 1, dtype=np.int64)
    for mask in range(1, num_masks + 1):
        replicas_of[mask] = replicas_of[mask >> 1] + (mask & 1)
    mask_at, alike_at = np.zeros(first + 1, dtype=np.int64), np.zeros(first + 1, dtype=np.int64)
    taken = np.zeros((first + 1, num_ranks), dtype=np.int64)
    carried = np.zeros((first + 1, num_ranks), dtype=np.float64)
    alike_at[0] = alike
    depth = 0
    while depth >= 0:
        if depth == first:
            wanted = 0
            for rank in range(num_ranks - 1, -1, -1):
                wanted = wanted * base + slots[rank] - taken[depth, rank]
            begin, end = np.searchsorted(key, wanted), np.searchsorted(key, wanted + 1)
            # What the other ranks cannot carry, rank 0 must.
            lowest = total - capacity[1:].sum() - carried[depth, 0]
            at = begin + np.searchsorted(times[begin:end, 0], lowest * (1 - 1e-9) - 1e-9 * capacity[0])
            while at < end and carried[depth, 0] + times[at, 0] <= capacity[0]:
                fits = True
                for rank in range(1, num_ranks):
                    if carried[depth, rank] + times[at, rank] > capacity[rank]:
                        fits = False
                        break
                if fits:
                    best = 0.0
                    for rank in range(num_ranks):
                        best = max(best, (carried[depth, rank] + times[at, rank]) / speed[rank])
                    capacity = best * (1 - BETTER) * speed
                    mask_of[:first] = mask_at[:first]
                    rest = code[at]
                    for expert in range(first, num_experts):
                        mask_of[expert] = rest % num_masks + 1
                        rest //= num_masks
                at += 1
            depth -= 1
            continue
        mask_at[depth] += 1
        mask = mask_at[depth]
        if mask > num_masks:
            mask_at[depth] = 0
            depth -= 1
            continue
        # Among ranks that are alike so far, only the first ones may take the expert.
        held_next = mask >> 1
        if alike_at[depth] & held_next & ~mask:
            continue
        share = load[depth] / replicas_of[mask]
        fits = True
        for rank in range(num_ranks):
            bit = (mask >> rank) & 1
            taken[depth + 1, rank] = taken[depth, rank] + bit
            carried[depth + 1, rank] = carried[depth, rank] + share * bit
            missing = slots[rank] - taken[depth + 1, rank]
            if missing < 0 or missing > num_experts - depth - 1 or carried[depth + 1, rank] > capacity[rank]:
                fits = False
                break
        if fits:
            alike_at[depth + 1] = alike_at[depth] & ~(mask ^ held_next)
            depth += 1
            if depth < first:
                mask_at[depth] = 0
    return best
