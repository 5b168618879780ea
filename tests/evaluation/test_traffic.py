"""Token copies to ranks and nodes, against counting by hand, by enumeration and with Python's sets."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eplb
from eplb.core.dispatch_rule import DispatchRule
from eplb.dispatch.engine_rules import expected_slot_load
from eplb.errors import InputError
from eplb.evaluation.traffic import TokenSources, covering_traffic, expected_traffic, fitting_sources, token_spread
from eplb_traces import ModelShape, RoutingTrace, TokenBatch
from tests.generators import placements


def trace_of(ids, num_experts, cuts=1, sources=None):
    """[t, L, K] choices as a trace, in `cuts` batches."""
    ids = np.asarray(ids)
    shape = ModelShape(ids.shape[1], num_experts, ids.shape[2])
    parts = [part for part in np.array_split(np.arange(len(ids)), cuts) if len(part)]
    return RoutingTrace(
        shape,
        [
            TokenBatch(
                shape, ids[part], np.zeros(len(part), int), part, None if sources is None else np.asarray(sources)[part]
            )
            for part in parts
        ],
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


def cover_by_hand(placement, layer, choices, source):
    """Greedy set cover with Python's sets: ({node: ranks visited there}, {rank: choices})."""
    topology = placement.topology
    row = placement.physical_to_logical_map[layer]
    ranks_of = {e: {int(topology.rank_of_slot[s]) for s in np.flatnonzero(row == e)} for e in choices}
    node_of = topology.node_of_rank.tolist()
    open_, visited, work = set(choices), {}, {}
    while open_:
        nodes = {n: {e for e in open_ if any(node_of[r] == n for r in ranks_of[e])} for n in set(node_of)}
        node = max(nodes, key=lambda n: (len(nodes[n]), n == node_of[source], -n))
        here = nodes[node]
        open_ -= here
        visited[node] = set()
        while here:
            ranks = {r: {e for e in here if r in ranks_of[e]} for r in range(topology.num_ranks) if node_of[r] == node}
            rank = max(ranks, key=lambda r: (len(ranks[r]), r == source, -r))
            visited[node].add(rank)
            work[rank] = len(ranks[rank])
            here = here - ranks[rank]
    return visited, work


@given(placement=placements(holes=True), data=st.data())
def test_the_cover_equals_one_made_with_sets(placement, data):
    top_k = data.draw(st.integers(1, min(4, placement.num_experts)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    ids = np.array(
        [[rng.permutation(placement.num_experts)[:top_k] for _ in range(placement.num_layers)] for _ in range(5)]
    )
    num_ranks = placement.topology.num_ranks
    known = data.draw(st.booleans())
    sources = rng.integers(0, num_ranks, len(ids)) if known else np.arange(len(ids)) % num_ranks
    found = covering_traffic(placement, trace_of(ids, placement.num_experts, 2, sources if known else None))
    expected = [np.zeros(array.shape) for array in (found.rank_copies, found.node_copies, found.choices)]
    for token, layer in product(range(len(ids)), range(placement.num_layers)):
        source = sources[token]
        visited, work = cover_by_hand(placement, layer, ids[token, layer].tolist(), source)
        for node, ranks in visited.items():
            expected[1][layer, source, node] += 1
            for rank in ranks:
                expected[0][layer, source, rank] += 1
                expected[2][layer, source, rank] += work[rank]
    for ours, theirs in zip((found.rank_copies, found.node_copies, found.choices), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert found.known_sources == known


@given(placement=placements(), rule=st.sampled_from(["even", "local_first", "ascend"]), data=st.data())
def test_copies_by_source_equal_going_through_all_ways(placement, rule, data):
    topology = placement.topology
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    top_k = data.draw(st.integers(1, min(3, placement.num_experts)))
    ids = np.array(
        [[rng.permutation(placement.num_experts)[:top_k] for _ in range(placement.num_layers)] for _ in range(3)]
    )
    sources = rng.integers(0, topology.num_ranks, len(ids))
    found = expected_traffic(placement, trace_of(ids, placement.num_experts, 2, sources), rule)
    ranks, nodes, choices = (np.zeros(a.shape) for a in (found.rank_copies, found.node_copies, found.choices))
    for token, layer in product(range(len(ids)), range(placement.num_layers)):
        source = sources[token]
        one_each = np.zeros((topology.num_ranks, placement.num_experts))
        one_each[source] = 1
        share = expected_slot_load(placement, layer, one_each, DispatchRule(rule))
        row = placement.physical_to_logical_map[layer]
        for way in product(*(np.flatnonzero(row == expert) for expert in ids[token, layer])):
            weight = np.prod(share[list(way)])
            for rank in {int(topology.rank_of_slot[slot]) for slot in way}:
                ranks[layer, source, rank] += weight
            for node in {int(topology.node_of_rank[topology.rank_of_slot[slot]]) for slot in way}:
                nodes[layer, source, node] += weight
            for slot in way:
                choices[layer, source, topology.rank_of_slot[slot]] += weight
    np.testing.assert_allclose(found.rank_copies, ranks, atol=1e-12)
    np.testing.assert_allclose(found.node_copies, nodes, atol=1e-12)
    np.testing.assert_allclose(found.choices, choices, atol=1e-12)
    assert found.source_tokens.tolist() == np.bincount(sources, minlength=topology.num_ranks).tolist()


def test_unknown_sources_are_the_same_share_on_every_rank():
    placement = eplb.Placement([np.arange(8)], 8, eplb.Topology(2, 2, 2))
    ids = [[[0, 1]], [[0, 2]], [[1, 7]], [[6, 5]], [[2, 3]], [[4, 0]]]
    even = expected_traffic(placement, trace_of(ids, 8, 2))
    assert (even.rank_copies == even.rank_copies[:, :1]).all()
    assert even.source_tokens.tolist() == [1.5] * 4
    # Under a rule that depends on the source, tokens are dealt to the ranks in turn; batches do not matter.
    dealt = expected_traffic(placement, trace_of(ids, 8, 2), "local_first")
    assert dealt.source_tokens.tolist() == [2, 2, 1, 1]
    assert dealt.rank_matrix.tolist() == [[1, 1, 0, 0], [2, 1, 1, 0], [1, 0, 0, 1], [0, 0, 1, 1]]
    np.testing.assert_array_equal(
        dealt.rank_matrix, expected_traffic(placement, trace_of(ids, 8), "ascend").rank_matrix
    )


def test_copies_by_node_are_summed_over_the_ranks_of_a_node_and_cannot_be_written():
    # Token 0 on rank 1 goes to both nodes, token 1 on rank 2 to the first.
    placement = eplb.Placement([np.arange(8)] * 3, 8, eplb.Topology(2, 2, 2))
    found = expected_traffic(placement, trace_of([[[0, 5]] * 3, [[1, 2]] * 3], 8, 1, [1, 2]))
    assert found.num_layers == 3
    assert repr(found) == "Traffic(2 tokens, 3 layers, 4 ranks, even)"
    assert found.node_matrix.tolist() == [[3, 3], [3, 0]]
    for array in (found.rank_copies, found.node_copies, found.choices, found.source_tokens):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_rank_loads_of_the_traffic_are_those_of_the_judge():
    rng = np.random.default_rng(4)
    topology = eplb.Topology(2, 2, 3)
    placement = eplb.Placement([[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]], 8, topology)
    trace = trace_of(np.array([[rng.permutation(8)[:3]] for _ in range(50)]), 8)
    evaluation = eplb.evaluate(placement, trace.load())
    np.testing.assert_allclose(expected_traffic(placement, trace).rank_load, evaluation.rank_load[0])


def test_source_ranks_that_do_not_fit_are_refused():
    placement = eplb.Placement([np.arange(8)], 8, eplb.Topology(2, 2, 2))
    ids = np.array([[[0, 1]], [[0, 2]]])
    with pytest.raises(InputError, match="source_rank 4 in the trace: the placement has 4 ranks"):
        expected_traffic(placement, trace_of(ids, 8, 1, [0, 4]))
    uniform = expected_traffic(placement, trace_of(ids, 8, 1, [0, 4]), sources=TokenSources.UNIFORM)
    assert not uniform.known_sources
    assert uniform.source_tokens.tolist() == [0.5] * 4
    for sources, expected in (([0, 4], "uniform"), ([0, 3], "trace"), (None, "uniform")):
        assert fitting_sources(trace_of(ids, 8, 1, sources), placement.topology) == expected
    with pytest.raises(InputError, match="online: it splits each batch anew"):
        expected_traffic(placement, trace_of(ids, 8), "online")
    shape = ModelShape(1, 8, 2)
    zeros = np.zeros(2, int)
    mixed = [TokenBatch(shape, ids, zeros, zeros, zeros), TokenBatch(shape, ids, zeros, zeros)]
    with pytest.raises(InputError, match="some batches of the trace have it"):
        covering_traffic(placement, RoutingTrace(shape, mixed))
