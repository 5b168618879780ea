"""Every fifth request is held out, and the plan's note gives the figures of these requests alone."""

import numpy as np
import pytest

import eplb
from eplb.errors import InputError
from eplb.evaluation.traffic import token_spread
from eplb.planning.held_out_requests import split_requests
from eplb.planning.traffic_front import traffic_front
from eplb_traces import ModelShape, RoutingTrace, TokenBatch
from tests.strategies.traffic.test_traffic import clustered_trace

TOPOLOGY = eplb.Topology(4, 4, 3)


def requests_of(trace):
    return sorted({int(request) for batch in trace for request in batch.request})


def test_every_fifth_request_is_held_out_whatever_the_batches():
    shape = ModelShape(1, 4, 1)
    numbers = np.array([7, 7, 3, 90, 5, 5, 8, 90, 11, 2, 1, 4])
    batches = [
        TokenBatch(shape, np.zeros((len(part), 1, 1), int), np.zeros(len(part), int), part)
        for part in (numbers[:5], numbers[5:6], numbers[6:])
    ]
    fit, held_out = split_requests(RoutingTrace(shape, batches, domain_names=["a"]))
    for _ in range(2):  # both can be read again
        assert requests_of(fit) == [1, 2, 3, 4, 7, 8, 11, 90]
        assert requests_of(held_out) == [5]
    assert fit.num_tokens + held_out.num_tokens == len(numbers)
    assert fit.domain_names == ("a",)


def test_the_note_gives_the_figures_of_the_held_out_requests():
    trace = clustered_trace()
    made = eplb.plan(trace.load(), TOPOLOGY, "traffic", trace=trace, load_cap=1.2)
    _, held_out = split_requests(trace)
    greedy = eplb.plan(trace.load(), TOPOLOGY, "greedy").placement
    nodes = [token_spread(of, held_out).nodes_per_token.mean() for of in (made.placement, greedy)]
    later = [eplb.evaluate(of, held_out.load()).max_over_mean_of_total.mean() for of in (made.placement, greedy)]
    assert nodes[0] == 1
    (note,) = [note for note in made.notes if note.startswith("held-out")]
    assert f"1.000 nodes a token against {nodes[1]:.3f} ({1 / nodes[1] - 1:+.1%})" in note
    assert f"max/mean {later[0]:.3f} against {later[1]:.3f}" in note


def test_the_plan_does_not_depend_on_the_held_out_requests():
    trace = clustered_trace()
    (batch,) = trace
    changed = batch.expert_ids.copy()
    changed[batch.request % 5 == 4] = [0, 1, 2, 3]
    other = RoutingTrace(trace.shape, [TokenBatch(trace.shape, changed, batch.step, batch.request)])
    plans = [eplb.plan(trace.load(), TOPOLOGY, "traffic", trace=of, load_cap=1.2) for of in (trace, other)]
    assert plans[0].placement == plans[1].placement
    assert plans[0].notes != plans[1].notes


def test_few_requests_are_all_fitted_and_the_note_tells():
    trace = clustered_trace(40)
    made = eplb.plan(trace.load(), TOPOLOGY, "traffic", trace=trace)
    assert "held-out saving unknown: the trace has fewer than 5 requests, all are fitted" in made.notes
    assert all(point.held_out is None for point in traffic_front(trace.load(), TOPOLOGY, trace, load_caps=[1.1]))


@pytest.mark.parametrize("options", [{"trace": clustered_trace(20)}, {"load_cap": 1.1}])
def test_other_strategies_refuse_a_trace_and_a_cap(options):
    with pytest.raises(InputError, match="strategy greedy does not plan for it, expected strategy traffic"):
        eplb.plan(clustered_trace(20).load(), TOPOLOGY, "greedy", **options)


def test_the_front_starts_with_the_balanced_plan_and_trades_load_for_nodes():
    random = np.random.default_rng(2)
    trace = clustered_trace(600)
    (batch,) = trace
    # Cluster 0 is chosen three times as often: its node is above the mean unless the cluster is cut.
    kept = np.isin(batch.expert_ids[:, 0, 0], batch.expert_ids[0, 0]) | (random.random(600) < 0.4)
    trace = RoutingTrace(trace.shape, [batch.select(kept)])
    load = trace.load()
    balanced, *points = traffic_front(load, TOPOLOGY, trace, load_caps=[1.5, 1.02, 1.02])
    assert balanced.load_cap is None
    assert balanced.plan.placement == eplb.plan(load, TOPOLOGY, "greedy").placement
    assert [point.load_cap for point in points] == [1.02, 1.5]
    assert points[1].nodes_per_token < points[0].nodes_per_token < balanced.nodes_per_token
    for point in points:
        found = eplb.evaluate(point.plan.placement, load).max_over_mean_of_total
        assert point.max_over_mean == pytest.approx(found.mean())
        assert point.held_out.nodes_per_token < balanced.held_out.nodes_per_token
    with pytest.raises(InputError, match="load_caps: expected at least one"):
        traffic_front(load, TOPOLOGY, trace, load_caps=[])
