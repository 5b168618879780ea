"""Names the plan of a report to use, and the numbers that decide."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from eplb.report.plan_view import PlanView

_EQUAL_WITHIN: Final = 5e-4
"""Relative; plans this close to the best one count as equally good."""


@final
@dataclass(frozen=True)
class Recommendation:
    """The plan to use, and why, in one sentence."""

    index: int
    """Index of the plan in the report."""
    sentence: str


def recommend(views: Sequence[PlanView]) -> Recommendation:
    """The plan with the shortest predicted step, or without predictions the lowest max/mean rank load.

    max/mean is the mean of layers and windows. Plans within 0.05 % of the best one count as equally good: the first
    plan is then kept, otherwise the one with the fewest replicas to move is chosen, and then the earliest.
    """
    measures = [_measure(view) for view in views]
    best = min(measures)
    good = [index for index, value in enumerate(measures) if value <= best * (1 + _EQUAL_WITHIN)]
    index = min(good, key=lambda one: (one > 0, _moves(views[one]), one))
    return Recommendation(index, _sentence(views, index, measures))


def _measure(view: PlanView) -> float:
    summary = view.evaluation.summary()
    return float(summary["max_over_mean_mean"] if view.step is None else view.step.summary()["predicted_step_ms"])


def _moves(view: PlanView) -> float:
    """Replicas to move from the first plan; infinity where slots differ, so that no migration is known."""
    return float("inf") if view.migration is None else view.migration.moved_copies


def _sentence(views: Sequence[PlanView], index: int, measures: Sequence[float]) -> str:
    first, chosen = views[0], views[index]
    old, new = measures[0], measures[index]
    if chosen.step is None:
        now, before = f"the busiest rank has {new:.3f}x the mean load", f"{old:.3f}x"
    else:
        now, before = f"the MoE layers of a step take {new:.3f} ms", f"{old:.3f} ms"
    if index == 0:
        return f"Keep {first.name}: no other plan is better; {now}."
    moved = "" if chosen.migration is None else f" It moves {chosen.migration.moved_copies:,} replicas to another rank."
    return f"Use {chosen.name}: {now} instead of {before} with {first.name}.{moved}"
