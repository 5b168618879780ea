"""Describes nodes, ranks, slots, speeds and bandwidths."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Final, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from eplb.errors import PlacementError
from eplb_traces.display import fields_html, short_repr

_Scalar = TypeVar("_Scalar", bound=np.generic)

Nodes = int | Sequence[int]
"""The number of nodes with equally many ranks each, or the ranks of each node."""


MOST_RANKS: Final = 1 << 20
MOST_SLOTS: Final = 1 << 30
"""Of a layer, over all ranks: arrays of slots are int32."""
LEAST_SPEED, MOST_SPEED, MOST_SPEED_RATIO = 1e-100, 1e100, 1e6


@final
@dataclass(frozen=True)
class Topology:
    """The ranks that a plan is made for.

    Ranks are numbered node by node, slots rank by rank; `node_of_rank` and `rank_of_slot` give the place of each.

    Parameters
    ----------
    num_nodes
        Groups of ranks joined by the fast link.
    ranks_per_node
        Ranks (GPUs of the expert-parallel group) of a node: one number, or one for each node.
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
        If a number is below one, a sequence does not have one entry a node or rank, there are more than 2^20 ranks or
        2^30 slots, or speeds are too far apart.
    """

    num_nodes: int
    ranks_per_node: int | Sequence[int]
    slots_per_rank: int | Sequence[int]
    rank_speed: Sequence[float] | None = None
    intra_node_gbps: float = 370.0
    inter_node_gbps: float = 45.0

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "num_nodes", _check_count("num_nodes", self.num_nodes))
        set_field(
            self, "ranks_per_node", _checked_counts("ranks_per_node", self.ranks_per_node, self.num_nodes, "node")
        )
        if self.num_ranks > MOST_RANKS:
            raise PlacementError(f"{self.num_ranks} ranks: expected at most {MOST_RANKS}")
        set_field(
            self, "slots_per_rank", _checked_counts("slots_per_rank", self.slots_per_rank, self.num_ranks, "rank")
        )
        if self.num_slots > MOST_SLOTS:
            raise PlacementError(f"{self.num_slots} slots a layer: expected at most {MOST_SLOTS}")
        if self.rank_speed is not None:
            speeds = _checked_speeds(self.rank_speed, self.num_ranks)
            set_field(self, "rank_speed", None if len(set(speeds)) == 1 else speeds)
        for name in ("intra_node_gbps", "inter_node_gbps"):
            if not getattr(self, name) > 0:
                raise PlacementError(f"{name} = {getattr(self, name)}: expected > 0")

    def __reduce__(self) -> tuple[type["Topology"], tuple[object, ...]]:
        # Cached arrays stay behind: they would come back writeable.
        return Topology, tuple(getattr(self, field.name) for field in fields(self))

    def __repr__(self) -> str:
        return short_repr(self)

    def _repr_html_(self) -> str:
        return fields_html(self)

    @classmethod
    def for_experts(
        cls, num_experts: int, *, num_ranks: int, num_nodes: Nodes = 1, num_redundant: int = 0
    ) -> "Topology":
        """The topology with equal ranks that holds `num_experts` + `num_redundant` physical experts exactly.

        Parameters
        ----------
        num_experts, num_redundant
            Logical experts and redundant slots of a layer.
        num_ranks, num_nodes
            R, and nodes with equally many ranks; ``(8, 8, 7)`` are three nodes of 23 ranks.

        Raises
        ------
        PlacementError
            If the ranks do not divide by the nodes or are not those of the nodes, or the slots do not divide by the
            ranks.
        """
        _check_count("ranks", num_ranks)
        if num_redundant < 0:
            raise PlacementError(f"redundant = {num_redundant}: expected >= 0")
        sizes = ranks_by_node(num_ranks, num_nodes)
        num_slots = num_experts + num_redundant
        if num_slots % num_ranks:
            next_fit = num_redundant + -num_slots % num_ranks
            raise PlacementError(
                f"{num_experts} experts + {num_redundant} redundant = {num_slots} slots: expected a multiple of "
                f"{num_ranks} ranks (redundant = {next_fit} would do)"
            )
        return cls(len(sizes), sizes, num_slots // num_ranks)

    @cached_property
    def num_ranks(self) -> int:
        """R."""
        sizes = self.ranks_per_node
        return sum(sizes) if isinstance(sizes, Sequence) else self.num_nodes * sizes

    @cached_property
    def num_slots(self) -> int:
        """P, physical experts of a layer over all ranks."""
        slots = self.slots_per_rank
        return sum(slots) if isinstance(slots, Sequence) else self.num_ranks * slots

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
        return _frozen(np.repeat(np.arange(self.num_nodes), self.node_num_ranks))

    @cached_property
    def node_num_ranks(self) -> NDArray[np.int64]:
        """[N] ranks of each node."""
        return _frozen(np.broadcast_to(np.asarray(self.ranks_per_node, dtype=np.int64), (self.num_nodes,)).copy())

    @cached_property
    def node_first_rank(self) -> NDArray[np.int64]:
        """[N + 1] first rank of each node; the last entry is R."""
        return _frozen(np.concatenate([np.zeros(1, np.int64), np.cumsum(self.node_num_ranks)]))

    @cached_property
    def node_num_slots(self) -> NDArray[np.int64]:
        """[N] slots of each node."""
        return _frozen(np.diff(self.rank_first_slot[self.node_first_rank]))

    @cached_property
    def node_speed(self) -> NDArray[np.float64]:
        """[N] sum of the relative speeds of each node's ranks."""
        return _frozen(np.array([speed.sum() for speed in np.split(self.relative_speed, self.node_first_rank[1:-1])]))

    @cached_property
    def relative_speed(self) -> NDArray[np.float64]:
        """[R] speeds scaled to mean 1; all ones when the ranks are equal."""
        speed = np.ones(self.num_ranks) if self.rank_speed is None else np.asarray(self.rank_speed, dtype=np.float64)
        return _frozen(speed / speed.mean())

    @property
    def has_equal_slots(self) -> bool:
        """Whether every rank holds the same number of slots, as every engine's file asks."""
        return isinstance(self.slots_per_rank, int)

    @property
    def has_equal_nodes(self) -> bool:
        """Whether every node has the same number of ranks."""
        return isinstance(self.ranks_per_node, int)

    @property
    def nodes(self) -> Nodes:
        """The number of nodes, or the ranks of each where they differ: `num_nodes` of `for_experts`."""
        return self.num_nodes if isinstance(self.ranks_per_node, int) else self.ranks_per_node


def ranks_by_node(num_ranks: int, nodes: Nodes) -> tuple[int, ...]:
    """The ranks of each node, for `num_ranks` ranks.

    Raises
    ------
    PlacementError
        If `nodes` is a number that does not divide the ranks, or its sizes have another sum.
    """
    if isinstance(nodes, Sequence | np.ndarray):
        for node, count in enumerate(nodes):
            _check_count(f"nodes[{node}]", count)
        if sum(nodes) != num_ranks:
            shown = ",".join(map(str, nodes))
            raise PlacementError(f"ranks = {num_ranks}: expected {sum(nodes)}, the sum of nodes = {shown}")
        return tuple(int(count) for count in nodes)
    _check_count("nodes", nodes)
    if num_ranks % nodes:
        raise PlacementError(
            f"ranks = {num_ranks}: expected a multiple of nodes = {nodes}, or the ranks of each node, as 8,8,7"
        )
    return (num_ranks // nodes,) * nodes


def _checked_counts(name: str, value: object, length: int, unit: str) -> int | tuple[int, ...]:
    """Counts >= 1, one for each of `length` units; one number where all are equal."""
    if not isinstance(value, Sequence | np.ndarray):
        return _check_count(name, value)
    _check_length(name, len(value), length, unit)
    counts = tuple(_check_count(f"{name}[{i}]", count) for i, count in enumerate(value))
    return counts[0] if len(set(counts)) == 1 else counts


def _checked_speeds(values: Sequence[float], num_ranks: int) -> tuple[float, ...]:
    """Speeds > 0 of every rank, not so far apart that the time of a rank overflows."""
    for rank, speed in enumerate(values):
        if isinstance(speed, bool) or not isinstance(speed, int | float | np.integer | np.floating):
            raise PlacementError(f"rank_speed[{rank}] = {speed!r}: expected a number")
    speeds = tuple(float(speed) for speed in values)
    _check_length("rank_speed", len(speeds), num_ranks, "rank")
    if not all(0 < speed < float("inf") for speed in speeds):
        raise PlacementError(f"rank_speed = {speeds}: expected finite speeds > 0")
    slowest, fastest = min(speeds), max(speeds)
    if not LEAST_SPEED <= slowest <= fastest <= MOST_SPEED or fastest > MOST_SPEED_RATIO * slowest:
        raise PlacementError(
            f"rank_speed from {slowest:g} to {fastest:g}: expected speeds from {LEAST_SPEED:g} to {MOST_SPEED:g}, the "
            f"fastest at most {MOST_SPEED_RATIO:g} times the slowest"
        )
    return speeds


def _check_length(name: str, length: int, expected: int, unit: str) -> None:
    if length != expected:
        raise PlacementError(f"{name} has {length} entries: expected one for each of {expected} {unit}s")


def _check_count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise PlacementError(f"{name} = {value!r}: expected an integer >= 1")
    return int(value)


def _frozen(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    array.setflags(write=False)
    return array
