"""Finds a placement that meets hard constraints, or names constraints that no placement meets together."""

from dataclasses import dataclass, replace
from typing import final

from eplb.core.constraints import Constraints
from eplb.errors import InfeasibleError
from eplb.strategies.constrained.conflict import conflict
from eplb.strategies.ilp.region import Layout, Region
from eplb.strategies.ilp.search_control import SearchControl
from eplb.strategies.ilp.side_constraints import add_side_constraints
from eplb.strategies.ilp.solver import Answer, cp_sat, solve

LIMIT_S = 20.0
"""Deterministic seconds to find a placement or prove that there is none."""
NAMING_LIMIT_S = 2.0
"""Deterministic seconds for each constraint that might be left out of the message."""


@final
@dataclass(frozen=True)
class Feasibility:
    """A layer that is to meet its constraints, whatever its load.

    Parameters
    ----------
    whole
        The layer.
    least_replicas
        Replicas that every expert has at least.
    seed
        Of the search.
    control
        Wall time left.
    """

    whole: Region
    least_replicas: int
    seed: int
    control: SearchControl


def nearest_feasible(asked: Feasibility, wanted: Layout) -> Layout:
    """The placement that meets the constraints and keeps the most of `wanted`, or the best one found in time.

    Raises
    ------
    InfeasibleError
        Naming constraints that cannot be met together, or that nothing was found in time.
    """
    answer, layout = _search(asked, asked.whole.constraints, wanted, limit_s=LIMIT_S)
    if layout is not None:
        return layout
    if not answer.is_proven:
        raise InfeasibleError("no placement that meets the constraints was found within the limit")
    raise InfeasibleError(f"no placement meets these together: {'; '.join(_conflict(asked))}")


def _search(
    asked: Feasibility, constraints: Constraints, wanted: Layout, *, limit_s: float
) -> tuple[Answer, Layout | None]:
    """Variables: x[e, r] expert e lies on rank r. Maximise how much of `wanted` is kept."""
    model, whole = cp_sat().CpModel(), replace(asked.whole, constraints=constraints)
    places = range(len(whole.slots))
    experts = range(whole.load.size)
    on = {(expert, place): model.new_bool_var("") for expert in experts for place in places}
    for expert in experts:
        replicas = sum(on[expert, place] for place in places)
        model.add(replicas >= asked.least_replicas)
        if whole.constraints.replica_counts is not None:
            model.add(replicas == whole.constraints.replica_counts[expert])
    for place, slots in enumerate(whole.slots):
        model.add(sum(on[expert, place] for expert in experts) == slots)
    add_side_constraints(model, whole, lambda expert, place: on[expert, place])
    model.maximize(sum(on[expert, place] for place, held in enumerate(wanted) for expert in set(held)))
    (answer,) = asked.control.map(
        lambda limit: solve(model, limit_s=limit, seed=asked.seed, control=asked.control), [limit_s]
    )
    if not answer.has_solution:
        return answer, None
    return answer, [[e for e in experts if answer.solver.value(on[e, place])] for place in places]


def _conflict(asked: Feasibility) -> list[str]:
    """Constraints none of which can be left out, and the slots."""

    def is_infeasible(constraints: Constraints) -> bool:
        answer, _ = _search(asked, constraints, [], limit_s=NAMING_LIMIT_S)
        return answer.is_proven and not answer.has_solution

    slots = f"{asked.whole.load.size} experts in {sum(asked.whole.slots)} slots, none twice on a rank"
    return [*conflict(asked.whole.constraints, is_infeasible), slots]
