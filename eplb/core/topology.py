"""Describes nodes, ranks, slots, speeds and bandwidths."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TypeVar, final

import numpy as np
from numpy.typing import NDArray

from eplb.errors import PlacementError

_Scalar = TypeVar("_Scalar", bound=np.generic)


@final
@dataclass(frozen=True)
class Topology:
    """The ranks that a plan is made for.

    Ranks are numbered node by node, slots rank by rank: rank r is on node ``r // ranks_per_node``.

    Parameters
    ----------
    num_nodes
        Groups of ranks joined by the fast link.
    ranks_per_node
        Ranks (GPUs of the expert-parallel group) of a node.
    slots_per_rank
        Physical experts a rank holds in each layer: one number, or one for each rank.
    rank_speed
        [R] relative speeds > 0; None when all ranks are equally fast.
    intra_node_gbps, inter_node_gbps
        Bandwidth of one rank, each way, inside a node and between nodes, in GB/s. The defaults are what an H100-class
        server reaches: 370 over NVLink 4, 45 over a 400 Gbit/s NIC.

    Raises
    ------
    PlacementError
        If a number is below one or a sequence does not have one entry a rank.
    """

    num_nodes: int
    ranks_per_node: int
    slots_per_rank: int | Sequence[int]
    rank_speed: Sequence[float] | None = None
    intra_node_gbps: float = 370.0
    inter_node_gbps: float = 45.0

    def __post_init__(self) -> None:
        for name in ("num_nodes", "ranks_per_node"):
            _check_count(name, getattr(self, name))
            object.__setattr__(self, name, int(getattr(self, name)))
        if isinstance(self.slots_per_rank, Sequence | np.ndarray):
            self._check_length("slots_per_rank", len(self.slots_per_rank))
            for rank, count in enumerate(self.slots_per_rank):
                _check_count(f"slots_per_rank[{rank}]", count)
            slots = tuple(int(s) for s in self.slots_per_rank)
            equal = len(set(slots)) == 1
            object.__setattr__(self, "slots_per_rank", slots[0] if equal else slots)
        else:
            _check_count("slots_per_rank", self.slots_per_rank)
            object.__setattr__(self, "slots_per_rank", int(self.slots_per_rank))
        if self.rank_speed is not None:
            speeds = tuple(float(s) for s in self.rank_speed)
            self._check_length("rank_speed", len(speeds))
            if not all(0 < s < float("inf") for s in speeds):
                raise PlacementError(f"rank_speed = {speeds}: expected finite speeds > 0")
            object.__setattr__(self, "rank_speed", None if len(set(speeds)) == 1 else speeds)
        for name in ("intra_node_gbps", "inter_node_gbps"):
            if not getattr(self, name) > 0:
                raise PlacementError(f"{name} = {getattr(self, name)}: expected > 0")

    def __reduce__(self) -> tuple[type["Topology"], tuple[object, ...]]:
        # Cached arrays stay behind: they would come back writeable.
        return Topology, tuple(getattr(self, field.name) for field in fields(self))

    def _check_length(self, name: str, length: int) -> None:
        if length != self.num_ranks:
            raise PlacementError(f"{name} has {length} entries: expected one for each of {self.num_ranks} ranks")

    @classmethod
    def for_experts(cls, num_experts: int, *, num_ranks: int, num_nodes: int = 1, num_redundant: int = 0) -> "Topology":
        """The topology with equal ranks that holds `num_experts` + `num_redundant` physical experts exactly.

        Raises
        ------
        PlacementError
            If the ranks do not divide by the nodes, or the slots by the ranks.
        """
        for name, count in (("ranks", num_ranks), ("nodes", num_nodes)):
            _check_count(name, count)
        if num_redundant < 0:
            raise PlacementError(f"redundant = {num_redundant}: expected >= 0")
        if num_ranks % num_nodes:
            raise PlacementError(f"ranks = {num_ranks}: expected a multiple of nodes = {num_nodes}")
        num_slots = num_experts + num_redundant
        if num_slots % num_ranks:
            next_fit = num_redundant + -num_slots % num_ranks
            raise PlacementError(
                f"{num_experts} experts + {num_redundant} redundant = {num_slots} slots: expected a multiple of "
                f"{num_ranks} ranks (redundant = {next_fit} would do)"
            )
        return cls(num_nodes, num_ranks // num_nodes, num_slots // num_ranks)

    @property
    def num_ranks(self) -> int:
        """R."""
        return self.num_nodes * self.ranks_per_node

    @cached_property
    def num_slots(self) -> int:
        """P, physical experts of a layer over all ranks."""
        return int(self.rank_num_slots.sum())

    @cached_property
    def rank_num_slots(self) -> NDArray[np.int64]:
        """[R] slots of each rank."""
        return _frozen(np.broadcast_to(np.asarray(self.slots_per_rank, dtype=np.int64), (self.num_ranks,)).copy())

    @cached_property
    def rank_first_slot(self) -> NDArray[np.int64]:
        """[R + 1] first slot of each rank; the last entry is P."""
        return _frozen(np.concatenate([np.zeros(1, np.int64), np.cumsum(self.rank_num_slots)]))

    @cached_property
    def rank_of_slot(self) -> NDArray[np.int64]:
        """[P] rank that holds each slot."""
        return _frozen(np.repeat(np.arange(self.num_ranks), self.rank_num_slots))

    @cached_property
    def node_of_rank(self) -> NDArray[np.int64]:
        """[R] node of each rank."""
        return _frozen(np.repeat(np.arange(self.num_nodes), self.ranks_per_node))

    @cached_property
    def relative_speed(self) -> NDArray[np.float64]:
        """[R] speeds scaled to mean 1; all ones when the ranks are equal."""
        speed = np.ones(self.num_ranks) if self.rank_speed is None else np.asarray(self.rank_speed, dtype=np.float64)
        return _frozen(speed / speed.mean())

    @property
    def has_equal_slots(self) -> bool:
        """Whether every rank holds the same number of slots, as every engine's file asks."""
        return isinstance(self.slots_per_rank, int)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise PlacementError(f"{name} = {value!r}: expected an integer >= 1")


def _frozen(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    array.setflags(write=False)
    return array
