"""Lower bounds: by hand, against plain oracles, and against every placement of tiny problems."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eplb.bounds.lower_bounds import full_slot_bound, lower_bounds, mean_bound, replication_bound
from eplb.core.problem import BindingBound
from eplb.core.topology import Topology
from eplb.errors import InfeasibleError, InputError
from eplb.strategies import STRATEGIES
from tests import oracles
from tests.generators import layer_loads, problems

tiny_cases = settings(max_examples=settings.default.max_examples)


def test_the_bounds_of_a_hand_worked_layer():
    # 9 slots, loads 12 and seven times 1: mean 19 / 4; one redundant copy halves the 12: 6;
    # beside it lies a copy of at least 1 / min(4, 9 - 8 + 1) = 1 / 2.
    load, topology = np.array([[12.0, 1, 1, 1, 1, 1, 1, 1]]), Topology(1, 4, [2, 2, 2, 3])
    replication = replication_bound(load, topology)
    assert mean_bound(load, topology) == pytest.approx([19 / 4])
    assert replication.tolist() == [6]
    assert full_slot_bound(load, topology, replication) == pytest.approx([6.5])
    best = lower_bounds(load, topology)
    assert best.value == pytest.approx([6.5])
    assert best.binding == (BindingBound.FULL_SLOT,)
    without = lower_bounds(load, topology, full_and_distinct=False)
    assert without.value == pytest.approx([6])
    assert without.binding == (BindingBound.REPLICATION,)


def test_the_simplest_of_equal_bounds_is_the_one_that_binds():
    # Row 0: mean 2 = largest copy 2 = full slot 2 (one slot a rank). Row 1: idle. Row 2: largest copy 3, mean 2.
    best = lower_bounds(np.array([[2.0, 2], [0, 0], [3, 1]]), Topology(1, 2, 1))
    assert best.value.tolist() == [2, 0, 3]
    assert best.binding == (BindingBound.MEAN, BindingBound.MEAN, BindingBound.REPLICATION)


def test_no_more_copies_than_ranks_are_counted():
    # 2 ranks of 3 slots, 3 experts, 3 redundant copies: the 12 cannot go below 12 / 2, though 4 slots could be its own.
    assert replication_bound(np.array([[12.0, 1, 1]]), Topology(1, 2, 3)).tolist() == [6]


def test_fast_ranks_lower_the_bounds_of_single_copies_and_not_the_mean():
    # Speeds 1 and 3: relative 0.5 and 1.5. Largest copy 6 on the fast rank: 6 / 1.5 = 4; mean 8 / 2.
    load, topology = np.array([[6.0, 2]]), Topology(1, 2, 1, rank_speed=[1, 3])
    assert mean_bound(load, topology).tolist() == [4]
    assert replication_bound(load, topology).tolist() == [4]


def test_a_skewed_layer_of_eight_experts():
    # 16 slots. Copies of at most 120 need 600 / 120 = 5, 560 / 120 -> 5, and 6 for the others: all 16. The next lower
    # candidate, 560 / 5 = 112, needs 6 + 5 + 2 + 2 + 4 = 19.
    load = np.array([[600.0, 560, 120, 120, 20, 10, 10, 10]])
    topology = Topology(1, 8, 2)
    assert replication_bound(load, topology) == pytest.approx([120])
    assert mean_bound(load, topology) == pytest.approx([1450 / 8])


@settings(max_examples=settings.default.max_examples * 3)
@given(data=st.data(), num_ranks=st.integers(1, 9), slots=st.integers(1, 9))
def test_the_replication_bound_is_the_smallest_feasible_candidate(data, num_ranks, slots):
    num_experts = data.draw(st.integers(slots, slots * num_ranks))
    load = data.draw(layer_loads(num_experts))
    found = replication_bound(load[None], Topology(1, num_ranks, slots))
    expected = oracles.smallest_largest_copy(load.tolist(), num_ranks * slots, num_ranks)
    assert found == pytest.approx([expected], rel=1e-12, abs=0)


def brute_optimum(problem, **kinds):
    load, topology = problem.load.total[0].tolist(), problem.topology
    alike = topology.has_equal_slots and topology.rank_speed is None
    layouts = oracles.every_layout(len(load), topology.rank_num_slots.tolist(), alike=alike, **kinds)
    return min(oracles.busiest_time(hands, load, topology.rank_speed) for hands in layouts)


@tiny_cases
@given(problem=problems(tiny=True))
def test_no_placement_of_distinct_experts_in_full_ranks_goes_below_a_bound(problem):
    optimum, load, topology = brute_optimum(problem), problem.load.total, problem.topology
    replication = replication_bound(load, topology)
    for bound in (mean_bound(load, topology), replication, full_slot_bound(load, topology, replication)):
        assert bound[0] <= optimum * (1 + 1e-12)
    assert lower_bounds(load, topology).value[0] <= optimum * (1 + 1e-12)


@settings(max_examples=settings.default.max_examples // 4)
@given(problem=problems(tiny=True))
def test_no_placement_whatever_goes_below_the_bounds_without_full_slots(problem):
    optimum = brute_optimum(problem, doubles=True, holes=True)
    bound = lower_bounds(problem.load.total, problem.topology, full_and_distinct=False)
    assert bound.value[0] <= optimum * (1 + 1e-12)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in {"deepseek", "traffic"}])
@tiny_cases
@given(problem=problems(tiny=True))
def test_no_strategy_beats_brute_force(name, problem):
    try:
        made = STRATEGIES[name](problem)
    except (InfeasibleError, InputError):
        assume(False)
    assert brute_optimum(problem) <= made.layers[0].objective * (1 + 1e-12)


@tiny_cases
@given(problem=problems(tiny=True, equal=True))
def test_deepseek_with_its_doubles_does_not_beat_brute_force_over_doubles(problem):
    made = STRATEGIES["deepseek"](problem)
    assert brute_optimum(problem, doubles=True) <= made.layers[0].objective * (1 + 1e-12)
