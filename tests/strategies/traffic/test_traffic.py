"""Plans for few nodes a token: hidden clusters are found, caps are kept, and what cannot be planned for is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eplb
from eplb.core.problem import GroupMode, Problem
from eplb.errors import InputError
from eplb.evaluation.traffic import token_spread
from eplb.strategies import STRATEGIES
from eplb_traces import ModelShape, RoutingTrace, TokenBatch

CLUSTERS = np.random.default_rng(5).permutation(32).reshape(4, 8)


def trace_of(ids, num_experts, request=None):
    """[t, L, K] choices as a trace; by default ten tokens a request."""
    ids = np.asarray(ids)
    shape = ModelShape(ids.shape[1], num_experts, ids.shape[2])
    request = np.arange(len(ids)) // 10 if request is None else request
    return RoutingTrace(shape, [TokenBatch(shape, ids, np.zeros(len(ids), int), request)])


def clustered_trace(num_tokens=400, num_layers=2, seed=0):
    """Every token chooses 4 of the 8 experts of one of four clusters."""
    random = np.random.default_rng(seed)
    ids = [[random.permutation(CLUSTERS[random.integers(4)])[:4] for _ in range(num_layers)] for _ in range(num_tokens)]
    return trace_of(np.array(ids), 32)


def planned(trace, topology, load_cap=1.2, **options):
    problem = Problem(trace.load(), topology, trace=trace, load_cap=load_cap, **options)
    return STRATEGIES["traffic"](problem)


def test_experts_that_tokens_choose_together_share_a_node():
    trace, topology = clustered_trace(), eplb.Topology(4, 4, 3)
    made = planned(trace, topology)
    assert token_spread(made.placement, trace).nodes_per_token.tolist() == [1.0, 1.0]
    balanced = STRATEGIES["greedy"](Problem(trace.load(), topology)).placement
    assert (token_spread(balanced, trace).nodes_per_token > 2).all()
    assert (eplb.evaluate(made.placement, trace.load()).max_over_mean_of_total <= 1.2 * (1 + 1e-9)).all()


def test_on_one_node_tokens_visit_fewer_ranks():
    trace, topology = clustered_trace(), eplb.Topology(1, 4, 9)
    found = token_spread(planned(trace, topology).placement, trace).ranks_per_token
    balanced = STRATEGIES["greedy"](Problem(trace.load(), topology)).placement
    assert (found < 1.6).all()
    assert (token_spread(balanced, trace).ranks_per_token > 2).all()


@given(st.data())
def test_the_cap_is_kept_and_no_layer_visits_more_than_the_balanced_plan(data):
    num_experts, top_k = data.draw(st.integers(5, 8)), data.draw(st.integers(1, 3))
    topology = eplb.Topology(*data.draw(st.sampled_from([(1, 3, 5), (2, 2, 4), (2, 3, 3), (4, 1, 5)])))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    popularity = random.dirichlet(np.ones(num_experts))
    ids = np.stack(
        [random.choice(num_experts, top_k, replace=False, p=popularity * 0.9 + 0.1 / num_experts) for _ in range(60)]
    )
    trace, cap = trace_of(ids[:, None], num_experts), data.draw(st.sampled_from([1.0, 1.05, 1.3]))
    load = trace.load()
    balanced = STRATEGIES["greedy"](Problem(load, topology)).placement
    made = planned(trace, topology, cap).placement
    limit = max(cap, eplb.evaluate(balanced, load).max_over_mean_of_total[0])
    assert eplb.evaluate(made, load).max_over_mean_of_total[0] <= limit * (1 + 1e-9)
    spread, other = token_spread(made, trace), token_spread(balanced, trace)
    assert spread.nodes_per_token[0] <= other.nodes_per_token[0] + 1e-6
    if topology.num_nodes == 1:
        assert spread.ranks_per_token[0] <= other.ranks_per_token[0] + 1e-6


def test_layers_without_tokens_keep_the_balanced_plan_and_equal_calls_give_equal_plans():
    trace, topology = clustered_trace(num_layers=2), eplb.Topology(4, 2, 5)
    tokens = trace.load().tokens.copy()
    tokens[:, 1] = 0
    problem = Problem(eplb.ExpertLoad(tokens), topology, trace=trace, load_cap=1.1)
    first, second = (STRATEGIES["traffic"](problem, seed=3) for _ in range(2))
    assert first == second
    balanced = STRATEGIES["greedy"](Problem(eplb.ExpertLoad(tokens), topology), seed=3).placement
    assert (first.placement.physical_to_logical_map[1] == balanced.physical_to_logical_map[1]).all()
    assert "1 of 2 layers keep the balanced plan: nothing better under the cap" in first.notes


def test_a_cap_below_the_balanced_plan_is_raised_to_it_with_a_note():
    ids = [[[0, expert]] for expert in range(1, 8) for _ in range(6)]  # expert 0 has half of the load
    made = planned(trace_of(ids, 8), eplb.Topology(1, 4, 2), load_cap=1.0)
    assert made.notes[0].startswith("load_cap = 1: the balanced plan is above it in 1 layers (layer 0: 2.2857)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trace": None}, "strategy traffic: expected a token-level trace"),
        ({"dispatch": eplb.DispatchRule.WEIGHTED}, "dispatch = weighted: strategy traffic plans for even dispatch"),
        ({"group_mode": GroupMode.PINNED}, "group mode pinned: strategy traffic does not plan for it"),
        ({"load_cap": 0.9}, "load_cap = 0.9: expected a busiest over mean rank >= 1"),
        ({"trace": trace_of([[[0, 1]]], 16)}, "trace of 1 layers x 16 experts: the load is of 2 layers x 32 experts"),
        ({"trace": RoutingTrace(ModelShape(2, 32, 4), [])}, "the trace has no tokens"),
    ],
)
def test_what_cannot_be_planned_for_is_refused(options, message):
    trace = clustered_trace(20)
    fields = {"trace": trace, "num_groups": 4} | options
    with pytest.raises(InputError, match=message):
        STRATEGIES["traffic"](Problem(trace.load(), eplb.Topology(4, 4, 3), **fields))
