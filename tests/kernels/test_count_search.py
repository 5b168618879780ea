"""Counts and pairs for two slots a rank, against every count and every pairing of tiny layers."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb.kernels.count_search import fold_layers, search_counts
from eplb.strategies.greedy import Greedy
from eplb.strategies.pairing import improve_pairs, pairs_apply
from eplb.topology import Topology
from tests.strategies import layer_loads


def folded(load, count):
    sizes = sorted(np.repeat(load / count, count))
    return max(a + b for a, b in zip(sizes, sizes[::-1], strict=True))


@settings(max_examples=60)
@given(load=layer_loads(6), seed=st.integers(0, 10**6))
def test_the_search_ends_no_higher_and_its_claim_is_the_fold_of_its_counts(load, seed):
    if load.sum() == 0:
        return
    num_ranks = 5
    count = 1 + np.random.default_rng(seed).multinomial(2 * num_ranks - 6, np.ones(6) / 6)
    before, reached, counts = folded(load, count), np.empty(1), count[None].copy()
    search_counts(load[None], num_ranks, np.array([load.sum() / num_ranks]), 1e-6, 1000, counts, reached)
    assert counts.sum() == 2 * num_ranks
    assert counts.min() >= 1
    assert counts.max() <= num_ranks
    assert reached[0] <= before * (1 + 1e-12)
    assert reached[0] == pytest.approx(folded(load, counts[0]), rel=1e-12)


def test_it_mostly_finds_the_best_of_all_counts():
    rng, num_ranks, found_best = np.random.default_rng(0), 5, 0
    splits = [c for c in itertools.product(range(1, 6), repeat=7) if sum(c) == 2 * num_ranks]
    for _ in range(20):
        load = rng.lognormal(0, 1, 7)
        best = min(folded(load, np.array(count)) for count in splits)
        counts, reached = np.array([[4, 1, 1, 1, 1, 1, 1]]), np.empty(1)
        search_counts(load[None], num_ranks, np.array([load.sum() / num_ranks]), 1e-6, 1000, counts, reached)
        found_best += reached[0] <= best * (1 + 1e-9)
    assert found_best >= 15


@settings(max_examples=80)
@given(data=st.data(), num_ranks=st.integers(2, 6))
def test_folding_fills_the_slots_keeps_books_and_parts_the_copies_of_an_expert(data, num_ranks):
    num_experts = data.draw(st.integers(3, 2 * num_ranks))
    load = data.draw(layer_loads(num_experts))
    count = np.ones((1, num_experts), dtype=np.int64)
    for _ in range(2 * num_ranks - num_experts):
        open_experts = np.flatnonzero(count[0] < num_ranks)
        count[0, data.draw(st.sampled_from(open_experts.tolist()))] += 1
    phy2log, slot_load = np.empty((1, 2 * num_ranks), dtype=np.int32), np.empty((1, 2 * num_ranks))
    rank_load = np.empty((1, num_ranks))
    if not fold_layers(load[None], count, phy2log, slot_load, rank_load):
        return
    pairs = phy2log[0].reshape(-1, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert np.bincount(phy2log[0], minlength=num_experts).tolist() == count[0].tolist()
    assert slot_load[0] == pytest.approx((load / count[0])[phy2log[0]])
    assert rank_load[0] == pytest.approx(slot_load[0].reshape(-1, 2).sum(axis=1))


def test_greedys_plan_for_two_slots_a_rank_gets_better_and_no_layer_worse():
    load = np.random.default_rng(0).random((6, 256))
    topology = Topology(1, 144, 2)
    assert pairs_apply(topology)
    assert not pairs_apply(Topology(1, 144, 3))
    phy2log, rank_load = Greedy().pack(load, topology.rank_first_slot)
    better, after = improve_pairs(load, phy2log, rank_load, topology)
    assert (after.max(axis=1) <= rank_load.max(axis=1)).all()
    assert (after.max(axis=1) / rank_load.max(axis=1)).mean() < 0.99
    pairs = better.reshape(6, -1, 2)
    assert (pairs[:, :, 0] != pairs[:, :, 1]).all()
    assert all(set(row.tolist()) == set(range(256)) for row in better)
