"""Counts out of range are refused by name at every door; in range the factor of all counts changes no plan."""

import dataclasses

import numpy as np
import pytest

import eplb
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.load_range import LEAST_TOKENS, MOST_TOKENS, check_load_range
from eplb.core.problem import Problem
from eplb.errors import InputError
from eplb.strategies import ONLY_WHEN_NAMED, STRATEGIES
from eplb_traces import ExpertLoad

TOPOLOGY = eplb.Topology(1, 4, 4)
HUGE = np.full((1, 1, 16), 1.7e308)

refused = pytest.mark.parametrize(
    ("load", "message"),
    [
        (ExpertLoad(HUGE), r"tokens\[window 0, layer 0, expert 0\] = 1\.7e\+308: expected 0 or 1e-300 to 1e\+300"),
        (ExpertLoad(np.full((1, 2, 16), MOST_TOKENS)), r"load of layer 0 sums to 1\.6e\+301 tokens: expected at most"),
        (ExpertLoad(np.full((20, 1, 16), 1e299)), r"load of layer 0 sums to 3\.2e\+301"),
        (ExpertLoad(np.ones((2, 1, 16)), [1.0, 1.7e308]), r"weights\[window 1\] = 1\.7e\+308: expected"),
        (ExpertLoad(np.full((2, 1, 16), 1e200), [1.0, 1e200]), r"load of layer 0 sums to inf tokens"),
        (ExpertLoad([[0.0] * 15 + [5e-324]]), r"tokens\[window 0, layer 0, expert 15\] = 5e-324: expected 0 or 1e-300"),
        (
            ExpertLoad(np.full((2, 1, 16), 1e-200), [1.0, 1e-200]),
            r"tokens\[window 1, .* of weight 1e-200: expected",
        ),
    ],
)


@refused
def test_counts_out_of_range_are_refused_with_their_place(load, message):
    with pytest.raises(InputError, match=message):
        check_load_range(load)


@refused
@pytest.mark.parametrize("name", ["auto", *(name for name in STRATEGIES if name != "traffic")])
def test_no_strategy_starts_with_counts_out_of_range(name, load, message):
    with pytest.raises(InputError, match=message):
        eplb.plan(load, TOPOLOGY, name)


@refused
def test_the_judge_and_the_replan_refuse_them_too(load, message):
    live = eplb.plan(ExpertLoad(np.ones((load.num_layers, 16))), TOPOLOGY, "linear").placement
    with pytest.raises(InputError, match=message):
        eplb.evaluate(live, load)
    with pytest.raises(InputError, match=message):
        eplb.rebalance(live, load)


def test_no_count_in_range_is_lost():
    least = ExpertLoad([[LEAST_TOKENS] * 16])
    check_load_range(least)
    for rule in DispatchRule:
        made = eplb.plan(least, eplb.Topology(1, 8, 4), "greedy", dispatch=rule)
        judged = eplb.evaluate(made.placement, least, rule)
        assert judged.rank_load.sum() == pytest.approx(16 * LEAST_TOKENS, rel=1e-12, abs=0)
        assert made.layers[0].objective == pytest.approx(judged.total_rank_time.max(), rel=1e-9, abs=0)


@pytest.mark.parametrize("exponent", [-960, 130, 960])
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ONLY_WHEN_NAMED])
def test_a_factor_changes_no_plan_and_scales_its_claims(name, exponent):
    tokens = np.round(np.random.default_rng(0).lognormal(3, 1.5, (3, 2, 16)))
    for rule in (DispatchRule.EVEN, DispatchRule.ONLINE, DispatchRule.LOCAL_FIRST):
        plain = Problem(ExpertLoad(tokens), eplb.Topology(2, 4, 3), dispatch=rule)
        scaled = dataclasses.replace(plain, load=ExpertLoad(np.ldexp(tokens, exponent)))
        made, other = STRATEGIES[name](plain), STRATEGIES[name](scaled)
        assert made.placement == other.placement
        for layer, of_scaled in zip(made.layers, other.layers, strict=True):
            assert np.ldexp(layer.objective, exponent) == of_scaled.objective
            assert np.ldexp(layer.lower_bound, exponent) == of_scaled.lower_bound


@pytest.mark.parametrize("strategy", ["deepseek", "greedy"])
@pytest.mark.parametrize("factor", [2.0**-900, 2.0**900])
def test_rebalance_experts_is_the_same_at_every_scale(strategy, factor):
    weight = np.round(np.random.default_rng(1).lognormal(3, 1.5, (2, 16)))
    plain = eplb.rebalance_experts(weight, 24, 4, 2, 8, strategy=strategy)
    scaled = eplb.rebalance_experts(weight * factor, 24, 4, 2, 8, strategy=strategy)
    for array, other in zip(plain, scaled, strict=True):
        np.testing.assert_array_equal(array, other)


def test_the_published_algorithm_takes_any_finite_weight():
    eplb.rebalance_experts(HUGE[0], 32, 1, 1, 8)
    eplb.rebalance_experts(np.full((1, 16), 5e-324), 32, 1, 1, 8)


@pytest.mark.parametrize("seed", [-1, 1 << 53, True, 1.5])
def test_a_seed_that_no_file_keeps_is_refused(seed):
    load = ExpertLoad(np.ones((9, 1, 16)))
    for strategy in ("auto", "linear", "scenario"):
        with pytest.raises(InputError, match="seed = "):
            eplb.plan(load, TOPOLOGY, strategy, seed=seed)
