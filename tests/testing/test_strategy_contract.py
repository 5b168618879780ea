"""`eplb.testing.check_strategy`: eplb's own strategies keep the contract, and each rule of it can fail."""

import dataclasses

import numpy as np
import pytest

import eplb
from eplb.core.placement import Placement
from eplb.core.problem import SolveStatus
from eplb.errors import InputError
from eplb.strategies import ONLY_WHEN_NAMED, STRATEGIES
from eplb.strategies.certify import certified_plan
from eplb.testing import ContractError, check_strategy
from eplb.testing.problems import problems


def dealt(problem, *, seed=0):
    """Hottest experts first, dealt over the ranks one by one; the hottest get the redundant slots."""
    load, topology = problem.load.total, problem.topology
    if not topology.has_equal_slots:
        raise InputError("dealt: expected ranks of equally many slots")
    counts = np.full(load.shape[1], topology.num_slots // load.shape[1])
    counts[: topology.num_slots % load.shape[1]] += 1
    replicas = np.repeat(np.argsort(-load, axis=1, kind="stable"), counts, axis=1)
    turns = replicas.reshape(load.shape[0], -1, topology.num_ranks)
    return turns.swapaxes(1, 2).reshape(load.shape[0], -1)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ONLY_WHEN_NAMED])
def test_the_strategies_of_eplb_keep_it(name):
    check_strategy(name, may_duplicate=name == "deepseek")


def test_a_function_that_returns_a_map_keeps_it():
    check_strategy(dealt)


def test_the_problems_are_of_every_kind_and_the_same_each_time():
    found = list(problems(40))
    assert [one.load for one in found] == [one.load for one in problems(40)]
    assert {one.topology.has_equal_slots for one in found} == {True, False}
    assert any(one.load.empty_layers.any() for one in found)
    assert any(one.load.num_windows > 1 for one in found)
    assert any(one.topology.num_slots > one.load.num_experts for one in found)


def certified(problem, rows, seed, **changed):
    made = certified_plan(problem, rows.astype(np.int32), strategy="broken", seed=seed)
    return dataclasses.replace(made, **changed)


def doubling(problem, rows, seed):
    """Every rank is filled with its first expert, as far as others have replicas elsewhere."""
    rows = np.sort(rows, axis=1)
    return certified(problem, rows, seed)


def lying(problem, rows, seed):
    made = certified(problem, rows, seed)
    layers = tuple(dataclasses.replace(layer, objective=layer.objective * 1.5 + 1) for layer in made.layers)
    return dataclasses.replace(made, layers=layers)


def boasting(problem, rows, seed):
    made = certified(problem, rows, seed)
    claims = [
        dataclasses.replace(layer, lower_bound=layer.objective, status=SolveStatus.OPTIMAL) for layer in made.layers
    ]
    return dataclasses.replace(made, layers=tuple(claims))


def modest(problem, rows, seed):
    made = certified(problem, rows, seed)
    claims = [dataclasses.replace(layer, status=SolveStatus.FEASIBLE) for layer in made.layers]
    return dataclasses.replace(made, layers=tuple(claims))


def of_another_load(problem, rows, seed):
    return certified(problem, rows, seed, load_digest="sha256:00")


def without_claims(problem, rows, seed):
    return certified(problem, rows, seed, layers=())


def for_another_topology(problem, rows, seed):
    slower = dataclasses.replace(problem.topology, intra_node_gbps=1.0)
    made = certified(problem, rows, seed)
    return dataclasses.replace(made, placement=Placement(rows, problem.load.num_experts, slower))


def with_holes(problem, rows, seed):
    rows = rows.copy()
    rows[:, -1][(rows[:, :-1] == rows[:, -1:]).any(axis=1)] = -1
    return certified(problem, rows, seed)


def sensitive(problem, rows, seed):
    """Mirrors the ranks where the load is large."""
    return certified(problem, rows[:, ::-1] if problem.load.tokens.max() > 20 else rows, seed)


def refusing(problem, rows, seed):
    raise InputError("not today")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (doubling, r"strategy broken, problem \d+ \(.* load, Topology\(.*: layer \d+: rank \d+ holds expert \d+ twice"),
        (lying, r"objective .*, eplb.evaluate finds"),
        (boasting, r"lower bound .*, proven is"),
        (modest, r"status feasible with"),
        (of_another_load, r"load_digest 'sha256:00'"),
        (without_claims, r"0 certificates: expected one for each"),
        (for_another_topology, r"refused: .*a plan for Topology\(.*expected Topology"),
        (with_holes, r"is empty: expected an expert in every slot"),
        (sensitive, r"eight times the load gives another map"),
        (refusing, r"refused: not today"),
    ],
)
def test_a_broken_rule_is_named(broken, message):
    @dataclasses.dataclass(frozen=True)
    class Broken:
        name = "broken"
        summary = "for the tests"

        def __call__(self, problem, *, seed=0):
            return broken(problem, dealt(problem), seed)

    with pytest.raises(ContractError, match=message):
        check_strategy(Broken())
    assert issubclass(ContractError, AssertionError)


def test_a_plan_that_changes_from_call_to_call_is_caught():
    calls = []

    def moody(problem, *, seed=0):
        calls.append(seed)
        rows = dealt(problem)
        return rows if len(calls) % 2 else rows[:, ::-1]

    with pytest.raises(ContractError, match=r"another plan the second time|eight times"):
        check_strategy(moody)
    assert eplb.testing.check_strategy is check_strategy
