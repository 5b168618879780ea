"""Choosing a strategy by its past."""

import numpy as np
import pytest

import eplb
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.problem import Problem
from eplb.errors import InputError
from eplb.planning.backtest import LAYERS_TO_SCORE, Candidate, backtest, recent, rehearsal, whole
from eplb.strategies import STRATEGIES
from eplb.strategies.scenario.scenario import Scenario
from eplb_traces import ExpertLoad

MACHINE = eplb.Topology(1, 2, 2)


def history(*rows: list[float]) -> ExpertLoad:
    return ExpertLoad(np.array(rows)[:, None, :])


def test_the_held_out_end_is_not_seen_and_decides():
    # Six windows load experts 0 and 1, then two load 2 and 3 (25 % of eight windows). Greedy on the first six puts 0
    # and 1 apart, and 2 and 3 where they fall; linear keeps 2 and 3 on one rank: 2.0 on the end.
    load = history(*[[5.0, 4.0, 1.0, 0.5]] * 6, *[[0.0, 0.0, 3.0, 3.0]] * 2)
    candidates = [Candidate(name, STRATEGIES[name], whole) for name in ("linear", "greedy")]

    scores = backtest(Problem(load, MACHINE), candidates)

    assert [score.candidate.name for score in scores] == ["greedy", "linear"]
    assert scores[0].mean == 1.0
    assert scores[1].mean == 2.0


def test_predicted_loss_is_later_minus_planned():
    # Linear puts 0 and 1 together: planned 9 of 10.5 tokens on one rank, later none of 6, so 2.
    load = history(*[[5.0, 4.0, 1.0, 0.5]] * 6, *[[0.0, 0.0, 3.0, 3.0]] * 2)

    (score,) = backtest(Problem(load, MACHINE), [Candidate("linear", STRATEGIES["linear"], whole)])

    assert score.predicted_loss == pytest.approx(2.0 - 9 / 5.25)


def test_what_was_planned_on_a_part_of_the_past_is_as_planned_on_that_part():
    # The last quarter of the past, three of twelve windows, has a load of its own: even, so that every plan is perfect.
    load = history(*[[5.0, 4.0, 1.0, 0.5]] * 9, *[[1.0, 1.0, 1.0, 1.0]] * 3, *[[0.0, 0.0, 3.0, 3.0]] * 4)
    candidates = [Candidate(part.__name__, STRATEGIES["linear"], part) for part in (recent, whole)]
    on_recent, on_whole = backtest(Problem(load, MACHINE), candidates)
    assert (on_recent.planned, on_recent.predicted_loss) == (1.0, 1.0)
    assert on_whole.planned == pytest.approx((9 * 9 / 5.25 + 3) / 12)


def test_under_weighted_dispatch_candidates_are_judged_with_the_weights_of_what_they_saw():
    # 3 experts in 4 slots: expert 0 twice. Even split leaves 5 + 4 and 5 + 1; weights move a token and a half.
    load = history(*[[10.0, 4.0, 1.0]] * 8)
    problem = Problem(load, MACHINE, dispatch=DispatchRule.WEIGHTED)

    (score,) = backtest(problem, [Candidate("greedy", STRATEGIES["greedy"], whole)])

    assert score.mean == pytest.approx(1.0)


def test_auto_scores_some_layers_evenly_spaced_and_the_expectation_of_a_draw():
    load = ExpertLoad(np.arange(1.0, 16 * 4 + 1).reshape(1, 16, 4))
    trial = rehearsal(Problem(load, MACHINE))
    assert trial.load.num_layers == LAYERS_TO_SCORE == 8
    assert trial.load.tokens[0, :, 0].tolist() == [1.0 + 4 * layer for layer in (0, 2, 4, 6, 9, 11, 13, 15)]
    assert trial.dispatch is DispatchRule.EVEN
    drawn = rehearsal(Problem(load, MACHINE, dispatch=DispatchRule.SGLANG_STATIC))
    assert (drawn.load.num_layers, drawn.dispatch) == (4, DispatchRule.SGLANG_DYNAMIC)
    few = Problem(load.select_layers([3, 5]), MACHINE)
    assert rehearsal(few) == few


def test_auto_names_the_layers_and_the_rule_of_its_backtest():
    load = ExpertLoad(np.random.default_rng(0).integers(1, 9, (8, 10, 4)).astype(float))
    made = eplb.plan(load, MACHINE, dispatch="sglang_static")
    assert "(4 of 10 layers, under sglang_dynamic)" in made.notes[0]
    assert "layers" not in eplb.plan(load.select_layers(range(8)), MACHINE).notes[0]


def test_recent_is_the_last_quarter():
    load = history(*([[float(i), 1.0] for i in range(8)]))

    assert recent(load).tokens[:, 0, 0].tolist() == [6.0, 7.0]


@pytest.mark.parametrize(("windows", "held_out", "words"), [(7, 0.25, "7 windows"), (8, 1.0, "held_out = 1.0")])
def test_a_history_too_short_or_a_share_out_of_range_is_refused(windows, held_out, words):
    load = history(*[[1.0, 1.0, 1.0, 1.0]] * windows)

    with pytest.raises(InputError, match=words):
        backtest(Problem(load, MACHINE), [], held_out=held_out)


def test_auto_takes_greedy_for_one_window_scenario_for_a_few_and_backtests_a_history():
    rng = np.random.default_rng(0)
    machine = eplb.Topology(1, 4, 3)

    plans = [eplb.plan(ExpertLoad(rng.lognormal(0, 1, (n, 2, 8))), machine) for n in (1, 3, 12)]

    assert [plan.strategy for plan in plans[:2]] == ["greedy", "scenario"]
    assert plans[0].notes[0].startswith("auto: greedy")
    assert sum(note.startswith("backtest: ") for note in plans[2].notes) == 5
    assert plans[2].notes[0].startswith("auto: ")


def test_windows_without_tokens_are_no_part_of_the_history():
    # As above with idle windows between, and an idle tail on which every candidate would look perfect.
    idle, first, last = [0.0] * 4, [5.0, 4.0, 1.0, 0.5], [0.0, 0.0, 3.0, 3.0]
    load = history(*[idle, first] * 6, *[last] * 2, *[idle] * 20)
    candidates = [Candidate(name, STRATEGIES[name], whole) for name in ("linear", "greedy")]
    scores = backtest(Problem(load, MACHINE), candidates)
    assert [(score.candidate.name, score.mean) for score in scores] == [("greedy", 1.0), ("linear", 2.0)]
    with pytest.raises(InputError, match=r"a history of 2 windows .7 without a token left out"):
        backtest(Problem(history(*[idle] * 7, first, last), MACHINE), candidates)


def test_auto_plans_a_load_with_an_idle_tail_and_says_what_was_left_out():
    rng = np.random.default_rng(0)
    tokens = rng.lognormal(0, 1, (12, 2, 8))
    busy = eplb.plan(ExpertLoad(tokens), eplb.Topology(1, 4, 3))
    idle = eplb.plan(ExpertLoad(np.concatenate([tokens, np.zeros((30, 2, 8))])), eplb.Topology(1, 4, 3))
    assert idle.placement == busy.placement
    assert "30 of 42 windows have no token and were left out" in idle.notes
    with pytest.raises(InputError, match="every count is zero"):
        eplb.plan(ExpertLoad(np.zeros((12, 2, 8))), eplb.Topology(1, 4, 3))


@pytest.mark.parametrize("strategy", ["greedy", "scenario", Scenario(amplification=1.0)])
def test_named_strategies_leave_idle_windows_out_and_say_so(strategy):
    rng = np.random.default_rng(0)
    tokens = rng.lognormal(0, 1, (5, 2, 8))
    busy = eplb.plan(ExpertLoad(tokens), eplb.Topology(1, 4, 3), strategy)
    idle = eplb.plan(ExpertLoad(np.concatenate([np.zeros((9, 2, 8)), tokens])), eplb.Topology(1, 4, 3), strategy)
    assert (idle.placement, idle.layers) == (busy.placement, busy.layers)
    assert set(idle.notes) - set(busy.notes) == {"9 of 14 windows have no token and were left out"}
