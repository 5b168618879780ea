"""Replans under rules that are not even: the judge's figures, few moves, budgets, and the online rebalancer's steps."""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import eplb
from eplb.core.dispatch_rule import EVEN_RULES, DispatchRule
from eplb.core.migration import Migration
from eplb.core.placement import Placement
from eplb.core.problem import GroupMode, Problem
from eplb.dispatch.optimal_shares import best_split, weighted_placement
from eplb.errors import InfeasibleError, InputError
from eplb.online.rebalancer import Rebalancer
from eplb.online.settings import OnlineSettings
from eplb.planning.rebalance import Horizon, rebalance
from eplb.planning.replan_without_ranks import replan_without
from eplb.strategies import STRATEGIES
from eplb.strategies.incremental.incremental_scenario import IncrementalScenario
from eplb_traces import ExpertLoad
from tests.generators import ruled_problems
from tests.oracles import hands_of, has_doubles

RULES = [rule for rule in DispatchRule if rule not in EVEN_RULES]
NEAR = (DispatchRule.LOCAL_FIRST, DispatchRule.SGLANG_DYNAMIC, DispatchRule.SGLANG_STATIC)
TOPOLOGY = eplb.Topology(2, 4, 5)
cases = settings(max_examples=max(1, settings.default.max_examples // 4))


def lognormal(seed, layers=4, experts=32):
    return np.random.default_rng(seed).lognormal(0, 1, (layers, experts)) * 1000


def judged(placement, problem):
    total = ExpertLoad(problem.load.total[None])
    if problem.dispatch is DispatchRule.WEIGHTED:
        placement = weighted_placement(placement, total)
    return eplb.evaluate(placement, total, problem.dispatch, sources=problem.sources).total_rank_time.max(axis=1)


@pytest.mark.parametrize("rule", RULES)
@cases
@given(data=st.data())
def test_a_replan_claims_what_the_judge_finds_and_is_legal(rule, data):
    problem = dataclasses.replace(data.draw(ruled_problems(rule, equal=True)), group_mode=GroupMode.FREE)
    try:
        live = STRATEGIES["zigzag"](problem).placement
    except InfeasibleError:
        assume(False)
    for made in (
        rebalance(live, problem.load, target=1.01, dispatch=rule, sources=problem.sources),
        IncrementalScenario(previous=live)(problem),
    ):
        for layer, (certificate, busiest) in enumerate(zip(made.layers, judged(made.placement, problem), strict=True)):
            assert certificate.objective == pytest.approx(busiest, rel=3e-9)
            assert busiest >= certificate.lower_bound * (1 - 3e-9)
            assert not has_doubles(hands_of(made.placement, layer))


@pytest.mark.parametrize("rule", RULES)
def test_a_replan_reaches_its_target_and_moves_less_than_a_fresh_plan(rule):
    old, new = ExpertLoad(lognormal(0)[None]), ExpertLoad((lognormal(0) * lognormal(1) ** 0.3)[None])
    live = STRATEGIES["greedy"](Problem(old, TOPOLOGY, dispatch=rule)).placement
    problem = Problem(new, TOPOLOGY, dispatch=rule)
    made = rebalance(live, new, target=1.03, dispatch=rule)
    fresh = STRATEGIES["greedy"](problem).placement
    assert (judged(made.placement, problem) <= 1.03 * np.array([layer.lower_bound for layer in made.layers])).all()
    assert made.migration.moved_copies < Migration.between(live, fresh).moved_copies
    assert "dispatch" in made.notes[0]


@pytest.mark.parametrize("rule", NEAR)
def test_a_load_that_has_not_changed_moves_nothing(rule):
    load = ExpertLoad(lognormal(0)[None])
    live = STRATEGIES["greedy"](Problem(load, TOPOLOGY, dispatch=rule)).placement
    assert rebalance(live, load, dispatch=rule).migration.moved_copies == 0
    # Planned for even dispatch the same target takes moves under the rule.
    even = STRATEGIES["greedy"](Problem(load, TOPOLOGY)).placement
    assert rebalance(even, load, dispatch=rule).migration.moved_copies > 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("budget", [0, 3, 10])
def test_a_budget_is_kept_and_spent_where_it_helps(rule, budget):
    load = ExpertLoad(lognormal(2)[None])
    live = STRATEGIES["round_robin"](Problem(load, TOPOLOGY)).placement
    problem = Problem(load, TOPOLOGY, dispatch=rule)
    spent = rebalance(live, load, target=1.01, dispatch=rule, max_moves=budget)
    for made in (spent, IncrementalScenario(previous=live, max_moves=budget)(problem)):
        after = Placement(made.placement.physical_to_logical_map, 32, TOPOLOGY)
        assert Migration.between(live, after).moved_copies <= budget
    if rule is not DispatchRule.SGLANG_STATIC:  # the draw of other layers changes with each move
        assert (judged(spent.placement, problem) <= judged(live, problem) * (1 + 1e-9)).all()


def test_a_horizon_puts_layers_back_under_the_rule():
    load = ExpertLoad(lognormal(2)[None])
    live = STRATEGIES["round_robin"](Problem(load, TOPOLOGY)).placement
    made = rebalance(live, load, dispatch="local_first", horizon=Horizon(token_s=0.0), expert_bytes=1e6)
    assert made.migration.moved_copies == 0
    assert (
        rebalance(
            live, load, dispatch="local_first", horizon=Horizon(token_s=1.0), expert_bytes=1e6
        ).migration.moved_copies
        > 0
    )


def test_a_loss_is_replanned_under_the_rule():
    load = ExpertLoad(lognormal(3)[None])
    topology = eplb.Topology(2, 4, 6)
    live = STRATEGIES["greedy"](Problem(load, topology, dispatch=DispatchRule.LOCAL_FIRST)).placement
    made = replan_without(live, load, [0, 4], target=1.05, dispatch="local_first")
    problem = Problem(load, made.placement.topology, dispatch=DispatchRule.LOCAL_FIRST)
    np.testing.assert_allclose(judged(made.placement, problem), [layer.objective for layer in made.layers])


@pytest.mark.parametrize("rule", NEAR)
def test_the_online_rebalancer_measures_and_plans_under_the_rule(rule):
    load = lognormal(4)
    live = STRATEGIES["greedy"](Problem(ExpertLoad(load[None]), TOPOLOGY)).placement
    problem = Problem(ExpertLoad(load[None]), TOPOLOGY, dispatch=rule)
    seen = []
    online = OnlineSettings(interval=2, plan_steps=0, dispatch=rule, price=1e-4)
    with Rebalancer(live, online, observer=seen.append) as rebalancer:
        for _ in range(2):
            rebalancer.record(load)
            migration = rebalancer.step()
    assert migration is not None
    assert seen[0].measured.dispatch is rule
    before, after = judged(migration.before, problem), judged(migration.after, problem)
    assert after.mean() < before.mean()
    # Under even dispatch, as planned, nothing is to be done.
    with Rebalancer(live, OnlineSettings(interval=2, plan_steps=0)) as rebalancer:
        for _ in range(2):
            rebalancer.record(load)
            assert rebalancer.step() is None


def test_weighted_dispatch_is_refused_online():
    with pytest.raises(InputError, match="dispatch = weighted"):
        OnlineSettings(dispatch=DispatchRule.WEIGHTED)


def test_a_weighted_replan_carries_the_best_shares():
    load = ExpertLoad(lognormal(5)[None])
    live = STRATEGIES["round_robin"](Problem(load, TOPOLOGY)).placement
    made = rebalance(live, load, target=1.02, dispatch="weighted")
    reached = eplb.evaluate(made.placement, load, "weighted").total_rank_time.max(axis=1)
    np.testing.assert_allclose(reached, best_split(made.placement, load.total).busiest, rtol=1e-8)
