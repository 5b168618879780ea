"""The scenario strategy: one plan for many windows."""

import numpy as np
import pytest

import eplb
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.problem import Problem
from eplb.strategies.scenario.scenario import Scenario
from eplb_traces import ExpertLoad, synthesize_load


def test_two_experts_that_peak_together_do_not_share_a_rank():
    # Experts 0 and 1 have 3 tokens in window 0 and none in window 1; 2 and 3 the other way round. The sum is 3 each, so
    # any pairing is balanced for it; only pairing a peak with a trough gives max/mean 1 in both windows.
    load = ExpertLoad([[[3.0, 3.0, 0.0, 0.0]], [[0.0, 0.0, 3.0, 3.0]]])

    plan = eplb.plan(load, eplb.Topology(1, 2, 2), "scenario")

    assert eplb.evaluate(plan.placement, load).max_over_mean_by_window.tolist() == [[1.0], [1.0]]


def test_scenarios_are_scaled_to_mean_rank_load_one_and_padded_to_four():
    load = ExpertLoad([[[1.0, 3.0]], [[4.0, 4.0]]])

    scenarios = Scenario(amplification=1.0).scenarios(load, num_ranks=2)

    assert scenarios.shape == (1, 2, 4)
    assert scenarios[0].tolist() == [[0.5, 1.0, 0.0, 0.0], [1.5, 1.0, 0.0, 0.0]]


def test_amplified_deviations_are_cut_at_zero():
    # Shares (0.25, 0.75) and (0.5, 0.5), mean (0.375, 0.625); five times the first deviation is (-0.25, 1.25), cut to
    # (0, 1.25), scaled to sum 2; five times the second is (1, 0).
    load = ExpertLoad([[[1.0, 3.0]], [[4.0, 4.0]]])

    scenarios = Scenario(amplification=5.0).scenarios(load, num_ranks=2)

    assert scenarios[0, :, :2].tolist() == [[0.0, 2.0], [2.0, 0.0]]


def test_a_layer_that_is_idle_in_a_window_counts_as_its_mean_there():
    load = ExpertLoad([[[1.0, 3.0]], [[0.0, 0.0]]])

    scenarios = Scenario().scenarios(load, num_ranks=2)

    assert scenarios[0, :, 0].tolist() == scenarios[0, :, 1].tolist() == [0.5, 1.5]


def test_long_histories_are_summed_into_fewer_windows():
    load = ExpertLoad(np.ones((10, 1, 2)))

    assert Scenario(most_scenarios=4).scenarios(load, num_ranks=1).shape == (1, 2, 4)


def test_one_plan_for_drifting_windows_beats_the_plan_for_their_sum_on_windows_it_has_not_seen():
    history = synthesize_load("v3-switching", num_windows=32, tokens_per_window=1 << 15, seed=3)
    past, future = history.select(slice(None, 24)), history.select(slice(24, None))
    machine = eplb.Topology(4, 8, 9)

    robust = eplb.evaluate(eplb.plan(past, machine, "scenario").placement, future).max_over_mean.mean()
    summed = eplb.evaluate(eplb.plan(past, machine, "greedy").placement, future).max_over_mean.mean()

    assert robust < summed


def test_the_seed_decides_and_equal_seeds_agree():
    load = synthesize_load("v3-decode", num_windows=4, tokens_per_window=1 << 14, seed=0)
    machine = eplb.Topology(4, 8, 9)

    first, again, other = (eplb.plan(load, machine, "scenario", seed=seed).placement for seed in (1, 1, 2))

    assert first == again
    assert first != other


def test_online_dispatch_gives_every_rank_its_share_of_the_experts_with_copies():
    # 8 experts, 4 ranks x 3: four copies. Each rank should hold two slots of experts that live twice.
    tokens = np.random.default_rng(0).lognormal(0, 1, (6, 5, 8))
    problem = Problem(ExpertLoad(tokens), eplb.Topology(1, 4, 3), dispatch=DispatchRule.ONLINE)

    placement = Scenario(hot_replica=10.0)(problem).placement

    count = np.take_along_axis(placement.logical_replica_count, placement.physical_to_logical_map, axis=1)
    assert (count > 1).reshape(5, 4, 3).sum(axis=2).tolist() == [[2, 2, 2, 2]] * 5


def test_unequal_ranks_get_load_by_their_speed():
    # A rank three times as fast, with three times the slots, should carry three quarters of the tokens.
    load = ExpertLoad(np.random.default_rng(1).lognormal(0, 0.5, (3, 2, 32)))
    machine = eplb.Topology(1, 2, (24, 8), rank_speed=(3.0, 1.0))

    evaluation = eplb.evaluate(eplb.plan(load, machine, "scenario").placement, load)

    assert evaluation.rank_load[:, :, 0] / evaluation.rank_load.sum(axis=2) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("mode", ["free", "pinned"])
def test_an_always_idle_layer_is_laid_out_evenly(mode):
    tokens = np.ones((4, 2, 8))
    tokens[:, 1] = 0

    placement = eplb.plan(ExpertLoad(tokens), eplb.Topology(2, 2, 3), "scenario", groups=2, group_mode=mode).placement

    assert placement.logical_replica_count[1].max() <= 2
