"""The searches for co-residency and pair-mixture bounds, against every choice of counts and linear programs."""

import itertools
from functools import partial

import numpy as np
from scipy.optimize import linprog

from eplb.bounds.lower_bounds import co_residency_bound, pair_mixture_bound
from eplb.core.topology import Topology
from tests.bounds.test_lower_bounds_extended import known


def every_count(least, num_slots, num_ranks):
    """All counts of replicas of at least `least` and at most `num_ranks` that fill the slots."""
    free = num_slots - sum(least)
    ranges = [range(count, min(num_ranks, count + free) + 1) for count in least]
    return np.array([counts for counts in itertools.product(*ranges) if sum(counts) == num_slots]).reshape(
        -1, len(least)
    )


def is_refuted(load, topology, limit):
    """Whether some threshold, and level, gives every choice of counts a positive sum of potentials."""
    slots, num_ranks = int(topology.rank_num_slots.max()), topology.num_ranks
    num_empty = num_ranks * slots - topology.num_slots
    least = np.maximum(1, np.ceil(load / limit * (1 - 1e-12)).astype(int))
    if least.max() > num_ranks:
        return True
    counts = every_count(least.tolist(), topology.num_slots, num_ranks)
    if not counts.size:
        return True
    size = load / counts
    values = np.unique(np.concatenate([load / count for count in range(1, num_ranks + 1)]))
    for large in values[values > limit / 2 * (1 + 1e-9)]:
        is_large = size >= large * (1 - 1e-12)
        if slots == 2:
            is_small = size <= (limit - large) * (1 + 1e-12)
            if ((counts * is_large).sum(axis=1) - (counts * is_small).sum(axis=1) > num_empty).all():
                return True
        for level in values[values <= limit]:
            beside = np.where(is_large, size - limit + (slots - 1) * level, -np.maximum(0, level - size))
            if ((counts * beside).sum(axis=1) - num_empty * level > 1e-9 * limit).all():
                return True
    return False


def largest(refuted, low, high):
    """The largest load that is refuted, by bisection where refuted ones are an interval."""
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def small_layer(seed):
    """A skewed layer of few experts, on ranks of two or three slots, the last of them one less at times."""
    rng = np.random.default_rng(seed)
    num_ranks, slots = int(rng.integers(2, 5)), int(rng.integers(2, 4))
    rank_slots = [slots] * (num_ranks - 1) + [slots - int(rng.integers(0, 2))]
    topology = Topology(1, num_ranks, rank_slots)
    num_experts = min(topology.num_slots - int(rng.integers(1, 4)), 7)
    return np.round(20 * rng.random(max(num_experts, slots)) ** 2) + 1, topology


def test_what_is_refuted_is_refuted_for_every_choice_of_counts():
    raised = 0
    for seed in range(150):
        load, topology = small_layer(seed)
        base = known(load[None], topology)
        for reached in (None, base * 1.08):
            bound = co_residency_bound(load[None], topology, base, reached)[0]
            raised += bound > base[0] * 1.001
            assert bound == base[0] or is_refuted(load, topology, bound * (1 - 1e-9)), (seed, bound)
    assert raised > 40


def test_the_few_candidates_that_are_tried_prove_most_of_what_all_of_them_prove():
    gained = found = 0.0
    for seed in range(150, 230):
        load, topology = small_layer(seed)
        base = known(load[None], topology)
        best = largest(partial(is_refuted, load, topology), base[0], base[0] * 1.25)
        gained += co_residency_bound(load[None], topology, base)[0] / base[0] - 1
        found += best / base[0] - 1
    assert found > gained > 0.86 * found > 1


def is_refuted_for_mixtures(load, num_ranks, limit):
    """Whether no fractional mixture of counts pairs the replicas up to the limit: the dual of mixing thresholds."""
    least = np.maximum(1, np.ceil(load / limit * (1 - 1e-12)).astype(int))
    free = 2 * num_ranks - least.sum()
    if free < 0:
        return True
    options = [(e, c) for e in range(load.size) for c in range(least[e], min(num_ranks, least[e] + free) + 1)]
    experts, counts = np.array(options).T
    size = load[experts] / counts
    thresholds = np.unique(size[size > limit / 2])
    rows = [(size >= t).astype(float) * counts - (size <= limit - t + 1e-12) * counts for t in thresholds]
    one_each = np.zeros((load.size + 1, size.size))
    one_each[experts, np.arange(size.size)] = 1
    one_each[-1] = counts
    total = np.append(np.ones(load.size), 2 * num_ranks)
    above = {"A_ub": np.array(rows), "b_ub": np.zeros(len(rows))} if rows else {}
    return linprog(np.zeros(size.size), A_eq=one_each, b_eq=total, bounds=(0, 1), **above).status != 0


def test_mixtures_prove_most_of_what_linear_programs_prove_and_no_more():
    gained = found = 0.0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        num_ranks = int(rng.integers(4, 12))
        load, topology = rng.random(int(num_ranks * rng.uniform(1.2, 1.9))) ** 1.5, Topology(1, num_ranks, 2)
        base = co_residency_bound(load[None], topology, known(load[None], topology))
        bound = pair_mixture_bound(load[None], topology, base, base * 1.15)[0]
        assert bound == base[0] or is_refuted_for_mixtures(load, num_ranks, bound * (1 - 1e-6))
        best = largest(partial(is_refuted_for_mixtures, load, num_ranks), base[0], base[0] * 1.15)
        gained += bound / base[0] - 1
        found += best / base[0] - 1
    assert found > gained > 0.85 * found > 0.3
