"""`eplb.diff`: what must move from one placement to another, which may be on other ranks."""

import os
from collections.abc import Sequence
from pathlib import Path

from eplb.arguments.accepted import PlacementLike, accepted_plan
from eplb.core.expert_bytes import known_expert_bytes
from eplb.core.migration import Migration
from eplb.core.problem import Plan
from eplb.formats import ParsedFile, ReadHints, RecordStatus, parse_file
from eplb.planning.changed_topology import change_between, ranks_of
from eplb.planning.replan_on import migration_between

_WITH_RECORD = (RecordStatus.IN_FILE, RecordStatus.IN_SIDECAR)


def diff(
    old: PlacementLike,
    new: PlacementLike,
    *,
    lost_ranks: Sequence[int] = (),
    rank_map: Sequence[tuple[int, int]] | None = None,
    expert_bytes: float | None = None,
) -> Migration:
    """Find the copies that turn one placement into another.

    Parameters
    ----------
    old, new
        Placements, plans or the paths of placement files, for one model. What an engine's file does not hold is taken
        from the other one.
    lost_ranks
        Old ranks that failed. What only they held is loaded from the checkpoint before the migration starts.
    rank_map
        (old, new) ids of the ranks that stay; by default those with equal places.
    expert_bytes
        Bytes of one expert of one layer; None: those of the recording, or unknown.

    Returns
    -------
    Migration
        On the ranks of both; its placements are numbered by `TopologyChange.union` where the topologies differ.

    Raises
    ------
    InputError
        For other types, files that cannot be read, ids that do not exist, or placements of different models.

    Examples
    --------
    >>> import eplb
    >>> topology = eplb.Topology(num_nodes=1, ranks_per_node=2, slots_per_rank=2)
    >>> old = eplb.Placement([[0, 1, 2, 3]], 4, topology)
    >>> new = eplb.Placement([[0, 2, 1, 3]], 4, topology)
    >>> eplb.diff(old, new).moved_copies
    2
    """
    before, after = _both(old, new)
    change = change_between(ranks_of(before), ranks_of(after), pairs=rank_map, lost=lost_ranks)
    size = known_expert_bytes(expert_bytes, after.shape, before.shape)
    return migration_between(before.placement, after.placement, change, size).migration


def _both(old: PlacementLike, new: PlacementLike) -> tuple[Plan, Plan]:
    """Both plans; one that lacks its topology or model is read as one like the other."""
    parsed_old, parsed_new = _parsed(old), _parsed(new)
    if parsed_new is None or parsed_new.record_status in _WITH_RECORD:
        after = accepted_plan(new, name="new") if parsed_new is None else parsed_new.plan(ReadHints())
        return (accepted_plan(old, name="old") if parsed_old is None else _plan_like(parsed_old, after)), after
    before = accepted_plan(old, name="old") if parsed_old is None else parsed_old.plan(ReadHints())
    return before, _plan_like(parsed_new, before)


def _parsed(value: PlacementLike) -> ParsedFile | None:
    """The parsed file of a path; None for a placement or plan."""
    return parse_file(Path(value)) if isinstance(value, str | os.PathLike) else None


def _plan_like(parsed: ParsedFile, other: Plan) -> Plan:
    """The plan of a file, of the model and, unless it holds one, for the ranks of another plan."""
    if parsed.record_status in _WITH_RECORD:
        return parsed.plan(ReadHints())
    topology = other.placement.topology
    return parsed.plan(ReadHints(num_ranks=topology.num_ranks, num_nodes=topology.nodes, shape=other.shape))
