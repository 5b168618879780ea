"""`eplb.plan` with a strategy that is in no table."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

import eplb
from eplb.core.problem import Plan, Problem
from eplb.errors import InputError
from eplb.strategies.certify import certified_plan

LOAD = eplb.ExpertLoad([[9.0, 3.0, 2.0, 2.0]])
TOPOLOGY = eplb.Topology(1, 2, 3)


@dataclass(frozen=True)
class HottestTwice:
    """The two hottest experts get a replica on each of two ranks."""

    name = "hottest_twice"
    summary = "for the tests"

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        order = np.argsort(-problem.load.total, axis=1, kind="stable")
        rows = order[:, [0, 1, 2, 0, 1, 3]].astype(np.int32)
        return certified_plan(problem, rows, strategy=self.name, seed=seed)


def test_the_plan_of_a_callable_is_its_own_with_a_certificate_that_the_judge_confirms():
    plan = eplb.plan(LOAD, TOPOLOGY, HottestTwice(), seed=7)
    assert (plan.strategy, plan.seed) == ("hottest_twice", 7)
    assert plan.placement.physical_to_logical_map.tolist() == [[0, 1, 2, 0, 1, 3]]
    assert plan.layers[0].objective == 9 / 2 + 3 / 2 + 2
    assert eplb.evaluate(plan.placement, LOAD).rank_load.max() == plan.layers[0].objective


@pytest.mark.parametrize(
    ("other_load", "other_topology", "message"),
    [
        (LOAD, eplb.Topology(2, 1, 3), r"strategy hottest_twice: a plan for .*num_nodes=2"),
        (
            eplb.ExpertLoad([[9.0, 3.0, 2.0, 2.0]] * 2),
            TOPOLOGY,
            r"load of 1 layers x 4 .* hottest_twice is for 2 layers x 4 experts",
        ),
    ],
)
def test_a_plan_for_another_problem_is_refused(other_load, other_topology, message):
    class Wrong(HottestTwice):
        def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
            return super().__call__(replace(problem, load=other_load, topology=other_topology), seed=seed)

    with pytest.raises(InputError, match=message):
        eplb.plan(LOAD, TOPOLOGY, Wrong())
