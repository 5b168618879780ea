"""Finds a placement that meets hard constraints, or names constraints that no placement meets together."""

from dataclasses import replace

from eplb.core.constraints import Constraints
from eplb.errors import InfeasibleError
from eplb.strategies.constrained.conflict import conflict
from eplb.strategies.ilp.region import Layout, Region
from eplb.strategies.ilp.side_constraints import add_side_constraints
from eplb.strategies.ilp.solver import Answer, cp_sat, solve

LIMIT_S = 20.0
"""Deterministic seconds to find a placement or prove that there is none."""
NAMING_LIMIT_S = 2.0
"""Deterministic seconds for each constraint that might be left out of the message."""


def nearest_feasible(whole: Region, wanted: Layout, *, least_replicas: int = 1, seed: int) -> Layout:
    """The placement that meets the constraints and keeps the most of `wanted`, or the best one found in time.

    Every expert has `least_replicas` or more.

    Raises
    ------
    InfeasibleError
        Naming constraints that cannot be met together, or that nothing was found in time.
    """
    answer, layout = _search(whole, wanted, least_replicas, limit_s=LIMIT_S, seed=seed)
    if layout is not None:
        return layout
    if not answer.is_proven:
        raise InfeasibleError("no placement that meets the constraints was found within the limit")
    raise InfeasibleError(f"no placement meets these together: {'; '.join(_conflict(whole, least_replicas, seed))}")


def _search(
    whole: Region, wanted: Layout, least_replicas: int, *, limit_s: float, seed: int
) -> tuple[Answer, Layout | None]:
    """Variables: x[e, r] expert e lies on rank r. Maximise how much of `wanted` is kept."""
    model = cp_sat().CpModel()
    places = range(len(whole.slots))
    experts = range(whole.load.size)
    on = {(expert, place): model.new_bool_var("") for expert in experts for place in places}
    for expert in experts:
        replicas = sum(on[expert, place] for place in places)
        model.add(replicas >= least_replicas)
        if whole.constraints.replica_counts is not None:
            model.add(replicas == whole.constraints.replica_counts[expert])
    for place, slots in enumerate(whole.slots):
        model.add(sum(on[expert, place] for expert in experts) == slots)
    add_side_constraints(model, whole, lambda expert, place: on[expert, place])
    model.maximize(sum(on[expert, place] for place, held in enumerate(wanted) for expert in set(held)))
    answer = solve(model, limit_s=limit_s, seed=seed)
    if not answer.has_solution:
        return answer, None
    return answer, [[e for e in experts if answer.solver.value(on[e, place])] for place in places]


def _conflict(whole: Region, least_replicas: int, seed: int) -> list[str]:
    """Constraints none of which can be left out, and the slots."""

    def is_infeasible(constraints: Constraints) -> bool:
        answer, _ = _search(
            replace(whole, constraints=constraints), [], least_replicas, limit_s=NAMING_LIMIT_S, seed=seed
        )
        return answer.is_proven and not answer.has_solution

    named = conflict(whole.constraints, is_infeasible)
    return [*named, f"{whole.load.size} experts in {sum(whole.slots)} slots, none twice on a rank"]
