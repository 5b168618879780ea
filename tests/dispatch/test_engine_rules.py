"""What each engine's rule gives slots and ranks, by hand."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.dispatch.batch_split import filled_in, largest_remainder, source_quotas, split_counts
from eplb.dispatch.engine_rules import (
    expected_rank_load,
    expected_slot_load,
    expected_slot_shares,
    rank_slot_map,
)
from eplb.dispatch.sglang_static import nearest_slots
from eplb.errors import InputError, UnknownNameError
from eplb_traces import ModelShape
from tests.generators import placements

# Two nodes of two ranks with two slots: expert 0 on ranks 0 and 3, expert 1 on ranks 1 and 2 (twice), 2 and 3 once.
_PLACEMENT = Placement([[0, 2, 1, 3, 1, 1, 0, -1]], 4, Topology(2, 2, 2), [[0.75, 1, 0.5, 1, 0.5, 0, 0.25, 0]])
_SOURCE = np.zeros((4, 4))
_SOURCE[:, 0] = [10, 20, 30, 40]
_SOURCE[:, 1] = [6, 0, 0, 12]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # Expert 0: 100 tokens over slots 0 and 6; expert 1: 18 tokens over slots 2, 4 and 5.
        (DispatchRule.EVEN, [50, 0, 6, 0, 6, 6, 50, 0]),
        (DispatchRule.VLLM, [50, 0, 6, 0, 6, 6, 50, 0]),
        (DispatchRule.TRTLLM, [50, 0, 6, 0, 6, 6, 50, 0]),
        (DispatchRule.WEIGHTED, [75, 0, 9, 0, 9, 0, 25, 0]),
        # Rank r takes replica r % 2 of expert 0 (10 + 30 and 20 + 40), r % 3 of expert 1 (ranks 0 and 3: the first).
        (DispatchRule.ASCEND, [40, 0, 18, 0, 0, 0, 60, 0]),
        # Expert 0: ranks 0 and 1 share a node with slot 0, ranks 2 and 3 with slot 6. Expert 1: rank 0 is near slot 2,
        # rank 3 near slots 4 and 5, of which SGLang takes the first and `local_first` both alike.
        (DispatchRule.SGLANG_STATIC, [30, 0, 6, 0, 12, 0, 70, 0]),
        (DispatchRule.LOCAL_FIRST, [30, 0, 6, 0, 6, 6, 70, 0]),
        # Every rank has a nearest replica of both, so dynamic has nothing to draw.
        (DispatchRule.SGLANG_DYNAMIC, [30, 0, 6, 0, 12, 0, 70, 0]),
        (DispatchRule.SGLANG_BY_ROW, [50, 0, 6, 0, 6, 6, 50, 0]),
    ],
)
def test_slot_loads_by_hand(rule, expected):
    assert expected_slot_load(_PLACEMENT, 0, _SOURCE, rule).tolist() == expected


def test_online_fills_the_emptiest_ranks():
    # 100 tokens of expert 0 on ranks 0 and 3, 18 of expert 1 on ranks 1 and 2: nothing to trade, 50, 9, 9, 50.
    assert expected_rank_load(_PLACEMENT, 0, [100, 18, 0, 0], DispatchRule.ONLINE).tolist() == [50, 9, 9, 50]


def test_without_source_counts_every_rank_holds_its_share():
    load = [100.0, 12.0, 5.0, 7.0]
    expected = expected_rank_load(_PLACEMENT, 0, load, DispatchRule.ASCEND)
    by_source = np.broadcast_to(np.array(load) / 4, (4, 4))
    assert expected.tolist() == expected_rank_load(_PLACEMENT, 0, load, DispatchRule.ASCEND, by_source).tolist()
    assert expected.tolist() == [50 + 5, 6 + 7, 3 + 3, 50]


# One node of three ranks: expert 0 on ranks 0 and 1, so rank 2 has no nearest replica; expert 1 on ranks 1 and 2.
_ONE_NODE = Placement([[0, 2, 0, 1, 1, 3]], 4, Topology(1, 3, 2))


def test_dynamic_takes_the_nearest_replica_and_draws_evenly_without_one():
    # All replicas are on the node, so only the own rank's replica is nearest. Expert 0: ranks 0 and 1 take their own,
    # rank 2 draws: 30 + 60 / 2 and 20 + 60 / 2. Expert 1: rank 0 draws: 5 + 7 and 5 + 9.
    source = np.zeros((3, 4))
    source[:, 0], source[:, 1] = [30, 20, 60], [10, 7, 9]
    found = expected_slot_load(_ONE_NODE, 0, source, DispatchRule.SGLANG_DYNAMIC)
    assert found.tolist() == [60, 0, 50, 12, 14, 0]


def test_nearest_is_the_only_replica_then_the_own_rank_then_a_part_of_the_node():
    assert nearest_slots(_ONE_NODE, 0).tolist() == [[0, -1, 1, 5], [2, 3, 1, 5], [-1, 4, 1, 5]]
    # Two nodes of two ranks. Expert 0 is on both nodes, expert 1 on ranks 1 and 0 of the first node alone, expert 2
    # twice on rank 3 alone, whose two slots are on one node.
    placement = Placement([[0, 1, 1, 0, 0, 3, 2, 2]], 4, Topology(2, 2, 2))
    assert nearest_slots(placement, 0).tolist() == [[0, 1, -1, 5], [3, 2, -1, 5], [4, -1, -1, 5], [4, -1, 6, 5]]


def test_shares_weigh_the_sources():
    # Rank 2 sends half of all tokens: expert 0 gets 0.3 + 0.25 and 0.2 + 0.25, expert 1 0.15 + 0.2 and 0.15 + 0.5.
    sources = [0.3, 0.2, 0.5]
    found = expected_slot_shares(_ONE_NODE, DispatchRule.SGLANG_DYNAMIC, sources)
    assert found[0] == pytest.approx([0.55, 1, 0.45, 0.35, 0.65, 1])
    assert expected_slot_shares(_ONE_NODE, DispatchRule.VLLM, sources)[0].tolist() == [0.5, 1, 0.5, 0.5, 0.5, 1]
    with pytest.raises(InputError, match="expected one share >= 0 for each of 3 ranks"):
        expected_slot_shares(_ONE_NODE, DispatchRule.EVEN, [0.5, 0.6, -0.1])
    with pytest.raises(InputError, match="online: its shares depend on the batch"):
        expected_slot_shares(_ONE_NODE, DispatchRule.ONLINE)


@given(placement=placements(holes=True), seed=st.integers(0, 1000))
def test_shares_are_the_slot_loads_of_one_token_of_each_expert(placement, seed):
    num_ranks, num_experts = placement.topology.num_ranks, placement.num_experts
    sources = np.random.default_rng(seed).random(num_ranks) + 0.1
    sources /= sources.sum()
    one_token = np.outer(sources, np.ones(num_experts))
    for rule in set(DispatchRule) - {DispatchRule.WEIGHTED, DispatchRule.ONLINE}:
        shares = expected_slot_shares(placement, rule, sources)
        for layer in range(placement.num_layers):
            assert shares[layer] == pytest.approx(expected_slot_load(placement, layer, one_token, rule))


def _drawn_alone(placement, rank):
    """[L, E] slots of one rank, by a generator that draws for this rank only: the rule word for word."""
    draw = random.Random(42)
    slots = np.stack([nearest_slots(placement, layer)[rank] for layer in range(placement.num_layers)])
    for layer, expert in np.argwhere(slots < 0):
        replicas = [s for s in placement.logical_to_physical_map[layer, expert].tolist() if s >= 0]
        far = np.flatnonzero(nearest_slots(placement, layer)[:, expert] < 0).tolist()
        dealt = replicas * (len(far) // len(replicas)) + draw.sample(replicas, len(far) % len(replicas))
        draw.shuffle(dealt)
        slots[layer, expert] = dealt[far.index(rank)]
    return slots


@given(placement=placements(holes=True))
def test_the_static_map_is_the_walk_of_every_rank(placement):
    found = rank_slot_map(placement, DispatchRule.SGLANG_STATIC)
    for rank in range(placement.topology.num_ranks):
        assert np.array_equal(found[:, rank], _drawn_alone(placement, rank))


def test_ranks_that_draw_for_the_same_experts_deal_the_replicas_evenly():
    # Ranks 0, 1 and 2 hold expert 0; the other nine have had the same draws so far and take each slot three times.
    placement = Placement([[0, 1, 0, 1, 0, 1] + [2] * 18], 3, Topology(12, 1, 2))
    (slots,) = rank_slot_map(placement, DispatchRule.SGLANG_STATIC)
    assert np.bincount(slots[3:, 0]).tolist() == [3, 0, 3, 0, 3]
    assert slots[:3, 0].tolist() == [0, 2, 4]


def test_rows_of_dense_layers_take_part_in_the_walk():
    """The file has the first MoE layer's row for every dense layer: the walk draws for it once for each of them."""
    row, other = [0, 1, 0, 2, 0, 3, 3, 1], [3, 3, 1, 0, 1, 2, 0, 0]
    topology = Topology(4, 2, 1)
    moe = Placement([row, other], 4, topology)
    as_in_file = Placement([row, row, row, other], 4, topology)
    shape = ModelShape(2, 4, moe_layer_ids=(2, 3), num_hidden_layers=4)
    found = rank_slot_map(moe, DispatchRule.SGLANG_STATIC, shape)
    assert np.array_equal(found, rank_slot_map(as_in_file, DispatchRule.SGLANG_STATIC)[2:])
    assert not np.array_equal(found, rank_slot_map(moe, DispatchRule.SGLANG_STATIC))


@given(placement=placements(holes=True), data=st.data())
def test_no_rule_loses_or_invents_tokens(placement, data):
    num_ranks, num_experts = placement.topology.num_ranks, placement.num_experts
    seed = data.draw(st.integers(0, 1000))
    source = np.random.default_rng(seed).integers(0, 50, (num_ranks, num_experts))
    for rule in set(DispatchRule) - {DispatchRule.WEIGHTED}:
        slots = expected_slot_load(placement, 0, source, rule)
        by_expert = np.zeros(num_experts)
        np.add.at(by_expert, placement.physical_to_logical_map[0].clip(0), slots)
        assert by_expert == pytest.approx(source.sum(axis=0))
        assert not slots[placement.physical_to_logical_map[0] == -1].any()


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"source_tokens has shape \(4, 3\)"):
        expected_slot_load(_PLACEMENT, 0, np.zeros((4, 3)), DispatchRule.EVEN)
    with pytest.raises(InputError, match="expert 0 sum to 100"):
        expected_rank_load(_PLACEMENT, 0, [99, 18, 0, 0], DispatchRule.EVEN, _SOURCE)
    with pytest.raises(InputError, match="even: the slot is not fixed"):
        rank_slot_map(_PLACEMENT, DispatchRule.EVEN)
    with pytest.raises(UnknownNameError, match="unknown dispatch rule 'odd'"):
        DispatchRule.named("odd")


def test_pouring_by_hand():
    # Ranks carry 10, 4 and 0; 13 tokens: fill to 8.5 on the last two, which is 4.5 and 8.5, rounded to 5 and 8.
    load = np.array([10, 4, 0])
    assert filled_in(13, np.array([0, 1, 2], dtype=np.int32), load).tolist() == [0, 5, 8]
    assert filled_in(3, np.array([1, 2, 2], dtype=np.int32), load).tolist() == [0, 2, 1]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8), st.integers(0, 500))
def test_largest_remainder_keeps_the_total(parts, total):
    shares = np.array(parts, dtype=np.float64) + 1
    rounded = largest_remainder(shares / shares.sum() * total, total)
    assert rounded.sum() == total
    assert np.abs(rounded - shares / shares.sum() * total).max() < 1 + 1e-6


@given(placement=placements(holes=True), seed=st.integers(0, 1000))
def test_a_split_keeps_every_token_and_its_quotas_fit(placement, seed):
    num_ranks, num_experts = placement.topology.num_ranks, placement.num_experts
    source = np.random.default_rng(seed).integers(0, 50, (num_ranks, num_experts))
    log2phy, rank_of_slot = placement.logical_to_physical_map[0], placement.topology.rank_of_slot
    split = split_counts(source.sum(axis=0), log2phy, rank_of_slot)
    assert split.min() >= 0
    assert np.array_equal(split.sum(axis=1), source.sum(axis=0))
    for expert in range(num_experts):
        slots = log2phy[expert][log2phy[expert] >= 0]
        quota = source_quotas(split[expert, : slots.size], source[:, expert], rank_of_slot[slots])
        assert quota.min() >= 0
        assert np.array_equal(quota.sum(axis=1), source[:, expert])
        assert np.array_equal(quota.sum(axis=0), split[expert, : slots.size])


def test_an_expert_with_tokens_and_no_slot_is_refused():
    with pytest.raises(InputError, match="expert 1 has 5 tokens and no slot"):
        split_counts(np.array([1, 5]), np.array([[0], [-1]], dtype=np.int32), np.array([0], dtype=np.int32))
