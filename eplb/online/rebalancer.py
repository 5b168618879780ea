"""Knows when a live placement is looked at, planned anew and handed a migration; moves no weights.

The life of a migration, in steps, with `interval` 20 and `plan_steps` 2::

    record, step   ..  19   20                21   22                     ..   n
                            look: plan begins      migration is handed out     the caller has moved: commit

What is decided is a function of the recorded counts and of the steps at which the caller commits: ranks that record the
same and commit at the same step decide the same, however fast they plan. `digest` is what they compare.
"""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb.core.migration import Migration
from eplb.core.placement import Placement
from eplb.errors import InputError
from eplb.evaluation.metrics import evaluate
from eplb.online.counts import CountsOf, logical_counts
from eplb.online.decision import Decision, Observer, Outcome
from eplb.online.replan import Replan, replan
from eplb.online.settings import OnlineSettings
from eplb.online.window import LoadWindow, drift
from eplb_traces import ExpertLoad

_DEFAULTS = OnlineSettings()


def unobserved(decision: Decision) -> None:
    """The observer that does nothing."""


@final
class Rebalancer:
    """Keeps a live placement fit for its traffic with few copies moved.

    One thread plans; `record`, `step`, `commit` and `abandon` are called from one other thread. Close it, or use it in
    a `with` block, to end the planning thread.

    Parameters
    ----------
    placement
        What is live.
    settings
        When to look, what to remember, what a move must be worth.
    observer
        Is told every decision; `OnlineMetrics` is one.

    Raises
    ------
    InputError
        For a placement with replica weights: copies share alike here.
    """

    placement: Placement
    """What is live, as far as the commits tell."""

    def __init__(
        self, placement: Placement, settings: OnlineSettings = _DEFAULTS, *, observer: Observer = unobserved
    ) -> None:
        if placement.replica_weights is not None:
            raise InputError("replica_weights: the online rebalancer plans for copies that share alike")
        self.placement, self.settings, self._observer = placement, settings, observer
        self._window = LoadWindow(settings.window, settings.half_life)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="eplb-plan")
        self._step = self._recorded_at_look = self._recorded = 0
        self._no_plan_before = 0
        self._last_looked = 0
        self._plan: Future[Replan] | None = None
        self._due = 0
        self._handed_out: Migration | None = None
        self._planned_for: NDArray[np.float64] | None = None
        self._closed = False
        self._seen = b""  # digest of all that was recorded

    def record(
        self, counts: ArrayLike, of: CountsOf | str = CountsOf.EXPERTS, placement: Placement | None = None
    ) -> None:
        """Take one step's counts, of all ranks together.

        Parameters
        ----------
        counts
            Tokens, numpy or torch on the CPU; see `CountsOf` for the layouts. One step's counts of one rank alone are
            not enough: every rank has to see the same sum.
        of
            What they count.
        placement
            The map in force, if it is not `self.placement`: while a migration is under way.

        Raises
        ------
        InputError
            For counts of another shape, or values that are none.
        """
        in_force = self.placement if placement is None else placement
        tokens = logical_counts(counts, CountsOf.named(of), in_force)
        self._window.add(tokens)
        self._recorded += 1
        self._seen = hashlib.blake2b(self._seen + tokens.tobytes(), digest_size=8).digest()

    def step(self, *, wait: bool = False) -> Migration | None:
        """End a step: look at the traffic when it is time, hand out a migration when one is due.

        Parameters
        ----------
        wait
            Plan in this very call if a plan is begun, whatever `plan_steps` says: the migration comes at once.

        Returns
        -------
        Migration or None
            From `self.placement` to a better one. Carry it out, then `commit` it; or `abandon` it.

        Raises
        ------
        Exception
            What the planning thread raised.
        InputError
            If the rebalancer is closed.
        """
        if self._closed:
            raise InputError("the rebalancer is closed")
        self._step += 1
        if self._step - self._last_looked >= self.settings.interval and self._plan is None:
            self._look()
        if self._plan is not None and (wait or self._step >= self._due):
            return self._hand_out(self._plan)
        return None

    def commit(self, migration: Migration) -> None:
        """Say that a migration was carried out.

        Raises
        ------
        InputError
            If it is not the one that was handed out.
        """
        self._check_handed_out(migration)
        self.placement, self._handed_out = migration.after, None
        self._no_plan_before = self._step + self.settings.cooldown

    def abandon(self, migration: Migration) -> None:
        """Say that a migration was not carried out: `self.placement` is live as before.

        Raises
        ------
        InputError
            If it is not the one that was handed out.
        """
        self._check_handed_out(migration)
        self._handed_out, self._planned_for = None, None

    def digest(self) -> int:
        """63 bits of all that decisions depend on: equal on ranks that will decide the same."""
        sha = hashlib.blake2b(self._seen, digest_size=8)
        words = (self._step, self._recorded, self._last_looked, self._due, self._no_plan_before, self.settings)
        sha.update(f"{words} {self._planned_for is None}".encode())
        sha.update(self.placement.physical_to_logical_map.tobytes())
        if self._handed_out is not None:
            sha.update(self._handed_out.after.physical_to_logical_map.tobytes())
        return int.from_bytes(sha.digest(), "little") >> 1

    def close(self) -> None:
        """End the planning thread; a plan under way is finished and dropped. May be called twice."""
        self._closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Rebalancer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _look(self) -> None:
        """Decide whether to plan, and begin."""
        num_recent = min(self._recorded - self._recorded_at_look, len(self._window))
        self._last_looked, self._recorded_at_look = self._step, self._recorded
        if num_recent == 0:
            self._observer(Decision(self._step, Outcome.NO_TRAFFIC))
            return
        recent = self._window.recent(num_recent)
        decision = Decision(self._step, Outcome.PLANNING, evaluate(self.placement, ExpertLoad(recent)))
        decision = self._judged(decision, recent)
        if decision.outcome is Outcome.PLANNING:
            load = self._window.load()
            self._plan = self._begin(load)
            self._planned_for, self._due = load.tokens, self._step + self.settings.plan_steps
        self._observer(decision)

    def _begin(self, load: ExpertLoad) -> "Future[Replan]":
        if self.settings.plan_steps:
            return self._executor.submit(replan, self.placement, load, self.settings)
        plan: Future[Replan] = Future()
        plan.set_result(replan(self.placement, load, self.settings))
        return plan

    def _judged(self, seen: Decision, recent: NDArray[np.float64]) -> Decision:
        """The decision with its outcome: the first reason not to plan, if there is one."""
        if self._handed_out is not None:
            return replace(seen, outcome=Outcome.UNCOMMITTED)
        if self._step < self._no_plan_before:
            return replace(seen, outcome=Outcome.COOLDOWN)
        if seen.measured is not None and float(seen.measured.max_over_mean.mean()) <= self.settings.target:
            return replace(seen, outcome=Outcome.BALANCED)
        if self._planned_for is None or self.settings.drift == 0:
            return seen
        seen = replace(seen, drift=drift(self._planned_for, recent))
        still = seen.drift is not None and seen.drift <= self.settings.drift
        return replace(seen, outcome=Outcome.NO_DRIFT) if still else seen

    def _hand_out(self, plan: "Future[Replan]") -> Migration | None:
        self._plan = None
        try:
            made = plan.result()
        except BaseException:
            self._planned_for = None
            raise
        if not made.is_whole:
            self._planned_for = None  # there is more that pays: go on at the next look, drift or not
        moves = made.migration.layer.size > 0
        outcome = Outcome.MIGRATION if moves else Outcome.NOT_WORTH_IT
        self._handed_out = made.migration if moves else None
        self._observer(Decision(self._step, outcome, migration=self._handed_out, plan_s=made.plan_s))
        return self._handed_out

    def _check_handed_out(self, migration: Migration) -> None:
        if self._handed_out is None or migration != self._handed_out:
            raise InputError("migration: expected the one that step() handed out last")
