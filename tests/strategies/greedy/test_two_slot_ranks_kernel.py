"""Replica counts and pairs for ranks with two slots or one, against every count and every pairing of tiny layers."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.evaluation.metrics import evaluate
from eplb.strategies.greedy.greedy import Greedy, descending_order, most_replicas_together
from eplb.strategies.greedy.replicate_and_pack_kernel import place_layers
from eplb.strategies.greedy.two_slot_ranks import has_two_slot_ranks, improved_map
from eplb.strategies.greedy.two_slot_ranks_kernel import pair_layers, search_counts
from eplb_traces import ExpertLoad
from tests.generators import layer_loads


def largest_pair(load, count, num_empty=0):
    sizes = sorted([0.0] * num_empty + np.repeat(load / count, count).tolist())
    return max(a + b for a, b in zip(sizes, sizes[::-1], strict=True))


@settings(max_examples=60)
@given(load=layer_loads(6), seed=st.integers(0, 10**6), num_empty=st.integers(0, 4))
def test_the_search_ends_no_higher_and_its_claim_is_the_largest_pair_of_its_counts(load, seed, num_empty):
    if load.sum() == 0:
        return
    num_ranks = 5
    count = 1 + np.random.default_rng(seed).multinomial(2 * num_ranks - num_empty - 6, np.ones(6) / 6)
    before, reached, counts = largest_pair(load, count, num_empty), np.empty(1), count[None].copy()
    search_counts(load[None], num_ranks, np.array([load.sum() / num_ranks]), 1e-6, counts, reached)
    assert counts.sum() == 2 * num_ranks - num_empty
    assert counts.min() >= 1
    assert counts.max() <= num_ranks
    assert reached[0] <= before * (1 + 1e-12)
    assert reached[0] == pytest.approx(largest_pair(load, counts[0], num_empty), rel=1e-12)


@pytest.mark.parametrize("num_empty", [0, 2])
def test_it_mostly_finds_the_best_of_all_counts(num_empty):
    rng, num_ranks, found_best = np.random.default_rng(0), 5, 0
    num_slots = 2 * num_ranks - num_empty
    splits = [c for c in itertools.product(range(1, 6), repeat=7) if sum(c) == num_slots]
    for _ in range(20):
        load = rng.lognormal(0, 1, 7)
        best = min(largest_pair(load, np.array(count), num_empty) for count in splits)
        counts, reached = np.array([[num_slots - 6, 1, 1, 1, 1, 1, 1]]), np.empty(1)
        search_counts(load[None], num_ranks, np.array([load.sum() / num_ranks]), 1e-6, counts, reached)
        found_best += reached[0] <= best * (1 + 1e-9)
    assert found_best >= 15


@settings(max_examples=80)
@given(data=st.data(), slots=st.lists(st.integers(1, 2), min_size=2, max_size=6))
def test_pairing_fills_the_slots_gives_true_loads_and_separates_the_replicas_of_an_expert(data, slots):
    num_ranks, num_slots = len(slots), sum(slots)
    first_slot = np.cumsum([0, *slots])
    num_experts = data.draw(st.integers(min(3, num_slots), num_slots))
    load = data.draw(layer_loads(num_experts))
    count = np.ones((1, num_experts), dtype=np.int64)
    for _ in range(num_slots - num_experts):
        open_experts = np.flatnonzero(count[0] < num_ranks)
        if not open_experts.size:
            return
        count[0, data.draw(st.sampled_from(open_experts.tolist()))] += 1
    phy2log, slot_load = np.empty((1, num_slots), dtype=np.int32), np.empty((1, num_slots))
    rank_load = np.empty((1, num_ranks))
    if not pair_layers(load[None], count, first_slot, phy2log, slot_load, rank_load):
        return
    ranks = np.split(phy2log[0], first_slot[1:-1])
    assert all(len(set(rank.tolist())) == rank.size for rank in ranks)
    assert np.bincount(phy2log[0], minlength=num_experts).tolist() == count[0].tolist()
    assert slot_load[0] == pytest.approx((load / count[0])[phy2log[0]])
    assert rank_load[0] == pytest.approx(np.add.reduceat(slot_load[0], first_slot[:-1]))


def test_the_largest_replicas_are_alone_where_ranks_have_one_slot():
    # 9, 7, 4, 3, 2 on ranks of 1, 2 and 2 slots: 9 alone, 7 with 2, 4 with 3.
    first_slot, phy2log, rank_load = np.array([0, 2, 3, 5]), np.empty((1, 5), np.int32), np.empty((1, 3))
    load, count = np.array([[9.0, 7, 4, 3, 2]]), np.ones((1, 5), np.int64)
    assert pair_layers(load, count, first_slot, phy2log, np.empty((1, 5)), rank_load)
    assert phy2log.tolist() == [[1, 4, 0, 2, 3]]
    assert rank_load.tolist() == [[9, 9, 7]]


@pytest.mark.parametrize("slots", [2, [2] * 72 + [1] * 144, [1, 2] * 130])
def test_greedys_plan_for_two_slots_a_rank_is_no_worse_than_its_start_and_mostly_better(slots):
    load = np.random.default_rng(0).random((6, 256))
    topology = Topology(1, 144 if slots == 2 else len(slots), slots)
    assert has_two_slot_ranks(topology)
    order, first_slot, shape = descending_order(load), topology.rank_first_slot.copy(), (6, topology.num_slots)
    count, phy2log, slot_load = np.empty((6, 256), np.int64), np.empty(shape, np.int32), np.empty(shape)
    rank_load, ones = np.empty((6, topology.num_ranks)), np.ones(topology.num_ranks)
    room = most_replicas_together(first_slot, 256)
    assert place_layers(
        load, order, first_slot, ones, room, 1, topology.num_ranks, 0.0, count, phy2log, slot_load, rank_load
    )
    improved = improved_map(load, phy2log, topology)
    after = evaluate(Placement(improved, 256, topology), ExpertLoad(load)).rank_load[0]
    packed, packed_load = Greedy().pack(load, topology.rank_first_slot)
    assert (after.max(axis=1) <= rank_load.max(axis=1)).all()
    assert (after.max(axis=1) / rank_load.max(axis=1)).mean() < 0.99
    assert (packed_load.max(axis=1) <= after.max(axis=1) * (1 + 1e-12)).all()
    for rows in (improved, packed):
        placement = Placement(rows, 256, topology)  # every expert in every layer
        assert not placement.duplicate_slots.any()


def test_other_topologies_have_no_two_slot_ranks():
    assert not has_two_slot_ranks(Topology(1, 144, 3))
    assert not has_two_slot_ranks(Topology(1, 3, [1, 2, 3]))
    assert not has_two_slot_ranks(Topology(1, 2, 2, rank_speed=[1, 2]))
    assert not has_two_slot_ranks(Topology(1, 3, 1))


def test_a_thousand_ranks_with_two_slots_or_one_come_near_the_mean():
    # Largest first ends 39 % above the mean here, exchanges after it 9.5 %.
    load = np.random.default_rng(0).lognormal(0, 1, (1, 512))
    topology = Topology(1, 1024, [2] * 512 + [1] * 512)
    _, rank_load = Greedy().pack(load, topology.rank_first_slot)
    assert rank_load.max() <= 1.06 * load.sum() / 1024
