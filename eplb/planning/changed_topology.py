"""Finds the topology after a change of ranks, nodes or slots, and which rank is which.

What is not given stays as it was.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eplb.core.problem import Plan
from eplb.core.topology import Nodes, Topology, ranks_by_node
from eplb.core.topology_change import GONE, TopologyChange, check_old_ranks
from eplb.errors import InputError
from eplb_traces.model_shape import id_ranges


def topology_without(topology: Topology, leaving: Sequence[int]) -> Topology:
    """The topology without some ranks; a node that loses all its ranks is no node any more.

    Raises
    ------
    InputError
        If a rank does not exist or is named twice, or none stays.
    """
    gone = check_old_ranks(topology, leaving, "leaving rank")
    stay = np.setdiff1d(np.arange(topology.num_ranks), gone)
    if not stay.size:
        raise InputError(f"all {topology.num_ranks} ranks leave: none is left to plan for")
    on_node = np.bincount(topology.node_of_rank[stay])
    sizes = on_node[on_node > 0].tolist()
    return dataclasses.replace(
        topology,
        num_nodes=len(sizes),
        ranks_per_node=sizes,
        slots_per_rank=topology.rank_num_slots[stay].tolist(),
        rank_speed=topology.relative_speed[stay].tolist(),
    )


def changed_topology(
    before: Topology,
    *,
    leaving: Sequence[int] = (),
    num_ranks: int | None = None,
    nodes: Nodes | None = None,
    slots_per_rank: int | None = None,
) -> Topology:
    """The topology after a change.

    Parameters
    ----------
    before
        The topology so far.
    leaving
        Ranks of it that retire or are lost.
    num_ranks, nodes
        The new number of ranks, and their nodes as in `Topology.for_experts`. By default those that stay. A number of
        ranks without nodes keeps the number of ranks a node.
    slots_per_rank
        The new slots of every rank; by default as before.

    Raises
    ------
    InputError
        If nodes, slots or speeds of the new ranks do not follow from what is given.
    PlacementError
        If ranks and nodes contradict each other.
    """
    left = topology_without(before, leaving)
    if num_ranks is None:
        num_ranks = sum(nodes) if isinstance(nodes, Sequence) else left.num_ranks
    same_ranks = num_ranks == left.num_ranks
    sizes = _nodes_of(left, num_ranks) if nodes is None else ranks_by_node(num_ranks, nodes)
    if slots_per_rank is None and not (left.has_equal_slots or same_ranks):
        raise InputError(f"slots_per_rank: expected with {num_ranks} ranks, as the ranks so far have unequal slots")
    if left.rank_speed is not None and not same_ranks:
        raise InputError(f"rank_speed: the speeds of {num_ranks} ranks do not follow from those of {left.num_ranks}")
    return dataclasses.replace(
        left,
        num_nodes=len(sizes),
        ranks_per_node=sizes,
        slots_per_rank=left.slots_per_rank if slots_per_rank is None else slots_per_rank,
    )


def _nodes_of(left: Topology, num_ranks: int) -> tuple[int, ...]:
    """Ranks of each node for another number of ranks: the same nodes, one node, or nodes of the same size."""
    if num_ranks == left.num_ranks:
        return tuple(left.node_num_ranks.tolist())
    if left.num_nodes == 1:
        return (num_ranks,)
    if isinstance(left.ranks_per_node, int) and num_ranks % left.ranks_per_node == 0:
        return (left.ranks_per_node,) * (num_ranks // left.ranks_per_node)
    raise InputError(f"nodes: expected with {num_ranks} ranks, as nodes = {left.nodes} of {left.num_ranks} do not tell")


class NumberedRanks(NamedTuple):
    """A topology, and the ids that the engine has for its ranks."""

    topology: Topology
    ids: tuple[int, ...]


def ranks_of(plan: Plan) -> NumberedRanks:
    """The ranks of a plan."""
    return NumberedRanks(plan.placement.topology, plan.rank_ids)


def ranks_with_ids(ranks: NumberedRanks, ids: Sequence[int], name: str) -> tuple[int, ...]:
    """The ranks with these ids.

    Raises
    ------
    InputError
        With what the ids are called, for an id that no rank has.
    """
    for rank in ids:
        if rank not in ranks.ids:
            raise InputError(f"{name} {rank}: expected an id of {id_ranges(ranks.ids)}")
    return tuple(ranks.ids.index(rank) for rank in ids)


def change_between(
    before: NumberedRanks,
    after: NumberedRanks,
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    lost: Sequence[int] = (),
    retiring: Sequence[int] = (),
) -> TopologyChange:
    """Find which old rank is which new one.

    Parameters
    ----------
    before, after
        The old and the new ranks.
    pairs
        (old, new) ids of the ranks that stay, the others leaving. By default equal ids where one side has absent
        ranks, otherwise as `kept_ranks` finds.
    lost, retiring
        Old ids of ranks that leave.

    Raises
    ------
    InputError
        If an id does not exist or is named twice, or more ranks stay than there are new ones.
    """
    gone = (*lost, *retiring)
    lost_ranks, leaving = ranks_with_ids(before, lost, "lost rank"), ranks_with_ids(before, retiring, "retiring rank")
    in_order = all(ranks.ids == tuple(range(len(ranks.ids))) for ranks in (before, after))
    if pairs is None and in_order:
        return TopologyChange.between(before.topology, after.topology, lost=lost_ranks, retiring=leaving)
    if pairs is None:
        pairs = [(rank, rank) for rank in before.ids if rank in after.ids and rank not in gone]
    old = ranks_with_ids(before, [of for of, _ in pairs], "old rank")
    new = ranks_with_ids(after, [to for _, to in pairs], "new rank")
    check_old_ranks(before.topology, old, "old rank")
    rank_map = [GONE] * before.topology.num_ranks
    for of, to in zip(old, new, strict=True):
        rank_map[of] = to
    return TopologyChange(before.topology, after.topology, rank_map, lost_ranks)
