"""Decides when a live placement is checked and replanned, and returns migrations. It moves no weights.

One migration, in steps, with `interval` 20 and `plan_steps` 2::

    record, step   ..  19   20                21   22                     ..   n
                            check: plan starts     migration is returned       the caller has moved: commit

Decisions depend only on the recorded counts and on the steps at which the caller commits. Ranks that record the same
counts and commit at the same steps decide the same, however fast they plan. They compare `digest`.
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
from eplb.evaluation.metrics import evaluate, mean_of_known
from eplb.online.counts import CountsOf, logical_counts
from eplb.online.decision import Decision, Observer, Outcome
from eplb.online.replan import Replan, replan
from eplb.online.settings import OnlineSettings
from eplb.online.window import LoadWindow, change_against_chance
from eplb_traces import ExpertLoad
from eplb_traces.display import facts_html

_DEFAULTS = OnlineSettings()


def unobserved(decision: Decision) -> None:
    """The observer that does nothing."""


@final
class Rebalancer:
    """Adapts a live placement to its load while moving few replicas.

    One thread plans; `record`, `step`, `commit` and `abandon` are called from one other thread. Close it, or use it in
    a `with` block, to end the planning thread.

    Parameters
    ----------
    placement
        The live placement.
    settings
        Intervals, memory and the least gain of a move.
    observer
        Called with every decision, such as `OnlineMetrics`.

    Raises
    ------
    InputError
        For a placement with replica weights.
    """

    placement: Placement
    """The live placement by the last commit."""

    def __init__(
        self, placement: Placement, settings: OnlineSettings = _DEFAULTS, *, observer: Observer = unobserved
    ) -> None:
        if placement.replica_weights is not None:
            raise InputError("replica_weights: expected none, a migration carries no shares")
        self.placement, self.settings, self._observer = placement, settings, observer
        self._window = LoadWindow(settings.window, settings.half_life)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="eplb-plan")
        self._step = self._recorded_at_check = self._recorded = 0
        self._no_plan_before = 0
        self._last_checked = 0
        self._plan: Future[Replan] | None = None
        self._due = 0
        self._outstanding: Migration | None = None
        self._planned_for: NDArray[np.float64] | None = None
        self._closed = False
        self._seen = b""  # digest of everything recorded

    def __repr__(self) -> str:
        return f"Rebalancer({self._recorded} steps recorded, {self.placement.topology.num_ranks} ranks)"

    def _repr_html_(self) -> str:
        facts = {"steps recorded": self._recorded, "live placement": self.placement, "settings": self.settings}
        return facts_html("Rebalancer", facts)

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
            For counts of another shape, or values that are not finite and >= 0.
        """
        in_force = self.placement if placement is None else placement
        tokens = logical_counts(counts, CountsOf.named(of), in_force)
        self._window.add(tokens)
        self._recorded += 1
        self._seen = hashlib.blake2b(self._seen + tokens.tobytes(), digest_size=8).digest()

    def step(self, *, wait: bool = False) -> Migration | None:
        """End a step: check the load when it is time, return a migration when one is due.

        Parameters
        ----------
        wait
            Plan in this call if a plan is started, whatever `plan_steps` is: the migration is returned at once.

        Returns
        -------
        Migration or None
            From `self.placement` to a better one. Execute it, then `commit` it; or `abandon` it.

        Raises
        ------
        Exception
            Errors of the planning thread.
        InputError
            If the rebalancer is closed.
        """
        if self._closed:
            raise InputError("the rebalancer is closed")
        self._step += 1
        if self._step - self._last_checked >= self.settings.interval and self._plan is None:
            self._check()
        if self._plan is not None and (wait or self._step >= self._due):
            return self._result(self._plan)
        return None

    def commit(self, migration: Migration) -> None:
        """Record that a migration was executed.

        Raises
        ------
        InputError
            If it is not the one that `step` returned last.
        """
        self._check_outstanding(migration)
        self.placement, self._outstanding = migration.after, None
        self._no_plan_before = self._step + self.settings.cooldown

    def abandon(self, migration: Migration) -> None:
        """Record that a migration was not executed: `self.placement` stays live.

        Raises
        ------
        InputError
            If it is not the one that `step` returned last.
        """
        self._check_outstanding(migration)
        self._outstanding, self._planned_for = None, None

    def digest(self) -> int:
        """63-bit hash of all that decisions depend on: equal on ranks that will decide the same."""
        sha = hashlib.blake2b(self._seen, digest_size=8)
        state = (self._step, self._recorded, self._last_checked, self._due, self._no_plan_before, self.settings)
        sha.update(f"{state} {self._planned_for is None}".encode())
        sha.update(self.placement.physical_to_logical_map.tobytes())
        if self._outstanding is not None:
            sha.update(self._outstanding.after.physical_to_logical_map.tobytes())
        return int.from_bytes(sha.digest(), "little") >> 1

    def close(self) -> None:
        """End the planning thread; a running plan is finished and dropped. May be called twice."""
        self._closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Rebalancer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self) -> None:
        """Decide whether to plan, and start the plan."""
        num_recent = min(self._recorded - self._recorded_at_check, len(self._window))
        self._last_checked, self._recorded_at_check = self._step, self._recorded
        if num_recent == 0:
            self._observer(Decision(self._step, Outcome.NO_TRAFFIC))
            return
        recent = self._window.recent(num_recent)
        settings = self.settings
        measured = evaluate(self.placement, ExpertLoad(recent), settings.dispatch, sources=settings.sources)
        decision = Decision(self._step, Outcome.PLANNING, measured)
        decision = self._decided(decision, recent)
        if decision.outcome is Outcome.PLANNING:
            load = self._window.load()
            self._plan = self._start(load)
            self._planned_for, self._due = load.tokens, self._step + self.settings.plan_steps
        self._observer(decision)

    def _start(self, load: ExpertLoad) -> "Future[Replan]":
        if self.settings.plan_steps:
            return self._executor.submit(replan, self.placement, load, self.settings)
        plan: Future[Replan] = Future()
        plan.set_result(replan(self.placement, load, self.settings))
        return plan

    def _decided(self, seen: Decision, recent: NDArray[np.float64]) -> Decision:
        """The decision with its outcome: the first reason not to plan, if there is one."""
        if self._outstanding is not None:
            return replace(seen, outcome=Outcome.UNCOMMITTED)
        if self._step < self._no_plan_before:
            return replace(seen, outcome=Outcome.COOLDOWN)
        if seen.measured is not None and not mean_of_known(seen.measured.max_over_mean) > self.settings.target:
            return replace(seen, outcome=Outcome.BALANCED)
        if self._planned_for is None or self.settings.change == 0:
            return seen
        seen = replace(seen, change=change_against_chance(self._planned_for, recent))
        unchanged = seen.change is not None and seen.change <= self.settings.change
        return replace(seen, outcome=Outcome.NO_CHANGE) if unchanged else seen

    def _result(self, plan: "Future[Replan]") -> Migration | None:
        self._plan = None
        try:
            made = plan.result()
        except BaseException:
            self._planned_for = None
            raise
        if not made.is_whole:
            self._planned_for = None  # more moves pay: plan again at the next check, whether the load changes or not
        moves = made.migration.layer.size > 0
        outcome = Outcome.MIGRATION if moves else Outcome.NOT_WORTH_IT
        self._outstanding = made.migration if moves else None
        self._observer(Decision(self._step, outcome, migration=self._outstanding, plan_s=made.plan_s))
        return self._outstanding

    def _check_outstanding(self, migration: Migration) -> None:
        if self._outstanding is None or migration != self._outstanding:
            raise InputError("migration: expected the one that step() returned last")
