"""The only place that picks and runs strategies."""

import dataclasses
import time
from collections.abc import Sequence
from typing import final

from eplb.dispatch_rule import DispatchRule
from eplb.metrics import Evaluation, evaluate
from eplb.plan import GroupMode, Plan, Problem, Strategy
from eplb.strategies import STRATEGIES, find_strategy
from eplb.topology import Topology
from eplb_traces import ExpertLoad

AUTO = "auto"


def plan(  # noqa: PLR0913  # the front door: everything a plan can depend on, by keyword
    load: ExpertLoad,
    topology: Topology,
    strategy: str = AUTO,
    *,
    groups: int | None = None,
    group_mode: str = GroupMode.FREE,
    dispatch: str = DispatchRule.EVEN,
    seed: int = 0,
) -> Plan:
    """Decide where every expert lives.

    Parameters
    ----------
    load
        The traffic to plan for.
    topology
        The machine.
    strategy
        A name of `eplb.strategies.STRATEGIES`, or "auto" to let the planner pick and say what and why in the notes.
    groups
        Expert groups of the model; by default what the load's own shape says.
    group_mode
        "free" or "pinned": whether each group stays on one node.
    dispatch
        How the runtime splits an expert's tokens over its replicas.
    seed
        For randomised strategies; the same inputs and seed give the same plan.

    Raises
    ------
    InputError
        For an all-zero load, an unknown name, too few slots, or groups that do not fit.
    InfeasibleError
        If no placement meets the constraints.
    """
    start = time.perf_counter()
    problem = Problem(
        load,
        topology,
        num_groups=load.shape.num_expert_groups if groups is None else groups,
        group_mode=GroupMode.named(group_mode),
        dispatch=DispatchRule.named(dispatch),
    )
    chosen, notes = _choose(strategy, problem)
    made = chosen(problem, seed=seed)
    return dataclasses.replace(made, seconds=time.perf_counter() - start, notes=notes + made.notes)


def _choose(name: str, problem: Problem) -> tuple[Strategy, tuple[str, ...]]:
    if name != AUTO:
        return find_strategy(name), ()
    note = f"auto: greedy, planned for the sum of {problem.load.num_windows} window(s)"
    return STRATEGIES["greedy"], (note,)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """One strategy's plan beside what the judge says of it."""

    plan: Plan
    evaluation: Evaluation


def compare(  # noqa: PLR0913  # the same keywords as plan()
    load: ExpertLoad,
    topology: Topology,
    strategies: Sequence[str] | None = None,
    *,
    groups: int | None = None,
    group_mode: str = GroupMode.FREE,
    seed: int = 0,
) -> tuple[Comparison, ...]:
    """Plan with several strategies, all of them by default, and judge each on the same load.

    Parameters are as in `plan`; every strategy is run once before it is timed, so that no compilation counts.
    """
    results = []
    for name in strategies if strategies is not None else tuple(STRATEGIES):
        for _ in range(2):
            made = plan(load, topology, name, groups=groups, group_mode=group_mode, seed=seed)
        results.append(Comparison(made, evaluate(made.placement, load)))
    return tuple(results)
