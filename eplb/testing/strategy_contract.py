"""Checks what eplb asks of every strategy, on generated problems; every claim is recomputed from the map.

One line in the tests of a strategy: ``check_strategy(Snake())``.
"""

import dataclasses

import numpy as np

from eplb.core.placement import EMPTY_SLOT
from eplb.core.problem import BindingBound, Plan, Problem, SolveStatus, Strategy
from eplb.errors import EplbError
from eplb.evaluation.metrics import evaluate
from eplb.planning.planner import plan
from eplb.strategies import StrategyLike, accepted_strategy
from eplb.testing.problems import problems
from eplb_traces import ExpertLoad

_CLOSE = 1e-9  # relative: rounding of sums in another order


class ContractError(EplbError, AssertionError):
    """A strategy breaks a rule; the message names the rule, the problem and what was found."""


def check_strategy(
    strategy: StrategyLike, *, num_problems: int = 40, seed: int = 0, may_duplicate: bool = False
) -> None:
    """Check a strategy on generated problems: layout, claims, determinism, independence of the unit of load.

    1. The plan is for the problem's topology and model, and every slot holds an expert.
    2. No rank holds an expert twice, unless `may_duplicate`.
    3. Each layer's certificate: the objective is what `eplb.evaluate` finds, the lower bound is proven and not above
       it, the status follows from the two.
    4. The same problem and seed give an equal plan, and eight times the load gives the same map.

    A problem whose ranks differ in slots may be refused with an error of eplb. Every other problem must be planned.

    Parameters
    ----------
    strategy
        In any form that `plan` takes.
    num_problems, seed
        How many problems, and which.
    may_duplicate
        Whether a rank may hold an expert twice, as in DeepSeek's EPLB; some engines lose such replicas.

    Raises
    ------
    ContractError
        For the first rule that is broken; an AssertionError, so that test runners count a failure.

    Examples
    --------
    >>> import eplb
    >>> from eplb.testing import check_strategy
    >>> check_strategy("greedy", num_problems=4)
    """
    named = accepted_strategy(strategy)
    for number, problem in enumerate(problems(num_problems, seed)):
        try:
            _check(named, problem, may_duplicate=may_duplicate)
        except ContractError as error:
            size = f"{problem.load.num_windows} x {problem.load.num_layers} x {problem.load.num_experts} load"
            raise ContractError(
                f"strategy {named.name}, problem {number} ({size}, {problem.topology}): {error}"
            ) from error


def _check(strategy: Strategy, problem: Problem, *, may_duplicate: bool) -> None:
    made = _planned(strategy, problem)
    if made is None:
        return
    check_layout(made, problem, may_duplicate=may_duplicate)
    asked = dataclasses.replace(problem, load=problem.load.without_empty_windows())  # as `eplb.plan` asks
    claimed = strategy(asked)  # `eplb.plan` replaces claims that are false
    check_claims(claimed, asked)
    if (claimed.placement, claimed.layers) != (made.placement, made.layers):
        raise ContractError("the same problem and seed give another plan the second time")
    eightfold = dataclasses.replace(problem, load=ExpertLoad(problem.load.tokens * 8, problem.load.weights))
    again = _planned(strategy, eightfold)
    if again is None or again.placement != made.placement:
        raise ContractError("eight times the load gives another map")


def _planned(strategy: Strategy, problem: Problem) -> Plan | None:
    """The plan, checked as `eplb.plan` checks it; None where a problem with unequal ranks is refused."""
    try:
        return plan(problem.load, problem.topology, strategy)
    except EplbError as error:
        if problem.topology.has_equal_slots:
            raise ContractError(f"refused: {error}") from error
        return None


def check_layout(made: Plan, problem: Problem, *, may_duplicate: bool = False) -> None:
    """Refuse empty slots and, unless allowed, duplicates; `eplb.plan` has refused another topology."""
    empty = made.placement.physical_to_logical_map == EMPTY_SLOT
    if empty.any():
        raise ContractError(f"layer, slot {np.argwhere(empty)[0].tolist()} is empty: expected an expert in every slot")
    twice = made.placement.duplicate_slots
    if twice.any() and not may_duplicate:
        layer, slot = np.argwhere(twice)[0].tolist()
        rank = int(problem.topology.rank_of_slot[slot])
        expert = int(made.placement.physical_to_logical_map[layer, slot])
        raise ContractError(f"layer {layer}: rank {rank} holds expert {expert} twice")


def check_claims(made: Plan, problem: Problem) -> None:
    """Refuse certificates that do not follow from the map and the load."""
    judged = evaluate(made.placement, problem.load)
    busiest, proven = judged.total_rank_time.max(axis=1), judged.bound.value
    if len(made.layers) != problem.load.num_layers:
        raise ContractError(
            f"{len(made.layers)} certificates: expected one for each of {problem.load.num_layers} layers"
        )
    if made.load_digest != problem.load.digest:
        raise ContractError(f"load_digest {made.load_digest!r}: expected the digest of the problem's load")
    for layer, claim in enumerate(made.layers):
        if abs(claim.objective - busiest[layer]) > _CLOSE * max(busiest[layer], 1.0):
            raise ContractError(f"layer {layer}: objective {claim.objective}, eplb.evaluate finds {busiest[layer]}")
        limit = busiest[layer] if claim.binding_bound is BindingBound.SEARCH else proven[layer]
        if claim.lower_bound > limit * (1 + _CLOSE):
            raise ContractError(f"layer {layer}: lower bound {claim.lower_bound}, proven is {limit}")
        met = claim.objective <= claim.lower_bound * (1 + _CLOSE)
        if (claim.status is SolveStatus.OPTIMAL) is not met:
            raise ContractError(f"layer {layer}: status {claim.status} with {claim.objective} over {claim.lower_bound}")
