"""One placement of a report and its evaluation."""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb.bounds.lower_bounds import LowerBounds
from eplb.core.migration import Hop, Migration
from eplb.core.placement import Placement
from eplb.evaluation.metrics import Evaluation
from eplb.evaluation.step_cost import PredictedStep
from eplb.evaluation.traffic import TokenSpread, Traffic


@final
@dataclass(frozen=True, eq=False)
class PlanView:
    """One placement and its evaluation."""

    name: str
    """File name or strategy; unique in a report."""
    placement: Placement
    evaluation: Evaluation
    """By `eplb.evaluate` under the report's load and dispatch rule."""
    bound: LowerBounds
    """`value` [L]: lower bound on the tokens of the busiest rank, for the summed load; `binding` [L].

    If ranks differ in speed: tokens over relative speed."""
    migration: Migration | None
    """From the first plan of the report; None for the first plan and if the slots differ."""
    traffic: Traffic | None
    """Token copies between ranks under even dispatch; None without a trace."""
    balance_by_window: NDArray[np.float64] | None
    """[W, L] max/mean rank load in the windows of `ReportContents.windows`; None if there are none."""
    step: PredictedStep | None = None
    """Predicted step under the report's dispatch rule; None without a calibration."""

    balance_by_part: NDArray[np.float64] | None = None
    """[parts, L] max/mean rank load in each window of `ReportContents.parts`; None if there are none."""

    @property
    def spread(self) -> TokenSpread | None:
        """Ranks and nodes of a token's choices; None without a trace."""
        return None if self.traffic is None else self.traffic.spread

    @property
    def total_rank_load(self) -> NDArray[np.float64]:
        """[L, R] tokens of every rank, summed over windows by their weights."""
        return self.evaluation.total_rank_load

    @property
    def busiest_rank(self) -> NDArray[np.int64]:
        """[L] rank with the largest load over speed, for the summed load; ties to the lowest rank."""
        return self.evaluation.total_rank_time.argmax(axis=1)

    @property
    def moved_in(self) -> NDArray[np.int64]:
        """[L, R] replicas that a rank fetches from other ranks in the migration; 0 without a migration."""
        moved = np.zeros(self.evaluation.rank_load.shape[1:], np.int64)
        if self.migration is not None:
            crossing = self.migration.hop != Hop.SAME_RANK
            np.add.at(moved, (self.migration.layer[crossing], self.migration.rank[crossing]), 1)
        return moved

    def metrics(self) -> dict[str, float | int]:
        """Every metric by name: balance; if known, token spread, predicted milliseconds and migration.

        The names of `Evaluation.summary` come first, with the values that `eplb evaluate --json` prints.
        """
        found = self.evaluation.summary()
        if self.spread is not None:
            found["ranks_per_token"] = float(self.spread.ranks_per_token.mean())
            found["nodes_per_token"] = float(self.spread.nodes_per_token.mean())
        if self.step is not None:
            found |= self.step.summary()
        return found if self.migration is None else {**found, **self.migration.summary()}
