"""Plans a migration from the kept steps. A pure function: any thread or rank may run it."""

import time
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb.core.migration import Migration
from eplb.core.placement import Placement
from eplb.core.problem import Problem
from eplb.evaluation.metrics import evaluate
from eplb.online.settings import OnlineSettings
from eplb.online.staleness import discounted
from eplb.planning.rebalance import Horizon
from eplb.strategies.incremental.incremental_scenario import IncrementalScenario
from eplb_traces import ExpertLoad


@final
@dataclass(frozen=True)
class Replan:
    """A planned migration, which may move nothing."""

    migration: Migration
    is_whole: bool
    """False where `max_moves` cut the migration short."""
    plan_s: float


def replan(placement: Placement, load: ExpertLoad, settings: OnlineSettings) -> Replan:
    """Improve the live placement for the kept steps; layers whose move does not pay stay as they are."""
    start = time.perf_counter()
    load = discounted(load, settings.interval)
    strategy = IncrementalScenario(previous=placement, price=settings.price, max_moves=settings.max_moves)
    problem = Problem(load, placement.topology, dispatch=settings.dispatch, sources=settings.sources)
    after = strategy(problem).placement
    migration = Migration.between(placement, after, settings.expert_bytes)
    is_whole = settings.max_moves is None or migration.moved_copies < settings.max_moves
    if settings.horizon is not None and migration.moved_copies:
        migration = _put_back(migration, problem, settings.horizon)
    return Replan(migration, is_whole, time.perf_counter() - start)


def _put_back(migration: Migration, problem: Problem, horizon: Horizon) -> Migration:
    """Put layers back that do not move or do not pay; see `Horizon.pays`."""
    fall = _busiest(migration.before, problem) - _busiest(migration.after, problem)
    pays = horizon.pays(migration, fall)
    old, new = migration.before.physical_to_logical_map, migration.after.physical_to_logical_map
    kept = Placement(np.where(pays[:, None], new, old), migration.after.num_experts, migration.topology)
    return Migration.between(migration.before, kept, migration.expert_bytes)


def _busiest(placement: Placement, problem: Problem) -> NDArray[np.float64]:
    """[L] tokens on the busiest rank of a step, mean over steps by their weights, over its relative speed."""
    evaluation = evaluate(placement, problem.load, problem.dispatch, sources=problem.sources)
    busiest = evaluation.rank_time.max(axis=2)
    mean: NDArray[np.float64] = np.average(busiest, axis=0, weights=problem.load.weights)
    return mean
