"""The front door: which strategy runs, what it is asked, what is refused."""

import numpy as np
import pytest

import eplb
from eplb.errors import InputError, UnknownNameError
from eplb.strategies import ONLY_WHEN_NAMED, STRATEGIES
from eplb_traces import ModelShape

RNG = np.random.default_rng(5)
LOAD = eplb.ExpertLoad(RNG.permutation(48).reshape(2, 24) + 1.0, shape=ModelShape(2, 24, num_expert_groups=4))
TOPOLOGY = eplb.Topology(2, 4, 4)


def test_auto_says_what_it_picked_and_plans_the_same():
    made = eplb.plan(LOAD, TOPOLOGY)
    assert made.strategy == "greedy"
    assert made.notes[0] == "auto: greedy, the load is one window"
    named = eplb.plan(LOAD, TOPOLOGY, "greedy")
    assert named.notes == ()
    assert named.placement == made.placement


def test_the_plan_knows_its_model_its_load_its_seed_and_its_time():
    made = eplb.plan(LOAD, TOPOLOGY, seed=7)
    assert made.shape == LOAD.shape
    assert made.load_digest == LOAD.digest
    assert made.seed == 7
    assert made.seconds > 0


def test_groups_are_those_of_the_model_unless_the_caller_says_other_ones():
    pinned = eplb.plan(LOAD, TOPOLOGY, "deepseek", group_mode="pinned")
    assert pinned.placement == eplb.plan(LOAD, TOPOLOGY, "deepseek", groups=4, group_mode="pinned").placement
    assert pinned.placement != eplb.plan(LOAD, TOPOLOGY, "deepseek", groups=2, group_mode="pinned").placement
    zigzag = eplb.plan(LOAD, TOPOLOGY, "zigzag").placement
    assert zigzag == eplb.plan(LOAD, TOPOLOGY, "zigzag", groups=4).placement
    assert zigzag != eplb.plan(LOAD, TOPOLOGY, "zigzag", groups=1).placement


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "best"}, "unknown strategy 'best': expected one of auto, biased, deepseek, .*linear.*zigzag"),
        ({"group_mode": "tight"}, "unknown group mode 'tight': expected one of free, pinned"),
        ({"dispatch": "odd"}, "unknown dispatch rule 'odd': expected one of ascend, even, .*weighted"),
    ],
)
def test_an_unknown_name_is_refused_with_the_list(options, message):
    with pytest.raises(UnknownNameError, match=message):
        eplb.plan(LOAD, TOPOLOGY, **options)


@pytest.mark.parametrize("dispatch", ["even", "weighted", "sglang_static"])
def test_claims_of_auto_are_for_the_whole_load_although_it_plans_on_the_last_quarter(dispatch):
    # Nine windows in which the first experts are hot, then seven in which the last ones are; one window is empty.
    tokens = np.ones((17, 1, 12))
    tokens[:9, 0, :3], tokens[9:16, 0, 9:], tokens[16] = 100.0, 100.0, 0.0
    load = eplb.ExpertLoad(tokens)
    made = eplb.plan(load, eplb.Topology(1, 4, 4), dispatch=dispatch)
    assert any(note.startswith("planned on the last 4 windows; claims are for all 16") for note in made.notes)
    judged = eplb.evaluate(made.placement, load, dispatch)
    assert made.layers[0].objective == pytest.approx(judged.total_rank_time.max(), rel=1e-9)
    assert made.layers[0].lower_bound == pytest.approx(judged.bound.value[0], rel=1e-9)
    assert made.load_digest == load.digest


def test_an_idle_load_is_refused():
    with pytest.raises(InputError, match="every count is zero, nothing to plan for"):
        eplb.plan(eplb.ExpertLoad(np.zeros((2, 24))), TOPOLOGY)


def test_compare_runs_every_strategy_and_judges_it_on_the_same_load():
    comparisons = eplb.compare(LOAD, TOPOLOGY)
    assert [comparison.plan.strategy for comparison in comparisons] == [
        name for name in STRATEGIES if name not in ONLY_WHEN_NAMED
    ]
    for made, evaluation in ((c.plan, c.evaluation) for c in comparisons):
        assert evaluation.placement is made.placement
        assert evaluation.load is LOAD
        assert evaluation.gap == pytest.approx([layer.gap for layer in made.layers], rel=1e-9, abs=1e-9)


def test_compare_runs_the_strategies_it_is_given_in_their_order():
    comparisons = eplb.compare(LOAD, TOPOLOGY, ["zigzag", "linear"], groups=2)
    assert [comparison.plan.strategy for comparison in comparisons] == ["zigzag", "linear"]
    assert comparisons[0].plan.placement == eplb.plan(LOAD, TOPOLOGY, "zigzag", groups=2).placement


def test_compare_refuses_an_unknown_strategy():
    with pytest.raises(UnknownNameError, match="unknown strategy 'best'"):
        eplb.compare(LOAD, TOPOLOGY, ["linear", "best"])
