"""Says which options of a problem each strategy plans for, and refuses the others by name."""

from enum import StrEnum
from types import MappingProxyType
from typing import Final

from eplb.core.problem import GroupMode, Problem, Survive
from eplb.errors import InputError


class PlanOption(StrEnum):
    """What a problem can ask besides a balanced load under its dispatch rule."""

    PINNED = "group mode pinned"
    PRICED = "group mode priced"
    SURVIVE = "survive"
    CONSTRAINTS = "constraints"
    TIME_LIMIT = "time_limit_s"
    TIME_LIMIT_OF_CONSTRAINTS = "time_limit_s with constraints"
    TRACE = "trace"
    LOAD_CAP = "load_cap"


_SEARCH: Final = frozenset({PlanOption.PINNED, PlanOption.CONSTRAINTS, PlanOption.TIME_LIMIT_OF_CONSTRAINTS})
HONOURED: Final = MappingProxyType({
    "linear": frozenset[PlanOption](),
    "round_robin": frozenset[PlanOption](),
    "zigzag": frozenset[PlanOption](),
    "deepseek": frozenset({PlanOption.PINNED}),
    "greedy": _SEARCH | {PlanOption.PRICED, PlanOption.SURVIVE},
    "scenario": _SEARCH,
    "ilp": _SEARCH | {PlanOption.TIME_LIMIT},
    "biased": frozenset({PlanOption.PINNED}),
    "traffic": frozenset({PlanOption.TRACE, PlanOption.LOAD_CAP}),
    "step_time": frozenset[PlanOption](),
    "incremental": frozenset[PlanOption](),
    "incremental_scenario": frozenset[PlanOption](),
})  # fmt: skip
"""Options that each strategy plans for. A strategy of one's own is not named here: its plan is judged instead."""


def asked_options(problem: Problem) -> dict[PlanOption, str]:
    """The options that a problem uses, with their values in words."""
    is_constrained = not problem.constraints.is_empty
    limit = PlanOption.TIME_LIMIT_OF_CONSTRAINTS if is_constrained else PlanOption.TIME_LIMIT
    uses = (
        (PlanOption.PINNED, "group mode pinned", problem.group_mode is GroupMode.PINNED),
        (PlanOption.PRICED, "group mode priced", problem.group_mode is GroupMode.PRICED),
        (PlanOption.SURVIVE, f"survive = {problem.survive}", problem.survive is not Survive.NOTHING),
        (PlanOption.CONSTRAINTS, "constraints", is_constrained),
        (limit, f"time_limit_s = {problem.time_limit_s}", problem.time_limit_s is not None),
        (PlanOption.TRACE, "trace", problem.trace is not None),
        (PlanOption.LOAD_CAP, f"load_cap = {problem.load_cap}", problem.load_cap is not None),
    )
    return {option: words for option, words, is_used in uses if is_used}


def check_options(problem: Problem, strategy: str) -> None:
    """Refuse an option that the strategy would ignore.

    Raises
    ------
    InputError
        With the first such option, its value and the strategies that plan for it.
    """
    if strategy not in HONOURED:
        return
    for option, words in asked_options(problem).items():
        if option not in HONOURED[strategy]:
            able = ", ".join(name for name, options in HONOURED.items() if option in options)
            raise InputError(f"{words}: strategy {strategy} does not plan for it, expected strategy {able}")
