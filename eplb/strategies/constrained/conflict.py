"""Names hard constraints that no placement meets together."""

from collections.abc import Callable, Iterator

from eplb.core.constraints import Constraints

MOST_NAMED_SINGLY = 40
"""With more constraints whole kinds of them are named."""


def conflict(constraints: Constraints, is_infeasible: Callable[[Constraints], bool]) -> list[str]:
    """Constraints none of which can be left out, found by trying to leave out one after the other.

    Parameters
    ----------
    constraints
        No placement meets all of them.
    is_infeasible
        Whether it is proven that no placement meets such constraints.
    """
    kept, named = constraints, []
    for name, part in _parts(constraints):
        trial = _without(kept, part)
        if is_infeasible(trial):
            kept = trial
        else:
            named.append(name)
    return named


def _parts(constraints: Constraints) -> Iterator[tuple[str, Constraints]]:
    """Each constraint with its name; whole kinds where there are many."""
    singly = sum(len(part) for part in (constraints.pin, constraints.forbid, constraints.apart, constraints.together))
    if singly <= MOST_NAMED_SINGLY:
        yield from ((f"pin {pair}", Constraints(pin=(pair,))) for pair in constraints.pin)
        yield from ((f"forbid {pair}", Constraints(forbid=(pair,))) for pair in constraints.forbid)
        yield from ((f"apart {members}", Constraints(apart=(members,))) for members in constraints.apart)
        yield from ((f"together {members}", Constraints(together=(members,))) for members in constraints.together)
    else:
        kinds = {
            "pin": Constraints(pin=constraints.pin),
            "forbid": Constraints(forbid=constraints.forbid),
            "apart": Constraints(apart=constraints.apart),
            "together": Constraints(together=constraints.together),
        }
        yield from ((f"all {kind}", part) for kind, part in kinds.items() if not part.is_empty)
    for expert in constraints.replicate_everywhere:
        yield f"replicate_everywhere {expert}", Constraints(replicate_everywhere=(expert,))
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
        replicate_everywhere=sorted(set(constraints.replicate_everywhere) - set(part.replicate_everywhere)),
        replicated_slot=constraints.replicated_slot,
        expert_bytes=memory,
        rank_bytes=None if memory is None else constraints.rank_bytes,
    )
