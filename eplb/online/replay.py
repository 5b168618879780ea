"""Replays a history under different replanning policies: balance step by step, moves, bytes, stall.

All policies start with the same plan, made from the first interval, and are scored from then on. At the end of every
interval a policy may change its placement. A plan takes effect at once. The replicas that it moves are charged as a
stall: the seconds of the migration's batches, one after the other.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import final

import numpy as np

from eplb.core.arrays import Floats
from eplb.core.counts import check_count
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.expert_bytes import known_expert_bytes
from eplb.core.migration import Migration, rename_ranks
from eplb.core.placement import Placement
from eplb.core.problem import Problem, Strategy
from eplb.core.topology import Topology
from eplb.errors import InputError, UnknownNameError
from eplb.evaluation.metrics import evaluate, mean_of_known, p95_of_known, worst_of_known
from eplb.evaluation.step_cost import StepCost
from eplb.online import OnlineSettings, Rebalancer
from eplb.strategies.baselines.deepseek import DeepSeek
from eplb.strategies.greedy.greedy import Greedy
from eplb.strategies.scenario.scenario import Scenario
from eplb_traces import ExpertLoad
from eplb_traces.display import facts_html

LEAST_INTERVALS = 2  # one to plan for, one to score


@final
@dataclass(frozen=True, kw_only=True)
class Replay:
    """A history and the settings under which it is replayed.

    Parameters
    ----------
    load
        The history, one window a step, in order of time. Steps without a token are left out.
    topology
        Ranks, nodes and slots.
    interval
        Steps between two replans, of every policy alike.
    online
        Settings of the policy `incremental`; its interval is replaced by `interval`, its `plan_steps` by 0. Every
        policy is evaluated under its dispatch rule and sources, and all but DeepSeek's EPLB plan for them.
    expert_bytes
        Bytes of one expert of one layer; None: those of the recording, or unknown.
    seed
        For randomised strategies.
    cost
        Model, GPU and step to predict every served step with, its choices sampled from the step's load; None: nothing
        is predicted.

    Raises
    ------
    InputError
        If the history is shorter than two intervals.
    """

    load: ExpertLoad
    topology: Topology
    interval: int = 20
    online: OnlineSettings = field(default_factory=OnlineSettings)
    expert_bytes: float | None = None
    seed: int = 0
    cost: StepCost | None = None

    num_empty_steps: int = field(init=False)
    """Steps without a token, which are left out of `load`."""

    def __post_init__(self) -> None:
        check_count("interval", self.interval)
        given = self.load.num_windows
        object.__setattr__(self, "load", self.load.without_empty_windows())
        object.__setattr__(self, "num_empty_steps", given - self.load.num_windows)
        if self.load.num_windows < LEAST_INTERVALS * self.interval:
            left_out = f" ({self.num_empty_steps} without a token left out)" if self.num_empty_steps else ""
            raise InputError(
                f"a history of {self.load.num_windows} steps{left_out}: expected at least {LEAST_INTERVALS} intervals "
                f"of {self.interval}, one to plan for and one to score"
            )

    @property
    def known_bytes(self) -> float | None:
        """Bytes of one expert: those given, else those of the recording; None where unknown."""
        return known_expert_bytes(self.expert_bytes, self.load.shape)

    def steps(self, first: int, last: int) -> ExpertLoad:
        """The steps first .. last - 1, as far as there are any."""
        return self.load.select(slice(max(first, 0), last))

    def first_placement(self) -> Placement:
        """What every policy starts with: the scenario strategy's plan for the first interval."""
        return Scenario()(self.problem(0, self.interval), seed=self.seed).placement

    def problem(self, first: int, last: int) -> Problem:
        """To plan for the steps first .. last - 1 under the dispatch rule of the settings."""
        return Problem(
            self.steps(first, last), self.topology, dispatch=self.online.dispatch, sources=self.online.sources
        )


Replanner = Callable[[Placement, int], Placement]
"""From the live placement and the number of steps served to the next placement; the same object if nothing changes."""


def _never(replay: Replay) -> Replanner:
    return lambda live, step: live


def _full(replay: Replay, strategy: Strategy) -> Replanner:
    """Plan for the sum of the last interval, without regard to the live placement."""

    def next_placement(live: Placement, step: int) -> Placement:
        problem = replay.problem(step - replay.interval, step)
        return strategy(problem, seed=replay.seed).placement

    return next_placement


def _full_relabelled(replay: Replay) -> Replanner:
    """As `full`, with ranks relabelled so that more replicas stay in place; balance is the same."""
    plan = _full(replay, DeepSeek())

    def next_placement(live: Placement, step: int) -> Placement:
        return rename_ranks(live, plan(live, step), ranks_per_block=replay.topology.num_ranks)

    return next_placement


def _full_scenario(replay: Replay) -> Replanner:
    """Plan for all steps that the incremental policy keeps, without regard to the live placement."""

    def next_placement(live: Placement, step: int) -> Placement:
        problem = replay.problem(step - replay.online.window, step)
        return Scenario(most_scenarios=replay.online.window)(problem, seed=replay.seed).placement

    return next_placement


def _oracle(replay: Replay) -> Replanner:
    """Plan for the coming steps, without regard to the live placement."""

    def next_placement(live: Placement, step: int) -> Placement:
        problem = replay.problem(step, step + replay.interval)
        return Scenario(amplification=1.0)(problem, seed=replay.seed).placement

    return next_placement


def _incremental(replay: Replay) -> Replanner:
    """Feed the online rebalancer step by step and execute the migrations it returns."""
    settings = replace(replay.online, interval=replay.interval, plan_steps=0, expert_bytes=replay.known_bytes)
    rebalancer: Rebalancer | None = None

    def next_placement(live: Placement, step: int) -> Placement:
        nonlocal rebalancer
        if rebalancer is None:
            rebalancer = Rebalancer(live, settings)
            for tokens in replay.load.tokens[: replay.interval]:
                rebalancer.record(tokens)
        for tokens in replay.load.tokens[step - replay.interval : step]:
            rebalancer.record(tokens)
            migration = rebalancer.step()
            if migration is not None:
                rebalancer.commit(migration)
        return rebalancer.placement

    return next_placement


POLICIES: MappingProxyType[str, tuple[Callable[[Replay], Replanner], str]] = MappingProxyType(
    {
        "never": (_never, "keep the first plan"),
        "incremental": (_incremental, "the online rebalancer: few replicas moved, each worth its price"),
        "full": (lambda replay: _full(replay, DeepSeek()), "DeepSeek's EPLB, global, for the last interval"),
        "full_relabelled": (_full_relabelled, "full, with ranks relabelled so that fewer replicas move"),
        "full_greedy": (lambda replay: _full(replay, Greedy()), "greedy for the last interval"),
        "full_scenario": (_full_scenario, "scenario for the steps that incremental keeps"),
        "oracle": (_oracle, "scenario for the steps that it will serve"),
    }
)
"""Policies by name, and what each does when an interval ends."""


@final
@dataclass(frozen=True)
class Served:
    """The result of one policy on a history."""

    policy: str
    max_over_mean: Floats
    """[W', L] of every step with tokens after the first interval; NaN for a layer without load in a step."""
    migrations: tuple[Migration, ...]
    """Those that change a slot, in order of time."""
    plan_s: float
    """Wall time of all replans, evaluation and compilation included."""
    step_s: Floats | None = None
    """[W'] predicted seconds of all MoE layers in every step; None where nothing was given to predict with."""

    def __repr__(self) -> str:
        return f"Served({self.policy}, max/mean {self.mean:.4f}, p95 {self.p95:.4f}, {self.moved_copies} copies moved)"

    def _repr_html_(self) -> str:
        shown = {name: value for name, value in self.summary().items() if name != "max_over_mean_by_step"}
        return facts_html(f"Served: {self.policy}", shown)

    @property
    def mean(self) -> float:
        """Mean over the steps and layers with tokens."""
        return float(mean_of_known(self.max_over_mean.reshape(-1)))

    @property
    def p95(self) -> float:
        """Over the steps and layers with tokens."""
        return p95_of_known(self.max_over_mean)

    @property
    def mean_step_s(self) -> float | None:
        """Mean of the predicted steps."""
        return None if self.step_s is None else float(self.step_s.mean())

    @property
    def p95_step_s(self) -> float | None:
        """95th percentile of the predicted steps."""
        return None if self.step_s is None else float(np.quantile(self.step_s, 0.95))

    @property
    def moved_copies(self) -> int:
        """Replicas that ranks had to fetch, over all migrations."""
        return sum(migration.moved_copies for migration in self.migrations)

    @property
    def moved_bytes(self) -> float | None:
        """Bytes that crossed ranks; None where the bytes of an expert are unknown."""
        return _sum_of_known(migration.moved_bytes for migration in self.migrations)

    @property
    def stall_s(self) -> float | None:
        """Seconds of all batches, one after the other: the wait of serving if it waits for migrations; as above."""
        return _sum_of_known(migration.transfer_s for migration in self.migrations)

    def phases(self, num_phases: int) -> Floats:
        """[num_phases or fewer] mean over layers and over steps of equally long parts of the history."""
        parts = np.array_split(mean_of_known(self.max_over_mean.T), min(num_phases, self.max_over_mean.shape[0]))
        return np.array([part.mean() for part in parts])

    def summary(self) -> dict[str, object]:
        """The figures by name, as `--json` prints them."""
        return {
            "policy": self.policy,
            "max_over_mean_mean": self.mean,
            "max_over_mean_p95": self.p95,
            "max_over_mean_worst": worst_of_known(self.max_over_mean),
            "num_migrations": len(self.migrations),
            "moved_copies": self.moved_copies,
            **({} if self.moved_bytes is None else {"moved_bytes": self.moved_bytes}),
            **({} if self.stall_s is None else {"stall_s": self.stall_s}),
            "plan_s": self.plan_s,
            "max_over_mean_by_step": mean_of_known(self.max_over_mean.T).tolist(),
            **self._predicted(),
        }

    def _predicted(self) -> dict[str, object]:
        if self.step_s is None:
            return {}
        return {
            "predicted_step_ms_mean": 1e3 * float(self.step_s.mean()),
            "predicted_step_ms_p95": 1e3 * float(np.quantile(self.step_s, 0.95)),
            "predicted_step_ms_by_step": (1e3 * self.step_s).tolist(),
        }


def simulate(replay: Replay, policies: Iterable[str] = tuple(POLICIES)) -> tuple[Served, ...]:
    """Replay a history under each policy, in the given order.

    Raises
    ------
    UnknownNameError
        For a policy that POLICIES does not hold.
    """
    asked = tuple(policies)
    for name in asked:
        if name not in POLICIES:
            raise UnknownNameError("policy", name, POLICIES)
    first = replay.first_placement()
    return tuple(_serve(replay, name, first) for name in asked)


def _serve(replay: Replay, policy: str, live: Placement) -> Served:
    next_placement = POLICIES[policy][0](replay)
    scored: list[Floats] = []
    predicted: list[Floats] = []
    migrations: list[Migration] = []
    plan_s = 0.0
    for step in range(replay.interval, replay.load.num_windows, replay.interval):
        if step > replay.interval:  # the first interval's plan is live already
            start = time.perf_counter()
            new = next_placement(live, step)
            plan_s += time.perf_counter() - start
            migration = Migration.between(live, new, replay.known_bytes)
            if migration.layer.size:
                migrations.append(migration)
            live = new
        coming, online = replay.steps(step, step + replay.interval), replay.online
        scored.append(evaluate(live, coming, online.dispatch, sources=online.sources).max_over_mean_by_window)
        if replay.cost is not None:
            predicted.append(_steps_s(replay.cost, live, coming, online.dispatch))
    step_s = np.concatenate(predicted) if predicted else None
    return Served(policy, np.concatenate(scored), tuple(migrations), plan_s, step_s)


def _steps_s(cost: StepCost, live: Placement, coming: ExpertLoad, rule: DispatchRule) -> Floats:
    """[W'] predicted seconds of each step: every policy gets the same choices."""
    steps = (coming.select(slice(i, i + 1)) for i in range(coming.num_windows))
    return np.array([cost.predict(live, cost.batch(step, live.topology), rule).step_s for step in steps])


def _sum_of_known(values: Iterable[float | None]) -> float | None:
    """The sum; None if a value is unknown."""
    found = list(values)
    known = [value for value in found if value is not None]
    return float(sum(known)) if len(known) == len(found) else None
