"""Compares, for each engine, what its own algorithm plans with what eplb plans, under the engine's dispatch rule."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from eplb.core.topology import Topology
from eplb.evaluation.metrics import Evaluation, evaluate
from eplb.planning.engine_target import EngineTarget
from eplb.planning.planner import AUTO, plan
from eplb_traces import ExpertLoad


@final
@dataclass(frozen=True, eq=False)
class EngineComparison:
    """Two placements for one engine, both evaluated under its rule."""

    target: EngineTarget
    own: Evaluation
    """Of the engine's own algorithm, which plans for an even split."""
    ours: Evaluation
    """Of eplb's plan for the engine's rule."""
    ours_strategy: str


def compare_engines(  # noqa: PLR0913  # the keywords of `plan`
    load: ExpertLoad,
    topology: Topology,
    targets: Sequence[EngineTarget],
    *,
    strategy: str = AUTO,
    groups: int | None = None,
    sources: Sequence[float] | None = None,
    seed: int = 0,
) -> tuple[EngineComparison, ...]:
    """Plan one load for several engines.

    Parameters
    ----------
    load, topology, groups, sources, seed
        As in `eplb.plan`.
    targets
        The engines.
    strategy
        How eplb plans.

    Raises
    ------
    InputError
        As `eplb.plan`.
    FormatError
        If an engine could not run eplb's placement.
    """
    num_groups = load.shape.num_expert_groups if groups is None else groups
    found = []
    for target in targets:
        mode = target.own.group_mode(num_groups, topology)
        own = plan(load, topology, target.own.strategy, groups=groups, group_mode=mode, seed=seed)
        ours = plan(load, topology, strategy, groups=groups, dispatch=target.rule, sources=sources, seed=seed)
        target.check(ours.placement)
        found.append(
            EngineComparison(
                target,
                evaluate(own.placement, load, target.rule, sources=sources),
                evaluate(ours.placement, load, target.rule, sources=sources),
                ours.strategy,
            )
        )
    return tuple(found)
