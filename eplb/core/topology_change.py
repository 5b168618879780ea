"""Describes how the ranks of one topology become those of another, and a topology that holds both."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from eplb.core.arrays import Ints, Map
from eplb.core.placement import EMPTY_SLOT
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb_traces.display import fields_html, short_repr

GONE = -1
"""New rank of an old rank that is in the new topology no more."""


@final
@dataclass(frozen=True)
class TopologyChange:
    """Which old rank is which new rank.

    Ranks that leave without being lost retire: they send replicas until the migration has ended.

    Parameters
    ----------
    before, after
        The old and the new topology.
    rank_map
        [R of `before`] new rank of each old one, -1 for ranks that leave; `kept_ranks` makes the usual one.
    lost
        Old ranks that failed, so that nothing can be copied from them; they leave.

    Raises
    ------
    InputError
        If `rank_map` does not have one entry an old rank, names a rank that does not exist or one twice, or keeps a
        lost rank.
    """

    before: Topology
    after: Topology
    rank_map: Sequence[int]
    lost: Sequence[int] = ()

    def __post_init__(self) -> None:
        rank_map = tuple(int(rank) for rank in self.rank_map)
        num_old, num_new = self.before.num_ranks, self.after.num_ranks
        if len(rank_map) != num_old:
            raise InputError(f"rank_map has {len(rank_map)} entries: expected one for each of {num_old} old ranks")
        for old, new in enumerate(rank_map):
            if not GONE <= new < num_new:
                raise InputError(
                    f"rank_map[{old}] = {new}: expected 0 <= rank < {num_new}, or -1 for a rank that leaves"
                )
            if new != GONE and rank_map.index(new) != old:
                raise InputError(f"rank_map[{old}] = {new}: new rank {new} is old rank {rank_map.index(new)} already")
        lost = check_old_ranks(self.before, self.lost, "lost rank")
        for old in lost:
            if rank_map[old] != GONE:
                raise InputError(f"lost rank {old}: rank_map keeps it as rank {rank_map[old]}")
        object.__setattr__(self, "rank_map", rank_map)
        object.__setattr__(self, "lost", lost)

    def __repr__(self) -> str:
        return short_repr(self)

    def _repr_html_(self) -> str:
        return fields_html(self)

    @classmethod
    def between(
        cls, before: Topology, after: Topology, *, lost: Sequence[int] = (), retiring: Sequence[int] = ()
    ) -> "TopologyChange":
        """The change in which ranks stay where `kept_ranks` puts them.

        Raises
        ------
        InputError
            If a rank does not exist or is named twice, or more ranks stay than there are new ones.
        """
        return cls(before, after, kept_ranks(before, after, (*lost, *retiring)), lost)

    @cached_property
    def retiring(self) -> tuple[int, ...]:
        """Old ranks that leave, and are sources until the migration has ended."""
        return tuple(old for old, new in enumerate(self.rank_map) if new == GONE and old not in self.lost)

    @cached_property
    def added(self) -> tuple[int, ...]:
        """New ranks that are no old ones."""
        return tuple(sorted(set(range(self.after.num_ranks)) - set(self.rank_map)))

    @cached_property
    def old_of_new(self) -> Ints:
        """[R of `after`] old rank of each new one, -1 for added ranks."""
        old = np.full(self.after.num_ranks, GONE, dtype=np.int64)
        for of, new in enumerate(self.rank_map):
            if new != GONE:
                old[new] = of
        return old

    @cached_property
    def carried_slots(self) -> tuple[Ints, Ints]:
        """Old slots of the kept ranks, by new rank, and [R of `after` + 1] where each new rank's begin."""
        first, slots = self.before.rank_first_slot, []
        for old in self.old_of_new.tolist():
            slots.append(np.arange(0) if old == GONE else np.arange(first[old], first[old + 1]))
        ends = np.cumsum([of.size for of in slots])
        return np.concatenate(slots), np.concatenate([np.zeros(1, np.int64), ends])

    @cached_property
    def _union_ranks(self) -> list[list[tuple[int, int]]]:
        """(old, new) rank, -1 for none, of each rank, by node: the new nodes, then old ones that leave as a whole."""
        old_of_new, first = self.old_of_new.tolist(), self.after.node_first_rank.tolist()
        nodes = [[(old_of_new[new], new) for new in range(first[n], first[n + 1])] for n in range(self.after.num_nodes)]
        home: dict[int, int] = {}
        for old, new in enumerate(self.rank_map):
            if new != GONE:
                home.setdefault(int(self.before.node_of_rank[old]), int(self.after.node_of_rank[new]))
        for old in self.retiring:
            node = home.setdefault(int(self.before.node_of_rank[old]), len(nodes))
            if node == len(nodes):
                nodes.append([])
            nodes[node].append((old, GONE))
        return nodes

    @cached_property
    def union(self) -> Topology:
        """Kept, added and retiring ranks, with as many slots as each has on either side."""
        old, new = self.before.rank_num_slots, self.after.rank_num_slots
        slots = [
            max(int(old[o]) if o != GONE else 0, int(new[n]) if n != GONE else 0)
            for node in self._union_ranks
            for o, n in node
        ]
        return Topology(
            len(self._union_ranks),
            [len(node) for node in self._union_ranks],
            slots,
            intra_node_gbps=self.after.intra_node_gbps,
            inter_node_gbps=self.after.inter_node_gbps,
        )

    def old_on_union(self, phy2log: Map) -> Map:
        """An old map [L, P] on the slots of `union`: without lost ranks, -1 in slots that are new."""
        return self._on_union(phy2log, self.before, [old for node in self._union_ranks for old, _ in node])

    def new_on_union(self, phy2log: Map) -> Map:
        """A new map [L, P] on the slots of `union`, -1 in slots that are there no more."""
        return self._on_union(phy2log, self.after, [new for node in self._union_ranks for _, new in node])

    def _on_union(self, phy2log: Map, topology: Topology, rank_of_union: list[int]) -> Map:
        wide = np.full((phy2log.shape[0], self.union.num_slots), EMPTY_SLOT, dtype=np.int32)
        for place, rank in zip(self.union.rank_first_slot.tolist(), rank_of_union, strict=False):
            if rank != GONE:
                begin, end = topology.rank_first_slot[rank : rank + 2].tolist()
                wide[:, place : place + end - begin] = phy2log[:, begin:end]
        return wide


def check_old_ranks(topology: Topology, ranks: Sequence[int], name: str) -> tuple[int, ...]:
    """The ranks in order; InputError, with what they are called, for one that does not exist or is named twice."""
    found = [int(rank) for rank in ranks]
    for rank in found:
        if not 0 <= rank < topology.num_ranks:
            raise InputError(f"{name} {rank}: expected 0 <= rank < {topology.num_ranks}")
        if found.count(rank) > 1:
            raise InputError(f"{name} {rank}: named {found.count(rank)} times, expected once")
    return tuple(sorted(found))


def kept_ranks(before: Topology, after: Topology, leaving: Sequence[int] = ()) -> tuple[int, ...]:
    """[R of `before`] the usual new rank of each old one, -1 for ranks that leave.

    Where the nodes allow it, ranks stay on their node, in order: every node may grow (nodes of which no rank is left
    may be gone), or, where no rank is named as leaving, every node may shrink, its last ranks leaving. Otherwise ranks
    keep their ids, those beyond the new number of ranks leaving; with leaving ranks the others are numbered in order.

    Raises
    ------
    InputError
        If more ranks stay than there are new ranks.
    """
    gone = check_old_ranks(before, leaving, "leaving rank")
    stay = np.setdiff1d(np.arange(before.num_ranks), gone)
    on_node = [stay[before.node_of_rank[stay] == node] for node in range(before.num_nodes)]
    room, first = after.node_num_ranks.tolist(), after.node_first_rank.tolist()
    rank_map = np.full(before.num_ranks, GONE, dtype=np.int64)
    for nodes in (on_node, [ranks for ranks in on_node if ranks.size]):
        grows = len(nodes) <= len(room) and all(ranks.size <= most for ranks, most in zip(nodes, room, strict=False))
        shrinks = len(nodes) >= len(room) and all(ranks.size >= most for ranks, most in zip(nodes, room, strict=False))
        if grows or (shrinks and not gone):
            for ranks, begin, most in zip(nodes, first, room, strict=False):
                rank_map[ranks[:most]] = np.arange(begin, begin + min(most, ranks.size))
            return tuple(rank_map.tolist())
    if not gone:
        stay = stay[: after.num_ranks]
    if stay.size > after.num_ranks:
        raise InputError(
            f"{stay.size} of {before.num_ranks} ranks stay, for {after.num_ranks} new ranks: name more ranks that leave"
        )
    rank_map[stay] = np.arange(stay.size)
    return tuple(rank_map.tolist())
