"""`eplb.plan` with a strategy that is in no table."""

import pkgutil
from dataclasses import dataclass, replace

import numpy as np
import pytest

import eplb
from eplb.core.constraints import Constraints
from eplb.core.problem import BindingBound, LayerCertificate, Plan, Problem, SolveStatus
from eplb.errors import InputError
from eplb.planning.redundancy_sweep import sweep
from eplb.report import gather
from eplb.strategies import own_strategy
from eplb.strategies.certify import certified_plan
from eplb.strategies.own_strategy import OwnStrategy, as_strategy
from eplb.strategies.scenario.scenario import Scenario

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


def hottest_twice(problem: Problem, *, seed: int = 0) -> np.ndarray:
    """The two hottest experts on both ranks.

    The rest as they come.
    """
    order = np.argsort(-problem.load.total, axis=1, kind="stable")
    return order[:, [0, 1, 2, 0, 1, 3]]


def test_the_map_of_a_function_is_certified_as_the_plan_of_an_object_is():
    made = eplb.plan(LOAD, TOPOLOGY, hottest_twice, seed=3)
    assert (made, made.strategy) == (eplb.plan(LOAD, TOPOLOGY, HottestTwice(), seed=3), "hottest_twice")
    assert eplb.plan(LOAD, TOPOLOGY, HottestTwice).placement == made.placement
    assert as_strategy(hottest_twice).summary == "The two hottest experts on both ranks."


def test_compare_backtest_sweep_and_report_take_them():
    own, greedy = eplb.compare(LOAD, TOPOLOGY, [hottest_twice, "greedy"])
    assert (own.plan.strategy, greedy.plan.strategy) == ("hottest_twice", "greedy")
    assert own.evaluation.rank_load.max() == 9 / 2 + 3 / 2 + 2
    history = np.tile(LOAD.tokens, (8, 1, 1))
    scores = eplb.backtest(history, TOPOLOGY, [hottest_twice, "linear"])
    assert {score.candidate.name for score in scores} == {"hottest_twice", "linear"}
    (point,) = sweep(LOAD, 2, 1, [2], strategy=hottest_twice)
    assert point.max_over_mean_worst == pytest.approx(1.0)
    contents = gather(LOAD, topology=TOPOLOGY, strategy=hottest_twice)
    assert [view.name for view in contents.plans] == ["experts in order", "hottest_twice"]


def _named(name):
    def function(problem, *, seed=0):
        return hottest_twice(problem)

    function.__name__ = name
    return function


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (7, "strategy is of type int: expected a name, or a callable"),
        (None, "strategy is of type NoneType"),
        (lambda problem, seed=0: None, "has the name '<lambda>'"),
        (_named("greedy"), "strategy name 'greedy' is that of an eplb strategy"),
        (_named("auto"), "strategy name 'auto'"),
        (lambda: None, "<lambda>"),
        (np.sort, "strategy sort cannot be called as strategy"),
        (OwnStrategy, "strategy class OwnStrategy: expected one without arguments"),
        ("no_such_module:Snake", "module 'no_such_module' cannot be imported"),
        ("no_such_file.py:Snake", "no file no_such_file.py"),
        ("tests.planning.test_own_strategy:Nothing", "has no 'Nothing'"),
        ("snake", "unknown strategy 'snake': expected one of"),
    ],
)
def test_what_is_no_strategy_is_refused_by_name(strategy, message):
    with pytest.raises(InputError, match=message):
        eplb.plan(LOAD, TOPOLOGY, strategy)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "strategy own returned NoneType: expected a Plan"),
        ([[0, 1, 2, 0, 1, 3]], "returned list"),
        (np.zeros((1, 6)), "returned array of float64"),
        (np.zeros((1, 5), dtype=int), r"a map of shape \(1, 5\): expected \(1, 6\)"),
        (np.zeros((1, 6), dtype=int), r"layer 0\]: expert 1 has no slot"),
        (np.full((1, 6), 7), r"= 7: expected 0 <= id < 4"),
    ],
)
def test_an_answer_that_is_no_map_is_refused(answer, message):
    def own(problem, *, seed=0):
        return answer

    with pytest.raises(InputError, match=message):
        eplb.plan(LOAD, TOPOLOGY, own)


def test_strategies_of_eplb_with_other_parameters_keep_their_name():
    assert eplb.plan(LOAD, TOPOLOGY, Scenario(amplification=1.0)).strategy == "scenario"
    with pytest.raises(InputError, match=r"load_cap = 1\.1: strategy scenario does not plan for it"):
        eplb.plan(LOAD, TOPOLOGY, Scenario(amplification=1.0), load_cap=1.1)
    with pytest.raises(InputError, match="strategy auto: one strategy plans every point"):
        sweep(LOAD, 2, 1, [2], strategy="auto")


def _claims_all(problem: Problem, rows) -> Plan:
    return certified_plan(problem, np.array(rows, np.int32), strategy="own")


# Home of group 0 is node 0: two replicas (0, 1) are off it. Home of group 1 is node 1: three (of 4) are off it.
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"survive": "rank"}, "own does not meet what was asked: not survivable: 4 experts live on one rank only"),
        ({"groups": 2, "group_mode": "pinned"}, "layer 0: 5 replicas are not on the node of their expert group"),
        ({"constraints": Constraints(pin=[(3, 0)])}, "layer 0: expert 3 is not on rank 0, where it is pinned"),
    ],
)
def test_what_was_asked_is_checked_whatever_the_strategy_claims(asked, message):
    def own(problem, *, seed=0):
        return _claims_all(problem, [[0, 1, 2, 4, 4, 4, 0, 1, 3, 5, 5, 5]])

    with pytest.raises(InputError, match=message):
        eplb.plan([[9.0, 3.0, 2.0, 2.0, 1.0, 1.0]], eplb.Topology(2, 1, 6), own, **asked)


@dataclass(frozen=True)
class Claims:
    """Plans as `hottest_twice` does, and claims what it is told."""

    objective: float = 8.0
    bound: float = 8.0
    status: SolveStatus = SolveStatus.HEURISTIC
    digest: str = ""
    binding: BindingBound = BindingBound.SEARCH
    name = "claims"

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        placement = eplb.Placement(hottest_twice(problem), 4, problem.topology)
        layer = LayerCertificate(self.objective, self.bound, self.binding, self.status)
        return Plan(placement, problem.load.shape, "greedy", self.status, layers=(layer,), load_digest=self.digest)


@pytest.mark.parametrize(
    "claims",
    [
        Claims(objective=1.0, bound=1.0, status=SolveStatus.OPTIMAL),  # too low
        Claims(objective=9.0),
        Claims(bound=8.5),  # above what is reached
        Claims(bound=7.5, status=SolveStatus.OPTIMAL),
        Claims(objective=1.0, bound=1.0, digest=LOAD.digest),
    ],
)
def test_a_false_claim_is_replaced_by_what_the_judge_finds(claims):
    made = eplb.plan(LOAD, TOPOLOGY, claims)
    assert (made.strategy, made.load_digest) == ("claims", LOAD.digest)
    assert made.layers == eplb.plan(LOAD, TOPOLOGY, HottestTwice()).layers
    assert made.status is SolveStatus.OPTIMAL  # 16 tokens on two ranks, 8 each
    assert f"layer 0 claimed {claims.objective:g} tokens" in made.notes[-1]


def test_a_bound_that_is_not_proven_is_replaced_though_the_plan_is_not_below_it():
    load = [[9.0, 3.0, 3.0, 1.0]]  # 9 and 7 tokens on the two ranks; the mean is 8
    made = eplb.plan(load, TOPOLOGY, Claims(objective=9.0, bound=9.0, binding=BindingBound.MEAN))
    assert (made.layers[0].objective, made.layers[0].lower_bound) == (9.0, 8.0)
    assert made.layers == eplb.plan(load, TOPOLOGY, HottestTwice()).layers


def test_a_claim_that_holds_is_kept_and_a_plan_without_claims_gets_some():
    made = eplb.plan(LOAD, TOPOLOGY, Claims(bound=7.75))
    assert made.layers[0].binding_bound is BindingBound.SEARCH
    assert (made.layers[0].lower_bound, made.status, made.notes) == (7.75, SolveStatus.HEURISTIC, ())

    def bare(problem: Problem, *, seed: int = 0) -> Plan:
        return replace(HottestTwice()(problem), layers=(), status=SolveStatus.OPTIMAL)

    assert eplb.plan(LOAD, TOPOLOGY, bare).layers == eplb.plan(LOAD, TOPOLOGY, HottestTwice()).layers


def test_the_claims_of_a_plan_made_for_another_rule_are_not_taken_over():
    def inner(problem: Problem, *, seed: int = 0) -> Plan:
        return eplb.plan(problem.load, problem.topology, "greedy")

    load = [[9.0, 3.0, 2.0, 2.0, 1.0]]
    made = eplb.plan(load, TOPOLOGY, inner, dispatch="online")
    judged = eplb.evaluate(made.placement, load, "online").rank_load.max()
    assert made.strategy == "inner"
    assert made.layers[0].objective == pytest.approx(judged)


def _elsewhere(problem: Problem, *, seed: int = 0) -> Plan:
    """A plan for twice the ranks."""
    topology = eplb.Topology(1, 2 * problem.topology.num_ranks, problem.topology.slots_per_rank)
    return certified_plan(
        replace(problem, topology=topology), np.tile(np.arange(4), (1, topology.num_slots // 4)), strategy="x"
    )


def test_backtest_and_sweep_check_the_plans_too():
    history = np.tile(LOAD.tokens, (8, 1, 1))
    topology = eplb.Topology(1, 2, 4)
    with pytest.raises(InputError, match=r"a plan for .*ranks_per_node=4"):
        eplb.backtest(history, topology, [_elsewhere])
    with pytest.raises(InputError, match=r"a plan for .*ranks_per_node=4"):
        sweep(LOAD, 2, 1, [4], strategy=_elsewhere)
    with pytest.raises(InputError, match=r"layer 0: .* replicas are not on the node of their expert group"):
        eplb.backtest(history, eplb.Topology(2, 1, 3), [hottest_twice], groups=2, group_mode="pinned")


@dataclass(frozen=True)
class Entry:
    """An installed entry point."""

    name: str
    value: str

    def load(self):
        return pkgutil.resolve_name(self.value)


HERE = "tests.planning.test_own_strategy"


def test_an_installed_strategy_is_found_by_its_name(monkeypatch):
    monkeypatch.setattr(own_strategy, "entry_points", lambda group: [Entry("hottest_twice", f"{HERE}:HottestTwice")])
    assert eplb.plan(LOAD, TOPOLOGY, "hottest_twice").strategy == "hottest_twice"
    with pytest.raises(InputError, match=r"expected one of .*hottest_twice"):
        eplb.plan(LOAD, TOPOLOGY, "hottest_twicce")


@pytest.mark.parametrize(
    ("entries", "name", "message"),
    [
        ([Entry("x", f"{HERE}:HottestTwice")], "x", "'x' of .* has the name 'hottest_twice': expected the same"),
        ([Entry("x", "no.such.module:X")], "x", "cannot be imported: No module named 'no'"),
        ([Entry("x", f"{HERE}:LOAD")], "x", "strategy is of type ExpertLoad"),
        ([Entry("x", "a:X"), Entry("x", "b:X")], "x", "'x' is offered as a:X and b:X"),
    ],
)
def test_an_installed_strategy_that_cannot_be_used_is_named(monkeypatch, entries, name, message):
    monkeypatch.setattr(own_strategy, "entry_points", lambda group: entries)
    with pytest.raises(InputError, match=message):
        eplb.plan(LOAD, TOPOLOGY, name)
