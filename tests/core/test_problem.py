"""Problem, Plan and certificates: what is refused, what the gaps are."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
from hypothesis import given

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.problem import BindingBound, GroupMode, LayerCertificate, Plan, Problem, SolveStatus, Survive
from eplb.core.topology import Topology
from eplb.errors import InputError, UnknownNameError
from eplb_traces import ExpertLoad, ModelShape
from tests.generators import plans

LOAD = ExpertLoad([[5.0, 3, 2, 1, 4, 6]])
PLACEMENT = Placement([[0, 1, 2, 0]], 3, Topology(1, 2, 2))
SHAPE = ModelShape(1, 3)


def certificate(objective: float, bound: float) -> LayerCertificate:
    return LayerCertificate(objective, bound, BindingBound.MEAN, SolveStatus.HEURISTIC)


@pytest.mark.parametrize(
    ("load", "topology", "options", "message"),
    [
        (ExpertLoad([[0.0] * 6]), Topology(1, 2, 3), {}, "load: every count is zero, nothing to plan for"),
        (LOAD, Topology(1, 2, 2), {}, "4 slots: expected at least one for each of 6 experts"),
        (LOAD, Topology(1, 1, 7), {}, "slots_per_rank = 7: a rank can hold each of 6 experts only once"),
        (LOAD, Topology(1, 2, [2, 7]), {}, "slots_per_rank = 7: a rank can hold each of 6 experts only once"),
        (LOAD, Topology(1, 2, 3), {"num_groups": 4}, "groups = 4: expected a divisor of 6 experts"),
        (LOAD, Topology(1, 2, 3), {"num_groups": 0}, "groups = 0: expected a divisor of 6 experts"),
        (LOAD, Topology(1, 2, 3), {"num_groups": 2.0}, r"groups = 2\.0: expected a divisor of 6 experts"),
        (LOAD, Topology(1, 2, 3), {"num_groups": "2"}, "groups = 2: expected a divisor of 6 experts"),
        (
            LOAD,
            Topology(2, 1, 3),
            {"num_groups": 3, "group_mode": GroupMode.PINNED},
            "groups = 3: pinned groups need a multiple of 2 nodes",
        ),
        (
            LOAD,
            Topology(1, 2, 6),
            {"num_groups": 3, "group_mode": GroupMode.PRICED, "group_price": 0.1, "survive": Survive.RANK},
            "group mode priced: plans for no loss, this is survive = rank",
        ),
        (LOAD, Topology(1, 2, 3), {"sources": (1.0,)}, "sources has 1 shares: expected one for each of 2 ranks"),
        (LOAD, Topology(1, 2, 3), {"sources": (1.5, -0.5)}, r"sources\[rank 1\] = -0\.5: expected a share >= 0"),
        (LOAD, Topology(1, 2, 3), {"sources": (0.5, 0.25)}, r"sources sum to 0\.75: expected 1"),
        (
            LOAD,
            Topology(2, 1, 3),
            {"num_groups": 2, "group_mode": GroupMode.PRICED},
            r"group mode priced, group_price = 0\.0: expected a price above 0",
        ),
        (
            LOAD,
            Topology(2, 1, 3),
            {"group_price": 0.1},
            r"group mode free, group_price = 0\.1: expected .* none otherwise",
        ),
        (LOAD, Topology(2, 1, 3), {"group_price": -1.0}, r"group_price = -1\.0: expected finite and >= 0"),
    ],
)
def test_a_problem_without_an_answer_is_refused_with_value_and_expectation(load, topology, options, message):
    with pytest.raises(InputError, match=message):
        Problem(load, topology, **options)


def test_the_smallest_problem_is_one():
    problem = Problem(ExpertLoad([[1.0]]), Topology(1, 1, 1))
    assert (problem.num_groups, problem.group_mode) == (1, GroupMode.FREE)


def test_names_stand_for_the_members_that_strategies_compare_with():
    named = Problem(LOAD, Topology(2, 1, 6), num_groups=2, group_mode="pinned", dispatch="weighted", survive="rank")
    assert named.group_mode is GroupMode.PINNED
    assert named.dispatch is DispatchRule.WEIGHTED
    assert named.survive is Survive.RANK
    with pytest.raises(UnknownNameError, match="unknown dispatch rule 'fair'"):
        Problem(LOAD, Topology(1, 2, 3), dispatch="fair")


@pytest.mark.parametrize("number", [np.float64, np.float32])
def test_numpy_numbers_are_options_as_python_numbers_are(number):
    topology, groups = Topology(2, 1, 3), np.int64(2)
    priced = Problem(LOAD, topology, num_groups=groups, group_mode=GroupMode.PRICED, group_price=number(0.5))
    assert (priced.num_groups, priced.group_price) == (2, 0.5)
    assert Problem(LOAD, topology, group_price=number(0.0)).group_mode is GroupMode.FREE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": 1.0}, r"sources = 1\.0: expected a share for each of 2 ranks"),
        ({"sources": "ab"}, "sources is not a rectangular array of numbers"),
        ({"sources": [[0.5, 0.5]]}, r"sources = \[\[0\.5, 0\.5\]\]: expected a share for each of 2 ranks"),
        ({"constraints": None}, "constraints is of type NoneType: expected Constraints"),
        ({"constraints": {}}, "constraints is of type dict: expected Constraints"),
        ({"time_limit_s": "5"}, "time_limit_s = '5': expected a number"),
        ({"time_limit_s": True}, "time_limit_s = True: expected a number"),
        ({"load_cap": "1.1"}, r"load_cap = '1\.1': expected a number"),
        ({"group_price": "x"}, "group_price = 'x': expected a number"),
        ({"group_price": None}, "group_price = None: expected a number"),
    ],
)
def test_options_of_another_type_are_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        Problem(LOAD, Topology(1, 2, 3), **options)


def test_sources_may_be_an_array():
    problem = Problem(LOAD, Topology(1, 2, 3), sources=np.array([0.25, 0.75]))
    assert problem.sources == (0.25, 0.75)


def test_a_group_mode_is_found_by_name_and_an_unknown_one_refused_with_the_list():
    assert GroupMode.named("pinned") is GroupMode.PINNED
    with pytest.raises(UnknownNameError, match="unknown group mode 'tight': expected one of free, pinned, priced"):
        GroupMode.named("tight")


def test_the_gap_is_the_relative_distance_from_the_bound_and_zero_without_load():
    assert certificate(12, 10).gap == pytest.approx(0.2)
    assert certificate(10, 10).gap == 0
    assert certificate(0, 0).gap == 0


def test_the_gaps_of_a_plan_are_those_of_its_layers():
    placement = Placement([[0, 1, 2, 0]] * 3, 3, PLACEMENT.topology)
    layers = (certificate(12, 10), certificate(5, 5), certificate(7, 5))
    plan = Plan(placement, ModelShape(3, 3), "greedy", layers=layers)
    # 0.2, 0 and 0.4.
    assert plan.gap_mean == pytest.approx(0.2)
    assert plan.gap_worst == pytest.approx(0.4)


def test_layers_without_load_are_no_part_of_the_gaps():
    placement = Placement([[0, 1, 2, 0]] * 3, 3, PLACEMENT.topology)
    plan = Plan(
        placement, ModelShape(3, 3), "greedy", layers=(certificate(12, 10), certificate(0, 0), certificate(7, 5))
    )
    assert plan.gap_mean == pytest.approx(0.3)  # of 0.2 and 0.4
    assert plan.gap_worst == pytest.approx(0.4)


def test_a_plan_without_certificates_has_no_gap():
    plan = Plan(PLACEMENT, SHAPE, "sglang")
    assert math.isnan(plan.gap_mean)
    assert math.isnan(plan.gap_worst)


def test_certificates_that_are_not_one_a_layer_are_refused():
    with pytest.raises(InputError, match="2 certificates: expected one for each of 1 layers"):
        Plan(PLACEMENT, SHAPE, "greedy", layers=(certificate(1, 1),) * 2)


@pytest.mark.parametrize("absent", [(3,), (-1,), (1, 1)])
def test_absent_ranks_are_different_ids_of_the_engine(absent):
    assert Plan(PLACEMENT, SHAPE, "greedy", absent_ranks=(1,)).rank_ids == (0, 2)
    with pytest.raises(
        InputError, match=f"absent rank {absent[0]}: expected different ids, 0 <= id < {2 + len(absent)}"
    ):
        Plan(PLACEMENT, SHAPE, "greedy", absent_ranks=absent)


@pytest.mark.parametrize("shape", [ModelShape(2, 3), ModelShape(1, 4)])
def test_a_plan_for_another_model_is_refused(shape):
    expected = f"placement of 1 layers x 3 experts: the model has {shape.num_layers} x {shape.num_experts}"
    with pytest.raises(InputError, match=expected):
        Plan(PLACEMENT, shape, "greedy")


@given(plan=plans(layer_ids=True, holes=True, weights=True))
def test_a_pickled_plan_is_equal_and_its_arrays_read_only(plan):
    copy = pickle.loads(pickle.dumps(plan))
    assert copy == plan
    with pytest.raises(ValueError, match="read-only"):
        copy.placement.physical_to_logical_map[0, 0] = 0


def test_plans_and_certificates_are_frozen():
    plan = Plan(PLACEMENT, SHAPE, "greedy", layers=(certificate(1, 1),))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.seed = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.layers[0].objective = 0.0


def test_bounds_named_by_files_of_older_versions_are_read_and_other_names_are_refused():
    assert BindingBound("companion") is BindingBound("co_residency") is BindingBound.CO_RESIDENCY
    assert BindingBound("pairing") is BindingBound("pair_mixture") is BindingBound.PAIR_MIXTURE
    assert "companion" not in list(BindingBound)
    with pytest.raises(ValueError, match="'pairs' is not a valid BindingBound"):
        BindingBound("pairs")
