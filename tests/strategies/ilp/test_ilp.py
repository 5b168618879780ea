"""The exact strategy: optima against brute force, constraints met, limits kept, the same bytes again."""

import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eplb
from eplb.core.constraints import Constraints
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.problem import BindingBound, GroupMode, Problem, SolveStatus
from eplb.core.topology import Topology
from eplb.errors import InfeasibleError, MissingExtraError
from eplb.strategies.greedy.greedy import Greedy
from eplb.strategies.ilp.ilp import Ilp
from eplb_traces import ExpertLoad
from tests import oracles
from tests.generators import layer_loads, problems

pytest.importorskip("ortools")

TOY = ExpertLoad([[600.0, 560, 120, 120, 20, 10, 10, 10]])
TOY_TOPOLOGY = Topology(1, 8, 2)


def brute(problem, constraints=None):
    load, topology = problem.load.total[0].tolist(), problem.topology
    best = np.inf
    alike = topology.has_equal_slots and topology.rank_speed is None and constraints is None
    for hands in oracles.every_layout(len(load), topology.rank_num_slots.tolist(), alike=alike):
        if constraints is None or not any(constraints.breaches(hands, len(load))):
            best = min(best, oracles.busiest_time(hands, load, topology.rank_speed))
    return best


def test_the_toy_of_flashlb_is_proven_under_even_split():
    made = Ilp()(Problem(TOY, TOY_TOPOLOGY))
    (layer,) = made.layers
    assert layer.objective == pytest.approx(590 / 3)
    assert layer.status is made.status is SolveStatus.OPTIMAL
    assert layer.gap < 1e-9
    assert layer.binding_bound is BindingBound.SEARCH
    assert eplb.evaluate(made.placement, TOY).rank_load.max() == pytest.approx(590 / 3)


def test_the_toy_of_flashlb_reaches_its_mean_with_weights():
    made = Ilp()(Problem(TOY, TOY_TOPOLOGY, dispatch=DispatchRule.WEIGHTED))
    (layer,) = made.layers
    assert layer.objective == pytest.approx(1450 / 8, rel=1e-8)
    assert layer.status is SolveStatus.OPTIMAL
    assert made.placement.replica_weights is not None
    judged = eplb.evaluate(made.placement, TOY, dispatch="weighted").rank_load.max()
    assert judged == pytest.approx(1450 / 8, rel=1e-7)


@settings(max_examples=40)
@given(problem=problems(tiny=True))
def test_tiny_layers_are_solved_to_the_optimum_of_brute_force(problem):
    made = Ilp(time_limit_s=5)(problem)
    assert made.status is SolveStatus.OPTIMAL
    if problem.group_mode is GroupMode.FREE:
        assert made.layers[0].objective == pytest.approx(brute(problem), rel=1e-9, abs=1e-12)


@settings(max_examples=15)
@given(load=layer_loads(5), speeds=st.none() | st.lists(st.sampled_from([1.0, 2.0]), min_size=3, max_size=3))
def test_the_integer_model_finds_the_optimum_of_brute_force_under_constraints(load, speeds):
    if load.sum() == 0:
        return
    asked = Constraints(forbid=[(0, 0)], apart=[[1, 2]], together=[[3, 4]])
    problem = Problem(ExpertLoad(load[None]), Topology(1, 3, [2, 2, 3], rank_speed=speeds), constraints=asked)
    made = Ilp(time_limit_s=10)(problem)
    assert list(asked.breaches(oracles.hands_of(made.placement, 0), 5)) == []
    best = brute(problem, asked)
    assert made.layers[0].objective == pytest.approx(best, rel=1e-7, abs=1e-12)
    assert made.layers[0].lower_bound <= best * (1 + 1e-12)


@pytest.mark.parametrize("slots", [3, 4, 5, 6])
def test_twelve_experts_on_four_ranks_are_proven(slots):
    load = ExpertLoad(np.random.default_rng(slots).lognormal(0, 1, (2, 12)))
    made = Ilp(time_limit_s=10)(Problem(load, Topology(1, 4, slots)))
    assert made.status is SolveStatus.OPTIMAL
    assert made.gap_worst < 1e-9


def test_enumeration_and_the_integer_model_agree():
    load = ExpertLoad(np.round(1000 * np.random.default_rng(0).lognormal(0, 1, (1, 9))))
    free = Problem(load, Topology(1, 3, 5))
    # A constraint that binds nothing (an expert kept apart from one that is forbidden beside it) forces the model.
    asked = Constraints(expert_bytes=1.0, rank_bytes=5.0)
    modelled = Problem(load, Topology(1, 3, 5), constraints=asked)
    first, second = Ilp(time_limit_s=20)(free), Ilp(time_limit_s=20)(modelled)
    assert first.status is second.status is SolveStatus.OPTIMAL
    assert first.layers[0].objective == pytest.approx(second.layers[0].objective, rel=1e-9)


@pytest.mark.parametrize(
    "asked",
    [
        Constraints(pin=[(0, 3), (7, 0), (19, 2)]),
        Constraints(forbid=[(e, 0) for e in range(10)]),
        Constraints(apart=[[0, 1, 2, 3], [4, 5]]),
        Constraints(together=[[0, 1], [2, 9, 11]]),
        Constraints(replica_counts=[2] * 4 + [1] * 16),
        Constraints(expert_bytes=[2.0] * 5 + [1.0] * 15, rank_bytes=[9, 8, 7, 7]),
    ],
    ids=["pin", "forbid", "apart", "together", "counts", "memory"],
)
def test_every_kind_of_constraint_is_met(asked):
    load = ExpertLoad(np.random.default_rng(0).lognormal(0, 1, (2, 20)))
    made = Ilp(time_limit_s=0.4)(Problem(load, Topology(1, 4, 6), constraints=asked))
    for layer in range(2):
        assert list(asked.breaches(oracles.hands_of(made.placement, layer), 20)) == []
    judged = eplb.evaluate(made.placement, load).rank_load[0].max(axis=1)
    assert judged == pytest.approx([layer.objective for layer in made.layers])


def test_constraints_that_no_placement_meets_together_are_named():
    # 4 experts in 2 ranks of 2: rank 0 must hold two of 1, 2, 3 if 0 is forbidden there, and these are kept apart.
    asked = Constraints(forbid=[(0, 0), (3, 1)], apart=[[1, 2], [1, 3], [2, 3]])
    problem = Problem(ExpertLoad([[1.0, 1, 1, 1]]), Topology(1, 2, 2), constraints=asked)
    with pytest.raises(InfeasibleError, match=r"no placement meets these together: .*apart \(1, 3\); apart \(2, 3\)"):
        Ilp()(problem)


def test_memory_need_not_be_whole_bytes_and_a_rank_may_be_full():
    # Two experts of 0.5 fill a rank of 1 exactly; 0.75 lies alone.
    asked = Constraints(expert_bytes=[0.75, 0.5, 0.5], rank_bytes=[1.0, 1.0])
    made = Ilp()(Problem(ExpertLoad([[1.0, 5, 5]]), Topology(1, 2, [1, 2]), constraints=asked))
    assert [sorted(hand) for hand in oracles.hands_of(made.placement, 0)] == [[0], [1, 2]]


def test_pinned_groups_stay_on_one_node_each_and_beat_greedy_or_match_it():
    load = ExpertLoad(np.random.default_rng(1).lognormal(0, 1, (2, 16)))
    problem = Problem(load, Topology(2, 2, 5), num_groups=4, group_mode=GroupMode.PINNED)
    made, greedy = Ilp(time_limit_s=2)(problem), Greedy()(problem)
    for layer, start in zip(made.layers, greedy.layers, strict=True):
        assert layer.objective <= start.objective * (1 + 1e-12)
    for row in made.placement.physical_to_logical_map:
        groups_of_node = [set((row[node * 10 : node * 10 + 10] // 4).tolist()) for node in range(2)]
        assert not groups_of_node[0] & groups_of_node[1]
        assert [len(groups) for groups in groups_of_node] == [2, 2]


def test_large_layers_are_polished_and_never_worse_than_greedy():
    load = ExpertLoad(np.random.default_rng(0).lognormal(0, 1, (2, 64)))
    topology = Topology(1, 20, 4)
    made = Ilp(time_limit_s=3, most_variables=100)(Problem(load, topology))
    start = Greedy(tolerance=1e-6)(Problem(load, topology))
    pairs = list(zip(made.layers, start.layers, strict=True))
    assert all(layer.objective <= before.objective * (1 + 1e-12) for layer, before in pairs)
    assert any(layer.objective < before.objective * (1 - 1e-6) for layer, before in pairs)
    assert made.status is SolveStatus.FEASIBLE
    assert all(layer.lower_bound <= layer.objective for layer in made.layers)
    assert not made.placement.duplicate_slots.any()


@pytest.mark.parametrize("most_variables", [50, 6000])
def test_the_same_seed_gives_the_same_plan(most_variables):
    load = ExpertLoad(np.random.default_rng(2).lognormal(0, 1, (2, 24)))
    problem = Problem(load, Topology(1, 6, 5), constraints=Constraints(apart=[[0, 1]]))
    strategy = Ilp(time_limit_s=0.5, most_variables=most_variables)
    first, second = strategy(problem, seed=3), strategy(problem, seed=3)
    assert first == second


def test_the_time_limit_is_shared_over_the_layers_and_progress_is_told():
    told = []
    load = ExpertLoad(np.random.default_rng(0).lognormal(0, 1, (6, 40)))
    problem = Problem(load, Topology(1, 8, 6), time_limit_s=1.0)
    Ilp(time_limit_s=1e9)(Problem(TOY, TOY_TOPOLOGY))  # compiled and loaded
    start = time.process_time()
    Ilp(progress=lambda done, total: told.append((done, total)))(problem)
    assert time.process_time() - start < 6
    assert told[-1] == (6, 6)
    assert [done for done, _ in told[:6]] == [1, 2, 3, 4, 5, 6]


def test_without_ortools_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    with pytest.raises(MissingExtraError, match="ilp"):
        Ilp()(Problem(TOY, TOY_TOPOLOGY))


def test_an_idle_layer_needs_no_search():
    load = ExpertLoad(np.array([[0.0, 0, 0, 0], [4, 3, 2, 1]]))
    made = Ilp()(Problem(load, Topology(1, 2, 2)))
    assert made.layers[0].objective == 0
    assert made.status is SolveStatus.OPTIMAL
