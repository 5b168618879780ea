"""Which constraints a conflict names: every kind, and whole kinds where there are many constraints."""

import sys

import pytest

import eplb
from eplb.core.constraints import Constraints
from eplb.core.problem import Problem
from eplb.errors import InfeasibleError
from eplb.strategies import STRATEGIES
from eplb.strategies.constrained.conflict import MOST_NAMED_SINGLY, conflict
from eplb_traces import ExpertLoad

PAIRS = tuple((expert, 0) for expert in range(MOST_NAMED_SINGLY + 1))


@pytest.mark.parametrize(
    ("constraints", "broken_by", "expected"),
    [
        (
            Constraints(forbid=PAIRS, together=[(0, 1)], apart=[(1, 2)]),
            lambda rest: bool(rest.forbid and rest.apart),
            ["all forbid", "all apart"],
        ),
        (
            Constraints(pin=[(0, 0), (1, 1)], forbid=[(2, 0)], replicate_everywhere=[3]),
            lambda rest: (1, 1) in rest.pin and 3 in rest.replicate_everywhere,
            ["pin (1, 1)", "replicate_everywhere 3"],
        ),
        (
            Constraints(pin=[(0, 0)], replica_counts=[1, 2], expert_bytes=[1, 1], rank_bytes=2.0),
            lambda rest: rest.replica_counts is not None and rest.expert_bytes is not None,
            ["replica_counts", "rank_bytes"],
        ),
    ],
)
def test_each_named_constraint_is_needed_for_the_conflict(constraints, broken_by, expected):
    assert conflict(constraints, broken_by) == expected


def test_without_the_integer_model_its_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "ortools"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ortools", None)
    # Only the integer model finds that no rank has room for what stays together.
    asked = Constraints(together=[(0, 1), (1, 2)])
    problem = Problem(ExpertLoad([[4.0, 3, 2, 1]]), eplb.Topology(1, 3, 2), constraints=asked)
    with pytest.raises(InfeasibleError, match=r"to search on: .*extra 'ilp'"):
        STRATEGIES["greedy"](problem)
