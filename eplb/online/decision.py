"""Knows what a look at the traffic can end with, and who is told; decides nothing."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, final

from eplb.core.migration import Migration
from eplb.evaluation.metrics import Evaluation


class Outcome(StrEnum):
    """What became of a look."""

    PLANNING = "planning"
    """A plan was begun; its own decision follows when it is due."""
    MIGRATION = "migration"
    """A migration was handed out."""
    NO_TRAFFIC = "no_traffic"
    """Nothing was recorded since the last look."""
    UNCOMMITTED = "uncommitted"
    """The last migration was neither committed nor abandoned."""
    COOLDOWN = "cooldown"
    """Too soon after a commit."""
    BALANCED = "balanced"
    """Balanced enough as it is."""
    NO_DRIFT = "no_drift"
    """The traffic is still what was planned for."""
    NOT_WORTH_IT = "not_worth_it"
    """Planned, but no move is worth its price."""


SKIPS = (
    Outcome.NO_TRAFFIC,
    Outcome.UNCOMMITTED,
    Outcome.COOLDOWN,
    Outcome.BALANCED,
    Outcome.NO_DRIFT,
    Outcome.NOT_WORTH_IT,
)
"""Outcomes that leave the placement as it is."""


@final
@dataclass(frozen=True)
class Decision:
    """What was seen and done at one step."""

    step: int
    """Steps recorded until then."""
    outcome: Outcome
    measured: Evaluation | None = None
    """The live placement under the traffic since the last look; None where nothing was measured."""
    drift: float | None = None
    """See `window.drift`; None where it was not asked."""
    migration: Migration | None = None
    plan_s: float | None = None
    """Wall time of planning; the only field that may differ between ranks."""


class Observer(Protocol):
    """Is told every decision, in the thread that called `step`."""

    def __call__(self, decision: Decision) -> None:
        """Take note."""
        ...
