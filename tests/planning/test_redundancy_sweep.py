"""Sweeps over redundancy: points against plan and judge, and numbers that do not fit."""

import numpy as np
import pytest

import eplb
from eplb.errors import InputError
from eplb.planning.redundancy_sweep import sweep


def some_load():
    return eplb.ExpertLoad(np.random.default_rng(0).lognormal(0, 1.5, (3, 2, 16)))


def test_points_are_what_plan_and_judge_say():
    load = some_load()
    points = sweep(load, 4, 2, range(0, 17, 4), 100.0)
    assert [point.num_redundant for point in points] == [0, 4, 8, 12, 16]
    for point in points:
        topology = eplb.Topology.for_experts(16, num_ranks=4, num_nodes=2, num_redundant=point.num_redundant)
        made = eplb.plan(load, topology, "greedy")
        judged = eplb.evaluate(made.placement, load).summary()
        assert point.num_slots == 16 + point.num_redundant == 4 * point.slots_per_rank
        assert point.max_over_mean_mean == judged["max_over_mean_mean"]
        assert point.max_over_mean_worst == judged["max_over_mean_worst"]
        assert point.gap_mean == made.gap_mean
        # 2 layers of 100 bytes an expert.
        assert point.bytes_per_rank == 200 * point.slots_per_rank


@pytest.mark.parametrize("dispatch", ["weighted", "online", "local_first", "ascend"])
@pytest.mark.parametrize("strategy", ["linear", "scenario"])
def test_points_under_every_kind_of_rule_are_what_plan_and_judge_say(dispatch, strategy):
    tokens = some_load().tokens.copy()
    tokens[1] = 0  # a window without a token, which a plan leaves out
    (point,) = sweep(tokens, 4, 2, [8], strategy=strategy, dispatch=dispatch)
    made = eplb.plan(tokens, eplb.Topology(2, 2, 6), strategy, dispatch=dispatch)
    judged = eplb.evaluate(made.placement, tokens, dispatch).summary()
    assert (point.max_over_mean_mean, point.max_over_mean_worst) == (
        judged["max_over_mean_mean"],
        judged["max_over_mean_worst"],
    )
    assert point.gap_mean == pytest.approx(made.gap_mean)


def test_more_slots_pay_on_a_skewed_load():
    points = sweep(eplb.ExpertLoad([np.arange(1.0, 17) ** 3]), 4, 1, range(0, 49, 8))
    assert points[-1].max_over_mean_mean < points[0].max_over_mean_mean
    # Every rank holds every expert.
    assert points[-1].max_over_mean_mean == 1.0


def test_numbers_that_do_not_fill_the_ranks_are_left_out_and_the_log_says_so(caplog):
    points = sweep(some_load(), 4, 1, [0, 2, 4, 100])
    assert [point.num_redundant for point in points] == [0, 4]
    assert "redundant = [2, 100] left out: expected 0 plus a multiple of 4, at most 48" in caplog.text


def test_experts_that_do_not_divide_by_the_ranks_start_later():
    load = eplb.ExpertLoad(np.ones((1, 10)))
    assert [point.num_redundant for point in sweep(load, 4, 1, range(8))] == [2, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 1, [1, 2]), r"redundant = \[1, 2\]: none can be planned, expected 0 plus a multiple of 4, at most 48"),
        ((4, 1, []), "none can be planned"),
        ((4, 1, [-4, 0]), "redundant = -4: expected >= 0"),
        ((4, 3, [0]), "multiple of nodes"),
        ((0, 1, [0]), "ranks"),
        ((4, 1, [0], 0.0), "expert_bytes = 0.0"),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        sweep(some_load(), *arguments)
