"""Holds which logical expert is in which slot, and the maps derived from that.

One map is stored, `physical_to_logical_map`; the other maps of the engines are derived from it on demand.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb.core.topology import Topology
from eplb.errors import InputError, PlacementError
from eplb_traces import ModelShape
from eplb_traces.display import facts_html
from eplb_traces.real_numbers import check_unmasked, real_numbers

EMPTY_SLOT = -1


class PlacementMaps(NamedTuple):
    """The three global maps of an engine, int64 as engines keep them, in the order DeepSeek's function returns them."""

    physical_to_logical_map: NDArray[np.int64]
    """[L, P] logical expert of each slot, -1 for an empty slot."""
    logical_to_physical_map: NDArray[np.int64]
    """[L, E, X] slots of each logical expert, ascending, padded with -1; X is the largest replica count."""
    logical_replica_count: NDArray[np.int64]
    """[L, E] slots of each logical expert."""


@final
class Placement:
    """Where every expert of every layer lives. Frozen, checked at birth.

    Parameters
    ----------
    physical_to_logical_map
        [L, P] logical expert in each slot, rank-major; -1 is an empty slot.
    num_experts
        E, logical experts of a layer.
    topology
        Ranks, nodes and slots; its slots must be P.
    replica_weights
        [L, P] share of its expert's tokens that each slot gets under weighted dispatch, summing to 1 over an expert's
        slots, 0 in empty slots; None when the plan prescribes no shares.

    Raises
    ------
    PlacementError
        Naming layer and slot of an id out of range, or the first expert that no slot holds.
    """

    physical_to_logical_map: NDArray[np.int32]
    num_experts: int
    topology: Topology
    replica_weights: NDArray[np.float64] | None

    def __init__(
        self,
        physical_to_logical_map: ArrayLike,
        num_experts: int,
        topology: Topology,
        replica_weights: ArrayLike | None = None,
    ) -> None:
        if isinstance(num_experts, bool) or not isinstance(num_experts, int | np.integer) or num_experts < 1:
            raise PlacementError(f"num_experts = {num_experts!r}: expected an integer >= 1")
        set_field = object.__setattr__
        set_field(self, "num_experts", int(num_experts))
        set_field(self, "topology", topology)
        set_field(self, "physical_to_logical_map", _checked_map(physical_to_logical_map, self.num_experts, topology))
        self._check_every_expert_lives()
        set_field(self, "replica_weights", None if replica_weights is None else self._checked_weights(replica_weights))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Placement is frozen: {name} cannot be set")

    def _check_every_expert_lives(self) -> None:
        if self.num_experts > self.num_slots:  # before arrays of that many experts are allocated
            layer, expert = 0, int(np.setdiff1d(np.arange(self.num_slots + 1), self.physical_to_logical_map[0])[0])
        elif self.logical_replica_count.min() == 0:
            layer, expert = (int(i) for i in np.argwhere(self.logical_replica_count == 0)[0])
        else:
            return
        raise PlacementError(
            f"physical_to_logical_map[layer {layer}]: expert {expert} has no slot, expected at least one"
        )

    def _checked_weights(self, replica_weights: ArrayLike) -> NDArray[np.float64]:
        with _placement_errors():
            weights = real_numbers(replica_weights, "replica_weights")
        if weights.shape != self.physical_to_logical_map.shape:
            raise PlacementError(
                f"replica_weights has shape {weights.shape}: expected {self.physical_to_logical_map.shape}"
            )
        occupied = self.physical_to_logical_map != EMPTY_SLOT
        if not ((weights >= 0) & (weights <= 1)).all() or weights[~occupied].any():
            raise PlacementError("replica_weights: expected shares from 0 to 1, and 0 in empty slots")
        sums = np.bincount(
            self._flat_expert_ids, weights=weights[occupied], minlength=self.num_layers * self.num_experts
        )
        if (np.abs(sums - 1) > 1e-6).any():
            layer, expert = divmod(int(np.argmax(np.abs(sums - 1))), self.num_experts)
            raise PlacementError(
                f"replica_weights[layer {layer}] of expert {expert} sum to {sums[layer * self.num_experts + expert]}: "
                "expected 1"
            )
        weights.setflags(write=False)
        return weights

    def check_model(self, shape: ModelShape, what: str = "load", *, name: str = "placement") -> None:
        """Refuse a load or trace of another model.

        Parameters
        ----------
        shape
            The model of the load or trace.
        what, name
            What it is, and what this placement is called, for the message.

        Raises
        ------
        InputError
            If the numbers of layers or experts differ.
        """
        if (shape.num_layers, shape.num_experts) != (self.num_layers, self.num_experts):
            raise InputError(
                f"{what} of {shape.num_layers} layers x {shape.num_experts} experts: "
                f"the {name} is for {self.num_layers} layers x {self.num_experts} experts, another model"
            )

    @property
    def num_layers(self) -> int:
        """L."""
        return self.physical_to_logical_map.shape[0]

    @property
    def num_slots(self) -> int:
        """P."""
        return self.physical_to_logical_map.shape[1]

    @property
    def _flat_expert_ids(self) -> NDArray[np.int64]:
        """Layer * E + expert of every occupied slot, in slot order."""
        layer_base = np.arange(self.num_layers, dtype=np.int64)[:, None] * self.num_experts
        occupied = self.physical_to_logical_map != EMPTY_SLOT
        return (layer_base + self.physical_to_logical_map)[occupied]

    @cached_property
    def logical_replica_count(self) -> NDArray[np.int32]:
        """[L, E] slots of each logical expert."""
        by_layer = replica_counts(self.physical_to_logical_map, self.num_experts).astype(np.int32)
        by_layer.setflags(write=False)
        return by_layer

    @cached_property
    def logical_to_physical_map(self) -> NDArray[np.int32]:
        """[L, E, X] slots of each logical expert, ascending, padded with -1; X is the largest replica count."""
        count = self.logical_replica_count.reshape(-1)
        flat_ids = self._flat_expert_ids
        order = np.argsort(flat_ids, kind="stable")
        slots = np.nonzero(self.physical_to_logical_map != EMPTY_SLOT)[1][order]
        replica = np.arange(slots.size) - np.repeat(np.cumsum(count) - count, count)
        table = np.full((count.size, int(count.max())), -1, dtype=np.int32)
        table[flat_ids[order], replica] = slots
        table.setflags(write=False)
        return table.reshape(self.num_layers, self.num_experts, -1)

    @cached_property
    def duplicate_slots(self) -> NDArray[np.bool_]:
        """[L, P] whether an earlier slot of the same rank already holds the slot's expert."""
        layer = np.arange(self.num_layers, dtype=np.int64)[:, None]
        place = layer * self.topology.num_ranks + self.topology.rank_of_slot
        key = place * (self.num_experts + 1) + self.physical_to_logical_map + 1
        _, first = np.unique(key.reshape(-1), return_index=True)
        duplicate = np.ones(key.size, dtype=np.bool_)
        duplicate[first] = False
        duplicate = duplicate.reshape(key.shape) & (self.physical_to_logical_map != EMPTY_SLOT)
        duplicate.setflags(write=False)
        return duplicate

    def local_expert_map(self, rank: int) -> NDArray[np.int32]:
        """What one rank holds, in the form of vLLM's `expert_map`.

        Returns
        -------
        NDArray
            [L, E] first local slot of each logical expert on `rank`, -1 for experts that live elsewhere.
        """
        if not 0 <= rank < self.topology.num_ranks:
            raise PlacementError(f"rank = {rank}: expected 0 <= rank < {self.topology.num_ranks}")
        first, last = self.topology.rank_first_slot[rank : rank + 2]
        held = self.physical_to_logical_map[:, first:last]
        local_map = np.full((self.num_layers, self.num_experts), -1, dtype=np.int32)
        layers = np.arange(self.num_layers)
        for slot in range(held.shape[1] - 1, -1, -1):  # backwards: the first of two replicas wins
            occupied = held[:, slot] != EMPTY_SLOT
            local_map[layers[occupied], held[occupied, slot]] = slot
        return local_map

    def maps(self) -> PlacementMaps:
        """The three global maps an engine keeps, as fresh writeable int64 arrays."""
        return PlacementMaps(
            self.physical_to_logical_map.astype(np.int64),
            self.logical_to_physical_map.astype(np.int64),
            self.logical_replica_count.astype(np.int64),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Placement):
            return NotImplemented
        return (
            self.num_experts == other.num_experts
            and self.topology == other.topology
            and np.array_equal(self.physical_to_logical_map, other.physical_to_logical_map)
            and _equal_or_both_none(self.replica_weights, other.replica_weights)
        )

    def __hash__(self) -> int:
        return hash((self.num_experts, self.physical_to_logical_map.tobytes()))

    def __reduce__(self) -> tuple[type["Placement"], tuple[object, ...]]:
        return Placement, (self.physical_to_logical_map, self.num_experts, self.topology, self.replica_weights)

    def __repr__(self) -> str:
        return (
            f"Placement({self.num_layers} layers, {self.num_experts} experts in {self.num_slots} slots "
            f"on {self.topology.num_ranks} ranks)"
        )

    def _repr_html_(self) -> str:
        facts = {
            "layers": self.num_layers,
            "experts": self.num_experts,
            "slots": self.num_slots,
            "most replicas": int(self.logical_replica_count.max()),
            "duplicate slots": int(self.duplicate_slots.sum()),
            "topology": self.topology,
        }
        return facts_html("Placement", facts)


def _checked_map(physical_to_logical_map: ArrayLike, num_experts: int, topology: Topology) -> NDArray[np.int32]:
    """A read-only int32 [L, P] that nobody else can write to."""
    with _placement_errors():
        check_unmasked(physical_to_logical_map, "physical_to_logical_map")
    try:
        array = np.array(physical_to_logical_map, order="C")
    except ValueError as error:
        raise PlacementError(f"physical_to_logical_map is not rectangular: {error}") from error
    if array.ndim != 2 or 0 in array.shape:
        raise PlacementError(f"physical_to_logical_map has shape {array.shape}: expected [layers, slots]")
    if not np.issubdtype(array.dtype, np.integer):
        raise PlacementError(f"physical_to_logical_map holds {array.dtype}: expected integers")
    if array.shape[1] != topology.num_slots:
        raise PlacementError(
            f"physical_to_logical_map has {array.shape[1]} slots a layer: the topology has {topology.num_slots}"
        )
    if array.min() < EMPTY_SLOT or array.max() >= num_experts:
        layer, slot = (int(i) for i in np.argwhere((array < EMPTY_SLOT) | (array >= num_experts))[0])
        raise PlacementError(
            f"physical_to_logical_map[layer {layer}, slot {slot}] = {array[layer, slot]}: "
            f"expected 0 <= id < {num_experts}, or -1 for an empty slot"
        )
    array = array.astype(np.int32)
    array.setflags(write=False)
    return array


@contextmanager
def _placement_errors() -> Iterator[None]:
    """Turn an InputError of the block into a PlacementError."""
    try:
        yield
    except InputError as error:
        raise PlacementError(str(error)) from error


def _equal_or_both_none(first: NDArray[np.float64] | None, second: NDArray[np.float64] | None) -> bool:
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)


def replica_counts(physical_to_logical_map: NDArray[np.int32], num_experts: int) -> NDArray[np.int64]:
    """[L, E] replicas of each expert in some slots [L, any]; -1 is an empty slot."""
    num_layers = physical_to_logical_map.shape[0]
    layer_base = np.arange(num_layers)[:, None] * num_experts
    flat = (layer_base + physical_to_logical_map)[physical_to_logical_map != EMPTY_SLOT]
    return np.bincount(flat, minlength=num_layers * num_experts).reshape(num_layers, num_experts)
