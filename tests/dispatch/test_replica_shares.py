"""The solver's shares of replicas against the judge's, and against cases worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.dispatch.drawn_shares import drawn_shares
from eplb.dispatch.engine_rules import expected_slot_load, expected_slot_shares
from eplb.dispatch.replica_shares import FIXED_SHARE_RULES, ReplicaShares
from eplb.errors import InputError
from eplb_traces import ModelShape
from tests.generators import placements

DRAWN = (DispatchRule.SGLANG_STATIC, DispatchRule.SGLANG_DYNAMIC)


def sources_of(draw_seed, num_ranks):
    """Shares by rank with some ranks that send nothing."""
    rng = np.random.default_rng(draw_seed)
    weight = rng.integers(0, 5, num_ranks).astype(np.float64)
    weight[rng.integers(num_ranks)] += 1
    return tuple((weight / weight.sum()).tolist())


def nearest_shares(placement, layer, sources):
    """[P] by loops over ranks: the nearest replica as SGLang chooses it, all replicas alike where there is none."""
    topology, share = placement.topology, np.zeros(placement.num_slots)
    row, rank_of, node_of = placement.physical_to_logical_map[layer], topology.rank_of_slot, topology.node_of_rank
    for expert in range(placement.num_experts):
        slots = np.flatnonzero(row == expert).tolist()
        for rank, sent in enumerate(sources):
            own = [slot for slot in slots if rank_of[slot] == rank]
            near = [slot for slot in slots if node_of[rank_of[slot]] == node_of[rank]]
            near = [] if len(near) == len(slots) else near
            chosen = own[:1] or near[:1] or slots
            for slot in chosen:
                share[slot] += sent / len(chosen)
    return share


@pytest.mark.parametrize("rule", [rule for rule in FIXED_SHARE_RULES if rule not in DRAWN])
@given(placement=placements(holes=True), seed=st.none() | st.integers(0, 2**32 - 1))
def test_shares_are_those_of_the_judge(rule, placement, seed):
    num_ranks = placement.topology.num_ranks
    sources = None if seed is None else sources_of(seed, num_ranks)
    found = ReplicaShares(rule, placement.topology, sources).of_slots(
        placement.physical_to_logical_map, placement.num_experts
    )
    sent = np.outer(np.full(num_ranks, 1 / num_ranks) if sources is None else sources, np.ones(placement.num_experts))
    for layer in range(placement.num_layers):
        expected = expected_slot_load(placement, layer, sent, rule)
        np.testing.assert_allclose(found[layer], expected, atol=1e-12)


@pytest.mark.parametrize("rule", DRAWN)
@given(placement=placements(holes=True), seed=st.integers(0, 2**32 - 1))
def test_shares_of_drawn_replicas_are_their_expectation(rule, placement, seed):
    sources = sources_of(seed, placement.topology.num_ranks)
    found = ReplicaShares(rule, placement.topology, sources).of_slots(
        placement.physical_to_logical_map, placement.num_experts
    )
    for layer in range(placement.num_layers):
        np.testing.assert_allclose(found[layer], nearest_shares(placement, layer, sources), atol=1e-12)


# Expert 0 is on ranks 0 and 1 of node 0 and on rank 2 of node 1; node 2 (ranks 4, 5) has none of it.
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # Ranks 0, 1, 2 use their own replica, rank 3 that on rank 2, and ranks 4 and 5 all three alike.
        (DispatchRule.LOCAL_FIRST, [1 + 2 / 3, 1 + 2 / 3, 2 + 2 / 3]),
        (DispatchRule.SGLANG_DYNAMIC, [1 + 2 / 3, 1 + 2 / 3, 2 + 2 / 3]),
        # Ranks 0, 3 | 1, 4 | 2, 5.
        (DispatchRule.ASCEND, [2, 2, 2]),
    ],
)
def test_a_case_worked_by_hand(rule, expected):
    row = np.array([[0, 0, 0, 1, 2, 3]], dtype=np.int32)
    shares = ReplicaShares(rule, Topology(3, 2, 1)).of_slots(row, 4)
    np.testing.assert_allclose(shares[0], np.array([*expected, 6, 6, 6]) / 6)


def test_the_replicas_of_one_node_alone_are_used_by_all_ranks_alike():
    # Nodes of three ranks; expert 0 on ranks 0 and 1. SGLang does not narrow: rank 2 uses both, as do ranks 3 to 5.
    row = np.array([[0, 0, 1, 2, 3, 4]], dtype=np.int32)
    shares = ReplicaShares(DispatchRule.SGLANG_DYNAMIC, Topology(2, 3, 1)).of_slots(row, 5)
    np.testing.assert_allclose(shares[0, :2], [0.5, 0.5])
    # With one of three replicas on the other node, rank 2 uses the first one on its own node.
    row = np.array([[0, 0, 1, 0, 2, 3]], dtype=np.int32)
    shares = ReplicaShares(DispatchRule.SGLANG_DYNAMIC, Topology(2, 3, 1)).of_slots(row, 4)
    np.testing.assert_allclose(shares[0, [0, 1, 3]], np.array([2, 1, 3]) / 6)


@pytest.mark.parametrize("rule", [DispatchRule.WEIGHTED, DispatchRule.ONLINE])
def test_rules_without_fixed_shares_are_refused_by_name(rule):
    with pytest.raises(InputError, match=f"dispatch = {rule}"):
        ReplicaShares(rule, Topology(1, 2, 1))


def test_the_judge_and_the_solver_differ_where_one_of_them_is_changed():
    placement = Placement([[0, 0, 1, 0]], 2, Topology(2, 2, 1))
    shares = ReplicaShares(DispatchRule.LOCAL_FIRST, placement.topology).of_slots(placement.physical_to_logical_map, 2)
    judged = expected_slot_load(placement, 0, np.full((4, 2), 0.25), DispatchRule.EVEN)
    assert not np.allclose(shares[0], judged)


@given(placement=placements(holes=True), seed=st.integers(0, 2**32 - 1), dense=st.integers(0, 2))
def test_drawn_shares_are_those_of_the_draw_by_pythons_own_generator(placement, seed, dense):
    sources = sources_of(seed, placement.topology.num_ranks)
    num_layers = placement.num_layers
    ids = tuple(range(dense, dense + num_layers))
    shape = ModelShape(num_layers, placement.num_experts, moe_layer_ids=ids, num_hidden_layers=num_layers + dense)
    expected = expected_slot_shares(placement, DispatchRule.SGLANG_STATIC, sources, shape)
    np.testing.assert_allclose(drawn_shares(placement, shape, sources), expected, atol=1e-12)


def test_drawn_shares_of_many_replicas_on_many_ranks():
    # 48 ranks on 6 nodes: experts with 2 to 40 replicas, so that samples are drawn from pools and from sets.
    rng = np.random.default_rng(3)
    topology, num_experts = Topology(6, 8, 4), 8
    rows = []
    for _ in range(5):
        counts = rng.permutation([40, 36, 30, 27, 24, 22, 8, 5])
        rows.append(np.concatenate([np.full(count, expert) for expert, count in enumerate(counts)]))
        rng.shuffle(rows[-1])
    placement = Placement(np.stack(rows), num_experts, topology)
    shape = ModelShape(5, num_experts)
    drawn = drawn_shares(placement, shape, None)
    np.testing.assert_allclose(drawn, expected_slot_shares(placement, DispatchRule.SGLANG_STATIC, None, shape))
    expectation = ReplicaShares(DispatchRule.SGLANG_STATIC, topology).of_slots(placement.physical_to_logical_map, 8)
    assert not np.allclose(drawn, expectation)
