"""What every strategy owes under every dispatch rule: a legal layout, a claim that the judge confirms, a true bound."""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import eplb
from eplb.bounds.lower_bounds import lower_bounds
from eplb.core.dispatch_rule import EVEN_RULES, DispatchRule
from eplb.core.problem import BindingBound, GroupMode, Problem
from eplb.dispatch.optimal_shares import weighted_placement
from eplb.errors import InfeasibleError, InputError
from eplb.strategies import ONLY_WHEN_NAMED, STRATEGIES
from eplb.strategies.options import HONOURED, PlanOption
from eplb_traces import ExpertLoad
from tests.generators import ruled_problems
from tests.oracles import every_layout, hands_of, has_doubles

MAY_DOUBLE = NEEDS_EQUAL_SLOTS = NEEDS_EQUAL_NODES = {"deepseek"}
EVEN_BOUNDS = (BindingBound.FULL_SLOT, BindingBound.CO_RESIDENCY, BindingBound.PAIR_MIXTURE)

every_strategy = pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ONLY_WHEN_NAMED])
every_rule = pytest.mark.parametrize("rule", list(DispatchRule))
cases = settings(max_examples=max(1, settings.default.max_examples // 3))


def planned(name, problem):
    if PlanOption.PINNED not in HONOURED[name]:
        problem = dataclasses.replace(problem, group_mode=GroupMode.FREE)
    if not problem.topology.has_equal_slots:
        assume(name not in NEEDS_EQUAL_SLOTS)
    if problem.group_mode is GroupMode.PINNED and not problem.topology.has_equal_nodes:
        assume(name not in NEEDS_EQUAL_NODES)
    try:
        return STRATEGIES[name](problem)
    except InfeasibleError:
        assume(not problem.topology.has_equal_slots)
        raise


def judged_busiest(placement, problem):
    """[L] the busiest rank of the total load by the judge."""
    total = ExpertLoad(problem.load.total[None])
    if problem.dispatch is DispatchRule.WEIGHTED:
        placement = weighted_placement(placement, total)
    return eplb.evaluate(placement, total, problem.dispatch, sources=problem.sources).total_rank_time.max(axis=1)


def check(made, problem):
    judged = judged_busiest(made.placement, problem)
    for layer, (certificate, busiest) in enumerate(zip(made.layers, judged, strict=True)):
        held = hands_of(made.placement, layer)
        assert {expert for hand in held for expert in hand} == set(range(problem.load.num_experts))
        assert made.strategy in MAY_DOUBLE or not has_doubles(held)
        assert certificate.objective == pytest.approx(busiest, rel=3e-9)
        assert busiest >= certificate.lower_bound * (1 - 3e-9)
        assert problem.dispatch in EVEN_RULES or certificate.binding_bound not in EVEN_BOUNDS


@every_rule
@every_strategy
@cases
@given(data=st.data())
def test_the_claim_is_what_the_judge_finds_and_not_below_the_bound(name, rule, data):
    problem = data.draw(ruled_problems(rule))
    check(planned(name, problem), problem)


PROBLEM = Problem(ExpertLoad([[90.0, 1, 2, 3, 4]]), eplb.Topology(2, 2, 2), dispatch=DispatchRule.LOCAL_FIRST)


@pytest.mark.parametrize("claim", [{"objective": 1.01}, {"objective": 0.99}, {"lower_bound": 1.01}])
def test_a_false_claim_is_caught(claim):
    made = STRATEGIES["greedy"](PROBLEM)
    check(made, PROBLEM)
    changed = {name: made.layers[0].objective * factor for name, factor in claim.items()}
    with pytest.raises(AssertionError):
        check(dataclasses.replace(made, layers=(dataclasses.replace(made.layers[0], **changed),)), PROBLEM)


# 6 experts on 4 ranks of 2 slots, load 1000 / rank ** 0.8: with the best split a busiest rank lies below the bounds for
# even rules in a good part of the plans.
def test_the_bounds_for_even_rules_are_false_under_the_best_split_and_not_used_there():
    load, topology = 1000 / np.arange(1, 7) ** 0.8, eplb.Topology(1, 4, 2)
    even = lower_bounds(load[None], topology).value[0]
    bound = lower_bounds(load[None], topology, rule=DispatchRule.WEIGHTED).value[0]
    busiest = STRATEGIES["greedy"](Problem(ExpertLoad(load[None]), topology, dispatch=DispatchRule.WEIGHTED))
    reached = busiest.layers[0].objective
    assert bound <= reached < even


# --- ilp --------------------------------------------------------------------------------------------------------------

MODELLED = (*EVEN_RULES, DispatchRule.WEIGHTED, DispatchRule.ONLINE)


@pytest.mark.parametrize("rule", [rule for rule in DispatchRule if rule not in MODELLED])
def test_ilp_refuses_rules_that_it_does_not_model_by_name(rule):
    with pytest.raises(InputError, match=f"dispatch = {rule}: ilp"):
        STRATEGIES["ilp"](dataclasses.replace(PROBLEM, dispatch=rule))


@pytest.mark.parametrize("rule", MODELLED)
@settings(max_examples=4)
@given(data=st.data())
def test_ilp_finds_the_optimum_of_brute_force_under_each_rule_that_it_models(rule, data):
    problem = data.draw(ruled_problems(rule, tiny=True, equal=True))
    topology, load = problem.topology, problem.load.total
    made = STRATEGIES["ilp"](problem)
    check(made, problem)
    best = np.inf
    for hands in every_layout(load.shape[1], topology.rank_num_slots.tolist(), alike=True):
        row = [expert for hand in hands for expert in hand]
        placement = eplb.Placement([row], load.shape[1], topology)
        best = min(best, judged_busiest(placement, problem)[0])
    assert made.layers[0].objective == pytest.approx(best, rel=3e-9)
    others = [name for name in STRATEGIES if name not in {*ONLY_WHEN_NAMED, "deepseek"}]
    if problem.group_mode is GroupMode.PINNED:
        others = [name for name in others if PlanOption.PINNED in HONOURED[name]]
    for name in others:
        assert STRATEGIES[name](problem).layers[0].objective >= best * (1 - 3e-9)
