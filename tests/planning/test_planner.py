"""The front door: which strategy runs, what it is asked, what is refused."""

import numpy as np
import pytest

import eplb
from eplb.errors import InputError, UnknownNameError
from eplb.evaluation.failures import after_loss
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


@pytest.mark.parametrize("dispatch", ["even", "vllm", "online", "weighted"])
def test_the_growth_after_a_loss_is_claimed_for_an_even_split_alone(dispatch):
    """Under online dispatch, replicas on a node that is lost may carry more than their even share."""
    topology, load = eplb.Topology(3, 2, 2), eplb.ExpertLoad([[3.0, 2.0, 2.0, 1.0, 1.0, 1.0]])
    made = eplb.plan(load, topology, survive="node", dispatch=dispatch)
    growth = [note for note in made.notes if "times as busy" in note]
    prefix = "" if dispatch in ("even", "vllm") else f"under even dispatch, not {dispatch}: "
    assert len(growth) == 1
    assert growth[0].startswith(f"{prefix}survivable: every expert lives")


def test_the_busiest_rank_can_grow_by_more_than_the_bound_where_shares_are_chosen_for_the_load():
    # Experts 0 and 1 are on a rank each of node 0, and both on rank 2: it has 2/3 of an expert's tokens, then all of 2.
    topology, load = eplb.Topology(2, 2, 2), eplb.ExpertLoad([[1.0, 1.0, 0.0, 0.0]])
    row = np.array([[0, 2, 1, 3, 0, 1, 2, 3]])
    left = np.where(topology.node_of_rank[topology.rank_of_slot] == 0, -1, row)
    before, after = (eplb.evaluate(eplb.Placement(it, 4, topology), load, "online").rank_load for it in (row, left))
    assert after_loss(eplb.Placement(row, 4, topology), load, "node").growth_bound.tolist() == [2]
    assert after.max() / before.max() == pytest.approx(3)
