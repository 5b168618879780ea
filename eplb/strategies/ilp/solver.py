"""Loads, runs and limits CP-SAT so that equal models get equal answers."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any, final

from eplb.errors import MissingExtraError
from eplb.strategies.ilp.search_control import SearchControl

Model = Any  # CP-SAT's own objects are untyped

WALL_PER_DETERMINISTIC_SECOND = 3.0
WALL_GRACE_S = 3.0
"""A deterministic second of CP-SAT takes about one second; a search that lags further behind than this is cut off."""


def cp_sat() -> ModuleType:
    """OR-tools' CP-SAT module; MissingExtraError if it is not installed."""
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise MissingExtraError("the ilp strategy", "ilp") from None
    return cp_model


@final
@dataclass(frozen=True)
class Answer:
    """Result of a CP-SAT run."""

    has_solution: bool
    is_proven: bool
    """Whether the solution is optimal, or there is proven to be none."""
    bound: float
    """No solution has a smaller objective; minus infinity if it was not bounded."""
    spent_s: float
    """Deterministic seconds."""
    solver: Model
    """CP-SAT's own object, from which values of variables are read."""


def solve(model: Model, *, limit_s: float, seed: int, control: SearchControl) -> Answer:
    """Minimise with one worker, whose search depends on nothing but the model and the seed.

    Parameters
    ----------
    model
        A `CpModel`. A hint is kept when it covers every variable, the objective is capped by the hint's value, and
        symmetries are not detected, which is therefore off: models break them themselves.
    limit_s
        Deterministic seconds; the search is also cut off at `WALL_PER_DETERMINISTIC_SECOND` times that plus
        `WALL_GRACE_S` on the clock. That and the wall limit of `control` are the ways in which two runs can differ.
    seed
        Of CP-SAT's own choices.
    control
        Wall time left, and who may stop the search. Interrupts are left to Python: several solvers that each catch
        SIGINT abort the process.
    """
    module = cp_sat()
    solver = module.CpSolver()
    parameters = solver.parameters
    parameters.num_workers = 1
    parameters.symmetry_level = 0
    parameters.random_seed = seed % (1 << 31)
    parameters.max_deterministic_time = limit_s
    wall_s = min(limit_s * WALL_PER_DETERMINISTIC_SECOND + WALL_GRACE_S, control.left_s)
    if wall_s <= 0:
        return Answer(False, False, float("-inf"), 0.0, solver)
    parameters.max_time_in_seconds = wall_s
    parameters.catch_sigint_signal = False
    with control.running(solver):
        status = solver.solve(model)
    has_solution = status in (module.OPTIMAL, module.FEASIBLE)
    is_proven = status in (module.OPTIMAL, module.INFEASIBLE)
    bound = solver.best_objective_bound if has_solution or status == module.UNKNOWN else float("-inf")
    return Answer(has_solution, is_proven, bound, solver.response_proto.deterministic_time, solver)
