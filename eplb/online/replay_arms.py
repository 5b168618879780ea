"""Decides which placement serves each step of a history: fixed, replanned at intervals, or by the online rebalancer.

All arms are served from the same step on, and plan for the steps before. A migration that an arm starts at the end of a
step is executed in the following steps, some layers a step; its seconds are charged to these steps. Meanwhile no other
migration starts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, final

import numpy as np

from eplb.core.counts import check_count
from eplb.core.migration import Migration
from eplb.core.placement import Placement
from eplb.core.problem import Problem
from eplb.core.topology import Topology
from eplb.cost.placement_schedule import PlacementSchedule, RolloutStep, rollout
from eplb.errors import InputError
from eplb.online.rebalancer import Rebalancer
from eplb.online.settings import OnlineSettings
from eplb.strategies.scenario.scenario import Scenario
from eplb_traces import ExpertLoad


class Arm(Protocol):
    """What decides the placements of a replay."""

    @property
    def name(self) -> str:
        """For display."""
        ...

    def first(self) -> Placement:
        """The placement of the first step that is served."""
        ...

    def after_step(self, live: Placement, num_served: int, *, is_idle: bool) -> Migration | None:
        """What to start when a step of the history has ended.

        Parameters
        ----------
        live
            The placement of that step.
        num_served
            Steps of the history until now.
        is_idle
            False while a migration is executed: no other one can start.
        """
        ...

    def executed(self, migration: Migration) -> None:
        """Take note that the last layer of a migration has moved."""
        ...


@final
@dataclass(frozen=True)
class FixedPlacement:
    """The arm that keeps one placement."""

    name: str
    placement: Placement

    def first(self) -> Placement:
        """See `Arm`."""
        return self.placement

    def after_step(self, live: Placement, num_served: int, *, is_idle: bool) -> Migration | None:
        """See `Arm`; nothing."""
        return None

    def executed(self, migration: Migration) -> None:
        """See `Arm`."""


@final
@dataclass(frozen=True, kw_only=True)
class PeriodicReplan:
    """The arm that plans anew for the sum of the last steps, without regard to the live placement.

    Parameters
    ----------
    name
        For display.
    load
        The history, one window a step.
    every
        Steps between two plans, and steps that a plan is made for.
    plan
        From a load of one window to a placement.
    expert_bytes
        Bytes of one expert of one layer.
    """

    name: str
    load: ExpertLoad
    every: int
    plan: Callable[[ExpertLoad], Placement]
    expert_bytes: float

    def first(self) -> Placement:
        """See `Arm`; planned for the first `every` steps."""
        return self._planned(self.every)

    def after_step(self, live: Placement, num_served: int, *, is_idle: bool) -> Migration | None:
        """See `Arm`."""
        if num_served % self.every or not is_idle:
            return None
        return Migration.between(live, self._planned(num_served), self.expert_bytes)

    def executed(self, migration: Migration) -> None:
        """See `Arm`."""

    def _planned(self, num_served: int) -> Placement:
        recent = self.load.tokens[num_served - self.every : num_served].sum(axis=0)
        return self.plan(ExpertLoad(recent, shape=self.load.shape))


@final
class Online:
    """The arm of the online rebalancer. It starts with the scenario strategy's plan for the first interval.

    Parameters
    ----------
    load
        The history, one window a step.
    topology
        Ranks, nodes and slots.
    settings
        Of the rebalancer; plans are made between two steps, whatever `plan_steps` is.
    seed
        For the first plan.
    """

    name = "online"

    def __init__(self, load: ExpertLoad, topology: Topology, settings: OnlineSettings, seed: int = 0) -> None:
        self._load = load
        before = load.select(slice(0, settings.interval))
        problem = Problem(before, topology, dispatch=settings.dispatch, sources=settings.sources)
        self._rebalancer = Rebalancer(Scenario()(problem, seed=seed).placement, replace(settings, plan_steps=0))
        for tokens in before.tokens:
            self._rebalancer.record(tokens)

    def first(self) -> Placement:
        """See `Arm`."""
        return self._rebalancer.placement

    def after_step(self, live: Placement, num_served: int, *, is_idle: bool) -> Migration | None:
        """See `Arm`."""
        self._rebalancer.record(self._load.tokens[num_served - 1])
        return self._rebalancer.step()

    def executed(self, migration: Migration) -> None:
        """See `Arm`."""
        self._rebalancer.commit(migration)


def schedule(arm: Arm, *, first_step: int, num_steps: int, layers_per_step: int = 1) -> PlacementSchedule:
    """Serve the steps first_step .. num_steps - 1 of a history.

    Raises
    ------
    InputError
        If there is no such step, no step before the first one, or `layers_per_step` is below one.
    """
    if first_step < 1:
        raise InputError(f"first_step = {first_step}: expected >= 1, steps to plan for")
    check_count("layers_per_step", layers_per_step)
    if first_step >= num_steps:
        raise InputError(f"a history of {num_steps} steps: expected more than {first_step}, those that are planned for")
    live = arm.first()
    served: list[RolloutStep] = []
    migration: Migration | None = None
    steps: Iterator[RolloutStep] = iter(())
    for step in range(first_step, num_steps):
        served.append(next(steps, RolloutStep(live, 0.0, 0)))
        live = served[-1].placement
        if migration is not None and live == migration.after:
            arm.executed(migration)
            migration = None
        started = arm.after_step(live, step + 1, is_idle=migration is None)
        if started is not None and started.layer.size:
            migration, steps = started, rollout(started, layers_per_step)
    placements, seconds, moved = zip(*served, strict=True)
    return PlacementSchedule(arm.name, first_step, placements, np.array(seconds), sum(moved))
