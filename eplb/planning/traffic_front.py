"""Plans for few nodes a token under several load caps: the front between balance and traffic."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, final

from eplb.core.counts import check_seed
from eplb.core.problem import Plan, Problem
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.evaluation.metrics import evaluate
from eplb.evaluation.traffic import token_spread
from eplb.planning.held_out_requests import HeldOutFigures, balanced_plan, held_out_figures, split_requests
from eplb.strategies import STRATEGIES
from eplb_traces import ExpertLoad, RoutingTrace

LOAD_CAPS: Final = (1.01, 1.02, 1.03, 1.05, 1.1, 1.2, 1.5)


@final
@dataclass(frozen=True, eq=False)
class FrontPoint:
    """One plan of the front; figures are means over layers, under even dispatch."""

    load_cap: float | None
    """None: the plan of `greedy`, which balances alone."""
    plan: Plan
    max_over_mean: float
    """Busiest over mean rank under the load planned for."""
    nodes_per_token: float
    """On the requests planned for."""
    ranks_per_token: float
    held_out: HeldOutFigures | None
    """On requests not planned for; None if the trace has too few requests to hold some out."""


def traffic_front(  # noqa: PLR0913  # the keywords of plan()
    load: ExpertLoad,
    topology: Topology,
    trace: RoutingTrace,
    *,
    load_caps: Sequence[float] = LOAD_CAPS,
    groups: int | None = None,
    seed: int = 0,
) -> tuple[FrontPoint, ...]:
    """Plan with `greedy` and, for every load cap in ascending order, with `traffic`.

    Parameters
    ----------
    load, topology, groups, seed
        As in `plan`.
    trace
        Token-level choices; every fifth request is held out.
    load_caps
        Most busiest over mean rank load, one plan for each.

    Raises
    ------
    InputError
        Without a load cap, for one below 1, or if the trace is of another model.
    """
    if not load_caps:
        raise InputError("load_caps: expected at least one")
    check_seed(seed)
    fit, held_out = split_requests(trace)
    num_groups = load.shape.num_expert_groups if groups is None else groups
    plain = Problem(load, topology, num_groups=num_groups)
    plans: list[tuple[float | None, Plan]] = [(None, balanced_plan(plain, seed))]
    for load_cap in sorted(set(load_caps)):
        problem = Problem(load, topology, num_groups=num_groups, trace=fit, load_cap=load_cap)
        plans.append((load_cap, STRATEGIES["traffic"](problem, seed=seed)))
    points: list[FrontPoint] = []
    for cap, made in plans:
        point = _point(cap, made, load, fit, held_out)
        if points and _visits(points[-1]) <= _visits(point):
            point = replace(points[-1], load_cap=cap)  # what a tighter cap allows, this one allows too
        points.append(point)
    return tuple(points)


def _visits(point: FrontPoint) -> tuple[float, float]:
    return point.nodes_per_token, point.ranks_per_token


def _point(
    load_cap: float | None, made: Plan, load: ExpertLoad, fit: RoutingTrace, held_out: RoutingTrace | None
) -> FrontPoint:
    spread = token_spread(made.placement, fit)
    return FrontPoint(
        load_cap,
        made,
        float(evaluate(made.placement, load).max_over_mean_of_total.mean()),
        float(spread.nodes_per_token.mean()),
        float(spread.ranks_per_token.mean()),
        None if held_out is None else held_out_figures(made.placement, held_out),
    )
