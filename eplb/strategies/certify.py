"""Turns a strategy's map and its claim into a Plan with one certificate a layer."""

import numpy as np
from numpy.typing import NDArray

from eplb.bounds.lower_bounds import lower_bounds
from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.core.problem import LayerCertificate, Plan, Problem, SolveStatus
from eplb.strategies.options import check_options
from eplb.strategies.under_rule.objective import busiest_under_rule, is_even

MET = 1e-9  # relative distance at which an objective has met its bound: rounding of sums over a rank's slots


def certified_plan(  # noqa: PLR0913  # a plan has these parts
    problem: Problem,
    physical_to_logical_map: NDArray[np.int32],
    *,
    strategy: str,
    objective: NDArray[np.float64] | None = None,
    seed: int = 0,
    notes: tuple[str, ...] = (),
) -> Plan:
    """Make a Plan of a map.

    Parameters
    ----------
    problem
        What was asked; certificates are for its total load.
    physical_to_logical_map
        [L, P] the answer.
    strategy
        Name of the strategy.
    objective
        [L] tokens on the busiest rank that the strategy claims under the problem's dispatch rule; computed from the map
        when it keeps no such count.
    seed, notes
        Go into the plan as they are.

    Raises
    ------
    InputError
        If the problem has an option that the strategy does not support; see `eplb.strategies.options`.
    """
    check_options(problem, strategy)
    from eplb.strategies.certify_kernel import has_duplicates

    load, topology = problem.load.total, problem.topology
    placement = Placement(physical_to_logical_map, problem.load.num_experts, topology)
    phy2log = placement.physical_to_logical_map
    is_full = bool(phy2log.min() > EMPTY_SLOT)
    if objective is None and not is_even(problem.dispatch):
        objective = busiest_under_rule(problem, placement)
    elif objective is None:
        unit = load / placement.logical_replica_count
        slot_load = np.where(phy2log == EMPTY_SLOT, 0.0, np.take_along_axis(unit, np.maximum(phy2log, 0), axis=1))
        rank_load = np.add.reduceat(slot_load, topology.rank_first_slot[:-1], axis=1)
        objective = (rank_load / topology.relative_speed).max(axis=1)
    regular = is_full and not has_duplicates(phy2log, topology.rank_first_slot, placement.num_experts)
    bounds = lower_bounds(load, topology, rule=problem.dispatch, full_and_distinct=regular, reached=objective)
    layers = tuple(
        LayerCertificate(
            claim, bound, name, SolveStatus.OPTIMAL if claim <= bound * (1 + MET) else SolveStatus.HEURISTIC
        )
        for claim, bound, name in zip(objective.tolist(), bounds.value.tolist(), bounds.binding, strict=True)
    )
    optimal = all(layer.status is SolveStatus.OPTIMAL for layer in layers)
    return Plan(
        placement,
        problem.load.shape,
        strategy,
        status=SolveStatus.OPTIMAL if optimal else SolveStatus.HEURISTIC,
        seed=seed,
        layers=layers,
        notes=notes,
        load_digest=problem.load.digest,
    )


def recertified(made: Plan, problem: Problem) -> Plan:
    """The plan with certificates for another load of the same model: that of the problem."""
    return certified_plan(
        problem,
        made.placement.physical_to_logical_map,
        strategy=made.strategy,
        seed=made.seed,
        notes=made.notes,
    )
