"""The strategy `biased`: hot experts on every rank, as many as keep the balance, served on the token's own rank."""

import numpy as np
import pytest

import eplb
from eplb.core.constraints import Constraints
from eplb.core.problem import Problem
from eplb.errors import InputError
from eplb.planning.planner import CANDIDATES, NEAREST_CANDIDATES
from eplb.strategies.biased.biased import Biased, local_share
from eplb_traces import ExpertLoad
from tests.oracles import hands_of

LOAD = ExpertLoad(np.random.default_rng(0).lognormal(0, 1, (1, 6, 64)) * 1000)
TOPOLOGY = eplb.Topology(2, 4, 12)


def experts_everywhere(plan):
    return [sorted(set.intersection(*map(set, hands_of(plan.placement, layer)))) for layer in range(6)]


def test_the_hottest_experts_are_on_both_ranks_and_their_tokens_stay():
    # Two redundant slots: experts 0 and 1 are on both ranks, 4 + 1.5 tokens on each, with 2 or 1 more: 7.5 and 6.5.
    load, topology = ExpertLoad([[8.0, 3, 2, 1]]), eplb.Topology(1, 2, 3)
    made = Biased()(Problem(load, topology, dispatch=eplb.DispatchRule.LOCAL_FIRST))
    hands = hands_of(made.placement, 0)
    assert all({0, 1} <= set(hand) for hand in hands)
    assert made.layers[0].objective == pytest.approx(7.5)
    # All tokens of 0 and 1 stay, and one half of those of 2 and of 3: (8 + 3 + 1 + 0.5) / 14.
    problem = Problem(load, topology)
    assert local_share(problem, made.placement.physical_to_logical_map) == pytest.approx(12.5 / 14)


@pytest.mark.parametrize("rule", ["local_first", "sglang_dynamic", "sglang_static"])
def test_the_hottest_experts_of_each_layer_are_everywhere_and_the_ranks_balanced(rule):
    # 32 redundant slots: at most 4 experts on 7 further ranks each.
    made = eplb.plan(LOAD, TOPOLOGY, "biased", dispatch=rule)
    everywhere = experts_everywhere(made)
    assert min(map(len, everywhere)) >= 1
    assert max(map(len, everywhere)) <= 4
    for layer, experts in enumerate(everywhere):
        assert experts == sorted(np.argsort(-LOAD.total[layer])[: len(experts)])
    assert eplb.evaluate(made.placement, LOAD, rule).max_over_mean.mean() <= 1.02


def test_more_tokens_are_served_on_their_own_rank_than_with_greedy():
    problem = Problem(LOAD, TOPOLOGY)
    biased, greedy = (
        local_share(problem, eplb.plan(LOAD, TOPOLOGY, name, dispatch="local_first").placement.physical_to_logical_map)
        for name in ("biased", "greedy")
    )
    assert biased > 1.1 * greedy
    notes = eplb.plan(LOAD, TOPOLOGY, "biased", dispatch="local_first").notes
    assert notes[-1] == f"tokens served on their own rank: {biased:.1%}, {greedy:.1%} in a plan of greedy"


@pytest.mark.parametrize("topology", [eplb.Topology(2, 4, 8), eplb.Topology(1, 1, 64)], ids=["no redundancy", "1 rank"])
def test_without_room_for_an_expert_everywhere_the_plan_is_that_of_greedy(topology):
    made = eplb.plan(LOAD, topology, "biased")
    assert made.placement == eplb.plan(LOAD, topology, "greedy").placement
    assert "experts on every rank: 0.0 in the mean layer, 0 to 0" in made.notes


def test_pinned_groups_leave_no_expert_everywhere():
    made = eplb.plan(LOAD, TOPOLOGY, "biased", groups=2, group_mode="pinned")
    assert made.placement == eplb.plan(LOAD, TOPOLOGY, "greedy", groups=2, group_mode="pinned").placement


@pytest.mark.parametrize("asked", [{"constraints": Constraints(pin=[(0, 0)])}, {"survive": "node"}], ids=str)
def test_what_it_does_not_plan_for_is_refused_by_name(asked):
    topology = eplb.Topology(2, 4, 16)
    with pytest.raises(InputError, match="biased"):
        eplb.plan(LOAD, topology, "biased", **asked)


def test_auto_backtests_it_under_rules_that_prefer_near_replicas_alone():
    tokens = np.random.default_rng(1).lognormal(0, 1, (8, 1, 16)) * 100
    for rule, candidates in (("local_first", NEAREST_CANDIDATES), ("even", CANDIDATES)):
        made = eplb.plan(ExpertLoad(tokens), eplb.Topology(2, 2, 6), dispatch=rule)
        named = [note.split(": ")[1] for note in made.notes if note.startswith("backtest: ")]
        assert sorted(named) == sorted(candidate.name for candidate in candidates)
