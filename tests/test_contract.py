"""What every strategy owes, whatever it is: the same generated problems for each name in the table."""

import dataclasses
import os

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import eplb
from eplb.core.problem import GroupMode, Problem, SolveStatus
from eplb.errors import InfeasibleError
from eplb.strategies import ONLY_WHEN_NAMED, STRATEGIES
from eplb.strategies.options import HONOURED, PlanOption
from eplb_traces import ExpertLoad
from tests.generators import problems
from tests.oracles import busiest_time, hands_of, has_doubles

MAY_DOUBLE = {"deepseek"}
NEEDS_EQUAL_SLOTS = {"deepseek"}
PINS_TO_EQUAL_NODES = {"deepseek"}

# ilp searches until it has a proof: its generated cases, fewer and small, are in planning/test_ilp.py.
every_strategy = pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ONLY_WHEN_NAMED])
cases = settings(max_examples=settings.default.max_examples * 3 // 2)


def planned(name: str, problem: Problem) -> eplb.Plan:
    """The plan, for problems that the strategy accepts; unequal ranks and nodes may be refused, equal ones never."""
    if PlanOption.PINNED not in HONOURED[name]:
        problem = dataclasses.replace(problem, group_mode=GroupMode.FREE)
    assume(name not in PINS_TO_EQUAL_NODES or problem.group_mode is GroupMode.FREE or problem.topology.has_equal_nodes)
    if not problem.topology.has_equal_slots:
        assume(name not in NEEDS_EQUAL_SLOTS)
        try:
            return STRATEGIES[name](problem)
        except InfeasibleError:
            assume(False)
    return STRATEGIES[name](problem)


def scaled(problem: Problem, factor: float) -> Problem:
    load = ExpertLoad(problem.load.tokens * factor, problem.load.weights)
    return dataclasses.replace(problem, load=load)


def check_layout(made: eplb.Plan, problem: Problem) -> None:
    """Every expert has a replica, every slot holds one, and no rank holds two of an expert unless that is allowed."""
    assert made.placement.topology == problem.topology
    for layer in range(problem.load.num_layers):
        hands = hands_of(made.placement, layer)
        held = [expert for hand in hands for expert in hand]
        assert set(held) == set(range(problem.load.num_experts))
        assert [len(hand) for hand in hands] == problem.topology.rank_num_slots.tolist()
        if made.strategy not in MAY_DOUBLE:
            assert not has_doubles(hands)


def check_claims(made: eplb.Plan, problem: Problem) -> None:
    """The certificates are what the judge and plain loops find, not below the bound, with the status that follows."""
    total = np.einsum("w,wle->le", problem.load.weights, problem.load.tokens)
    evaluation = eplb.evaluate(made.placement, problem.load)
    weighted = np.einsum("w,wlr->lr", problem.load.weights, evaluation.rank_load)
    judged = (weighted / problem.topology.relative_speed).max(axis=1)
    assert len(made.layers) == problem.load.num_layers
    for layer, certificate in enumerate(made.layers):
        by_loops = busiest_time(hands_of(made.placement, layer), total[layer], problem.topology.rank_speed)
        assert certificate.objective == pytest.approx(by_loops, rel=1e-9)
        assert certificate.objective == pytest.approx(judged[layer], rel=1e-9)
        assert certificate.objective >= certificate.lower_bound * (1 - 1e-12)
        assert certificate.gap >= -1e-12
        met = certificate.objective <= certificate.lower_bound * (1 + 1e-9)
        assert certificate.status is (SolveStatus.OPTIMAL if met else SolveStatus.HEURISTIC)
    assert made.gap_mean == pytest.approx(np.mean([layer.gap for layer in made.layers if layer.lower_bound > 0]))
    assert made.load_digest == problem.load.digest


@every_strategy
@cases
@given(problem=problems())
def test_every_expert_lives_every_slot_is_filled_and_no_rank_holds_an_expert_twice(name, problem):
    check_layout(planned(name, problem), problem)


@every_strategy
@cases
@given(problem=problems())
def test_the_claim_is_what_the_judge_and_plain_loops_find_and_not_below_the_bound(name, problem):
    check_claims(planned(name, problem), problem)


@every_strategy
@cases
@given(problem=problems(), num_threads=st.integers(2, 5))
def test_repetition_the_unit_of_load_and_the_number_of_threads_change_nothing(name, problem, num_threads):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        first = planned(name, problem)
        assert planned(name, problem) == first
        in_eighths = planned(name, scaled(problem, 8.0))
        patch.setattr(os, "sched_getaffinity", lambda _: set(range(num_threads)))
        threaded = planned(name, problem)
    assert threaded == first
    expected = first.placement.physical_to_logical_map.tobytes()
    assert threaded.placement.physical_to_logical_map.tobytes() == expected
    assert in_eighths.placement.physical_to_logical_map.tobytes() == expected
    assert [layer.objective for layer in in_eighths.layers] == [8 * layer.objective for layer in first.layers]


@every_strategy
def test_the_table_says_the_name_that_the_plan_carries(name):
    load = ExpertLoad([[1.0, 2.0, 3.0, 4.0]])
    assert STRATEGIES[name].name == name
    assert STRATEGIES[name].summary
    assert eplb.plan(load, eplb.Topology(1, 2, 3), name).strategy == name


@cases
@given(
    num_ranks=st.sampled_from([4, 8, 16]),
    slots=st.integers(2, 9),
    sigma=st.sampled_from([0.1, 0.3, 1.0, 2.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_greedy_is_no_worse_than_deepseek_where_deepseek_doubles_nothing(num_ranks, slots, sigma, seed):
    # On loads without ties. Two copies on one rank can pay where a single expert outweighs the others; we never do it.
    rng = np.random.default_rng(seed)
    num_experts = num_ranks * slots - int(rng.integers(0, num_ranks * (slots - 1) // 2 + 1))
    load = ExpertLoad(rng.lognormal(0, sigma, (4, num_experts)) * 1000)
    problem = Problem(load, eplb.Topology(1, num_ranks, slots))
    greedy, published = STRATEGIES["greedy"], STRATEGIES["deepseek"]
    theirs = published(problem)
    doubled = theirs.placement.duplicate_slots.any(axis=1)
    for layer, ours in enumerate(greedy(problem).layers):
        assert doubled[layer] or ours.objective <= theirs.layers[layer].objective * (1 + greedy.tolerance)


# Ranks {0, 1} and {2, 3} of four slots: 8 and 4 tokens. The bound is 8: 6 + 2 for a rank of two slots with expert 0.
HAND_WORKED = Problem(ExpertLoad([[6.0, 2.0, 2.0, 2.0]]), eplb.Topology(1, 2, 2))


@pytest.mark.parametrize(
    "claim",
    [
        {"objective": 6.0},
        {"objective": 9.0},
        {"lower_bound": 8.1},
        {"lower_bound": 7.0},
        {"status": SolveStatus.HEURISTIC},
    ],
)
def test_a_false_claim_is_caught(claim):
    made = STRATEGIES["linear"](HAND_WORKED)
    check_claims(made, HAND_WORKED)
    assert [(layer.objective, layer.lower_bound) for layer in made.layers] == [(8.0, 8.0)]
    with pytest.raises(AssertionError):
        check_claims(dataclasses.replace(made, layers=(dataclasses.replace(made.layers[0], **claim),)), HAND_WORKED)


def test_certificates_of_another_load_or_of_no_layer_are_caught():
    made = STRATEGIES["linear"](HAND_WORKED)
    with pytest.raises(AssertionError):
        check_claims(dataclasses.replace(made, load_digest="sha256:00"), HAND_WORKED)
    with pytest.raises(AssertionError):
        check_claims(dataclasses.replace(made, layers=()), HAND_WORKED)


@pytest.mark.parametrize("row", [[0, 1, 2, 3, -1, 0], [0, 0, 1, 2, 3, 1]], ids=["empty slot", "expert twice on a rank"])
def test_a_broken_layout_is_caught(row):
    topology = eplb.Topology(1, 2, 3)
    problem = dataclasses.replace(HAND_WORKED, topology=topology)
    made = STRATEGIES["greedy"](problem)
    check_layout(made, problem)
    with pytest.raises(AssertionError):
        check_layout(dataclasses.replace(made, placement=eplb.Placement([row], 4, topology)), problem)
