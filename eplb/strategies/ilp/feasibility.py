"""Finds a placement that meets hard constraints, or names constraints that no placement meets together."""

from collections.abc import Iterator
from dataclasses import replace

from eplb.core.constraints import Constraints
from eplb.errors import InfeasibleError
from eplb.strategies.ilp.region import Layout, Region
from eplb.strategies.ilp.side_constraints import add_side_constraints
from eplb.strategies.ilp.solver import Answer, cp_sat, solve

LIMIT_S = 20.0
"""Deterministic seconds to find a placement or prove that there is none."""
NAMING_LIMIT_S = 2.0
"""Deterministic seconds for each constraint that might be left out of the message."""
MOST_NAMED_SINGLY = 40
"""With more constraints whole kinds of them are named."""


def nearest_feasible(whole: Region, wanted: Layout, *, seed: int) -> Layout:
    """The placement that meets the constraints and keeps the most of `wanted`, or the best one found in time.

    Raises
    ------
    InfeasibleError
        Naming constraints that cannot be met together, or that nothing was found in time.
    """
    answer, layout = _search(whole, wanted, limit_s=LIMIT_S, seed=seed)
    if layout is not None:
        return layout
    if not answer.is_proven:
        raise InfeasibleError("no placement that meets the constraints was found within the limit")
    raise InfeasibleError(f"no placement meets these together: {'; '.join(_conflict(whole, seed))}")


def _search(whole: Region, wanted: Layout, *, limit_s: float, seed: int) -> tuple[Answer, Layout | None]:
    """Variables: x[e, r] expert e lies on rank r. Maximise how much of `wanted` is kept."""
    model = cp_sat().CpModel()
    places = range(len(whole.slots))
    experts = range(whole.load.size)
    on = {(expert, place): model.new_bool_var("") for expert in experts for place in places}
    for expert in experts:
        replicas = sum(on[expert, place] for place in places)
        if whole.constraints.replica_counts is None:
            model.add(replicas >= 1)
        else:
            model.add(replicas == whole.constraints.replica_counts[expert])
    for place, slots in enumerate(whole.slots):
        model.add(sum(on[expert, place] for expert in experts) == slots)
    add_side_constraints(model, whole, lambda expert, place: on[expert, place])
    model.maximize(sum(on[expert, place] for place, held in enumerate(wanted) for expert in set(held)))
    answer = solve(model, limit_s=limit_s, seed=seed)
    if not answer.has_solution:
        return answer, None
    return answer, [[e for e in experts if answer.solver.value(on[e, place])] for place in places]


def _conflict(whole: Region, seed: int) -> list[str]:
    """Constraints none of which can be left out, found by trying to leave out one after the other."""
    kept = whole.constraints
    named = []
    for name, trial_without in _parts(kept):
        trial = _without(kept, trial_without)
        answer, _ = _search(replace(whole, constraints=trial), [], limit_s=NAMING_LIMIT_S, seed=seed)
        if answer.is_proven and not answer.has_solution:
            kept = trial
        else:
            named.append(name)
    slots = f"{whole.load.size} experts in {sum(whole.slots)} slots, none twice on a rank"
    return [*named, slots] if named else [slots]


def _parts(constraints: Constraints) -> Iterator[tuple[str, Constraints]]:
    """Each constraint with its name; whole kinds where there are many."""
    singly = sum(len(part) for part in (constraints.pin, constraints.forbid, constraints.apart, constraints.together))
    for kind in ("pin", "forbid", "apart", "together"):
        members = getattr(constraints, kind)
        if singly <= MOST_NAMED_SINGLY:
            for member in members:
                yield f"{kind} {member}", Constraints(**{kind: (member,)})
        elif members:
            yield f"all {kind}", Constraints(**{kind: members})
    if constraints.replica_counts is not None:
        yield "replica_counts", Constraints(replica_counts=constraints.replica_counts)
    if constraints.expert_bytes is not None:
        memory = Constraints(expert_bytes=constraints.expert_bytes, rank_bytes=constraints.rank_bytes)
        yield "rank_bytes", memory


def _without(constraints: Constraints, part: Constraints) -> Constraints:
    """The constraints less those of a part."""
    memory = None if part.expert_bytes is not None else constraints.expert_bytes
    return Constraints(
        pin=[pair for pair in constraints.pin if pair not in part.pin],
        forbid=[pair for pair in constraints.forbid if pair not in part.forbid],
        apart=[members for members in constraints.apart if members not in part.apart],
        together=[members for members in constraints.together if members not in part.together],
        replica_counts=None if part.replica_counts is not None else constraints.replica_counts,
        expert_bytes=memory,
        rank_bytes=None if memory is None else constraints.rank_bytes,
    )
