"""The spread of a token over ranks and nodes, against counting by hand, by enumeration and in plain Python."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eplb
from eplb.errors import InputError
from eplb.evaluation.token_spread import token_spread
from eplb_traces import ModelShape, RoutingTrace, TokenBatch
from tests.generators import placements


def trace_of(ids, num_experts, cuts=1):
    """[t, L, K] choices as a trace, in `cuts` batches."""
    ids = np.asarray(ids)
    shape = ModelShape(ids.shape[1], num_experts, ids.shape[2])
    parts = [part for part in np.array_split(ids, cuts) if len(part)]
    return RoutingTrace(
        shape, [TokenBatch(shape, part, np.zeros(len(part), int), np.arange(len(part))) for part in parts]
    )


def test_one_copy_each_is_counted_exactly():
    # Ranks 0: experts 0 1, 1: experts 2 3, 2: experts 4 5, 3: experts 6 7; nodes of two ranks.
    placement = eplb.Placement([np.arange(8)], 8, eplb.Topology(2, 2, 2))
    trace = trace_of([[[0, 1]], [[0, 2]], [[1, 7]], [[6, 5]]], 8)
    spread = token_spread(placement, trace)
    assert spread.ranks_per_token.tolist() == [(1 + 2 + 2 + 2) / 4]
    assert spread.nodes_per_token.tolist() == [(1 + 1 + 2 + 1) / 4]


def test_copies_share_tokens_evenly():
    # Expert 0 on ranks 0 and 1, expert 1 on rank 0, expert 2 on rank 1: token (0, 1) needs rank 1 too in half of cases.
    placement = eplb.Placement([[0, 1, 0, 2]], 3, eplb.Topology(1, 2, 2))
    spread = token_spread(placement, trace_of([[[0, 1]]], 3))
    assert spread.ranks_per_token.tolist() == [1.5]
    assert spread.nodes_per_token.tolist() == [1.0]


def enumerated(placement, ids, unit_of_slot):
    """[L] mean over tokens of the mean over all ways to pick one copy of each choice, all ways alike."""
    found = np.zeros(placement.num_layers)
    for token, layer in product(range(len(ids)), range(placement.num_layers)):
        row = placement.physical_to_logical_map[layer]
        ways = list(product(*(np.flatnonzero(row == expert) for expert in ids[token, layer])))
        found[layer] += sum(len({int(unit_of_slot[slot]) for slot in way}) for way in ways) / len(ways)
    return found / len(ids)


@given(placement=placements(holes=True), data=st.data())
def test_the_kernel_equals_going_through_all_ways(placement, data):
    top_k = data.draw(st.integers(1, min(3, placement.num_experts)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = (data.draw(st.integers(1, 3)), placement.num_layers)
    ids = np.array([[rng.permutation(placement.num_experts)[:top_k] for _ in range(shape[1])] for _ in range(shape[0])])
    topology = placement.topology
    spread = token_spread(placement, trace_of(ids, placement.num_experts, cuts=2))
    np.testing.assert_allclose(spread.ranks_per_token, enumerated(placement, ids, topology.rank_of_slot))
    nodes = topology.node_of_rank[topology.rank_of_slot]
    np.testing.assert_allclose(spread.nodes_per_token, enumerated(placement, ids, nodes))


def test_another_model_and_an_empty_trace_are_refused():
    placement = eplb.Placement([np.arange(8)], 8, eplb.Topology(1, 2, 4))
    with pytest.raises(InputError, match="trace of 2 layers x 8 experts: the placement is for 1 layers x 8 experts"):
        token_spread(placement, trace_of(np.zeros((1, 2, 1), int), 8))
    with pytest.raises(InputError, match="no tokens"):
        token_spread(placement, RoutingTrace(ModelShape(1, 8, 1), []))
