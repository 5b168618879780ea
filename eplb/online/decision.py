"""Defines the outcomes of a check of the load, and the interface of observers."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, final

from eplb.core.migration import Migration
from eplb.evaluation.metrics import Evaluation


class Outcome(StrEnum):
    """The outcome of a check."""

    PLANNING = "planning"
    """A plan was started; its own decision follows when it is due."""
    MIGRATION = "migration"
    """A migration was returned by `step`."""
    NO_TRAFFIC = "no_traffic"
    """Nothing was recorded since the last check."""
    UNCOMMITTED = "uncommitted"
    """The last migration was neither committed nor abandoned."""
    COOLDOWN = "cooldown"
    """Too soon after a commit."""
    BALANCED = "balanced"
    """Balanced enough as it is."""
    NO_CHANGE = "no_change"
    """The load has not changed more than by chance since the last plan."""
    NOT_WORTH_IT = "not_worth_it"
    """Planned, but no move gains more than it costs."""


SKIPS = (
    Outcome.NO_TRAFFIC,
    Outcome.UNCOMMITTED,
    Outcome.COOLDOWN,
    Outcome.BALANCED,
    Outcome.NO_CHANGE,
    Outcome.NOT_WORTH_IT,
)
"""Outcomes that leave the placement as it is."""


@final
@dataclass(frozen=True)
class Decision:
    """What was measured and done at one step."""

    step: int
    """Steps recorded until then."""
    outcome: Outcome
    measured: Evaluation | None = None
    """The live placement under the load since the last check; None where nothing was measured."""
    change: float | None = None
    """See `window.change_against_chance`; None where it was not computed."""
    migration: Migration | None = None
    plan_s: float | None = None
    """Wall time of planning; the only field that may differ between ranks."""


class Observer(Protocol):
    """A callable that gets every decision, in the thread that called `step`."""

    def __call__(self, decision: Decision) -> None:
        """Take one decision."""
        ...
