"""Places layers of one load vector and improves them: replica counts, packing, local search, other counts.

The search of a layer ends at its target. Layers that stay above it are packed anew with other replica counts: counts
that minimise the largest replica make many small ones, and where experts have many replicas, the largest cannot fill
the room beside these. Layers still above walk over the plateau of equally good placements.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from eplb.core.arrays import Floats, Ints, Map

FEWEST_SLOTS_TO_WALK = 3
"""Ranks with fewer slots have nothing to exchange two for two."""
MOST_RANKS_TO_REPLACE = 384
"""On larger topologies of equal ranks, replacing replicas takes most of the time and other counts do as well."""
MOST_SLOTS_TO_REPLACE = 256
"""Slots in all, on ranks of unequal speed, up to which replicas are replaced: its time grows with their square."""
LARGEST_FIRST = 0.0
OTHER_OFFSETS = (0.5, 0.7, 0.85)
"""Of the divisors of replica counts, see `replicate_and_pack_kernel.count_replicas`; tried in this order."""
FEWEST_REPLICAS_FOR_OTHERS = 1.5
"""Mean replicas of an expert below which other counts do not help."""
FEWEST_REPLICAS_TO_START = 2.0
"""Mean replicas of an expert from which large topologies start with the first of the other offsets."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Ranks:
    """The ranks to place on, and the limits of the search."""

    first_slot: Ints
    """[R + 1] first slot of each rank, then P."""
    rank_scale: Floats
    """[R] time of one token."""
    room: Ints
    """[E + 1] see `greedy.most_replicas_together`."""
    tolerance: float
    """Relative distance from the mean rank time at which a layer is good enough."""
    least_replicas: int
    """Replicas that every expert has at least."""
    most_slots_for_pairs: int
    """Most slots of a rank for exchanges of two replicas."""
    most_slots_to_replace: int
    """Most slots of an equally fast rank for replacing a replica."""
    iterations: int
    """Offers to the busiest rank in a walk."""

    @property
    def num_ranks(self) -> int:
        """R."""
        return self.rank_scale.size

    @property
    def equally_fast(self) -> bool:
        """Whether all ranks take the same time for a token."""
        return bool((self.rank_scale == self.rank_scale[0]).all())

    @property
    def are_many_unequal(self) -> bool:
        """Whether ranks differ in speed and are so many that replicas are not replaced."""
        return not self.equally_fast and int(self.first_slot[-1]) > MOST_SLOTS_TO_REPLACE

    @property
    def is_large(self) -> bool:
        """Whether there are so many equal ranks that replicas are not replaced; unequal ranks need it."""
        num_slots = np.diff(self.first_slot)
        equal = self.equally_fast and bool((num_slots == num_slots[0]).all())
        return equal and self.num_ranks > MOST_RANKS_TO_REPLACE and num_slots[0] >= FEWEST_SLOTS_TO_WALK


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Layers:
    """Layers to place."""

    load: Floats
    """[L, E] tokens."""
    order: Ints
    """[L, E] experts by descending load."""
    mean: Floats
    """[L] mean rank time; infinite for layers that are only packed."""

    def at(self, layers: Ints) -> "Layers":
        """Some of the layers."""
        return Layers(load=self.load[layers], order=self.order[layers], mean=self.mean[layers])


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LayerState:
    """Layers as they are placed: arrays that the kernels write to."""

    count: Ints
    """[L, E] replicas."""
    phy2log: Map
    """[L, P]"""
    slot_load: Floats
    """[L, P] load of each replica."""
    rank_time: Floats
    """[L, R]"""

    @classmethod
    def blank(cls, num_layers: int, num_experts: int, *, num_slots: int, num_ranks: int) -> "LayerState":
        """Arrays of these sizes with nothing in them yet."""
        return cls(
            count=np.empty((num_layers, num_experts), dtype=np.int64),
            phy2log=np.empty((num_layers, num_slots), dtype=np.int32),
            slot_load=np.empty((num_layers, num_slots)),
            rank_time=np.empty((num_layers, num_ranks)),
        )

    @property
    def arrays(self) -> tuple[Ints, Map, Floats, Floats]:
        """In the order in which kernels take them."""
        return self.count, self.phy2log, self.slot_load, self.rank_time

    @property
    def top(self) -> Floats:
        """[L] time of the busiest rank."""
        return np.asarray(self.rank_time.max(axis=1))

    def at(self, layers: slice | Ints) -> "LayerState":
        """Some of the layers: views for a slice, copies for indices."""
        return LayerState(
            count=self.count[layers],
            phy2log=self.phy2log[layers],
            slot_load=self.slot_load[layers],
            rank_time=self.rank_time[layers],
        )

    def put(self, layers: Ints, other: "LayerState") -> None:
        """Overwrite these layers with those of another state."""
        self.count[layers] = other.count
        self.phy2log[layers] = other.phy2log
        self.slot_load[layers] = other.slot_load
        self.rank_time[layers] = other.rank_time


def targets(layers: Layers, state: LayerState, ranks: Ranks) -> Floats:
    """[L] rank time that is good enough: no rank that holds the largest replica can go below that one's time."""
    return np.maximum(layers.mean * (1 + ranks.tolerance), state.slot_load.max(axis=1) * ranks.rank_scale.min())


def first_offset(layers: Layers, ranks: Ranks) -> float:
    """Which replica counts to try first."""
    return (
        OTHER_OFFSETS[0]
        if ranks.is_large and _mean_replicas(layers, ranks) >= FEWEST_REPLICAS_TO_START
        else LARGEST_FIRST
    )


def place(layers: Layers, ranks: Ranks, state: LayerState, *, offset: float) -> bool:
    """Count replicas and pack them into `state`; False if those of an expert cannot be kept on different ranks.

    `offset` is that of `replicate_and_pack_kernel.count_replicas`.
    """
    from eplb.strategies.greedy.replicate_and_pack_kernel import place_layers

    return place_layers(
        layers.load, layers.order, ranks.first_slot, ranks.rank_scale, ranks.room, ranks.least_replicas,
        ranks.num_ranks, offset, *state.arrays,
    )  # fmt: skip


def search(layers: Layers, ranks: Ranks, state: LayerState, *, iterations: int = 0) -> None:
    """Lower the busiest rank of each layer to its target, or until no step helps, and walk for so many iterations."""
    from eplb.strategies.greedy.local_search_kernel import search_layers

    most_slots_to_replace = ranks.most_slots_to_replace if ranks.equally_fast else int(ranks.first_slot[-1])
    limits = (
        ranks.least_replicas, ranks.most_slots_for_pairs,
        0 if ranks.is_large or ranks.are_many_unequal else most_slots_to_replace, iterations,
    )  # fmt: skip
    search_layers(layers.load, ranks.first_slot, ranks.rank_scale, targets(layers, state, ranks), limits, *state.arrays)


def try_harder(layers: Layers, ranks: Ranks, state: LayerState) -> None:
    """Place layers above their target anew with other replica counts, then walk; no busiest rank gets busier.

    Where ranks have fewer than three slots nothing is tried.
    """
    if int(np.diff(ranks.first_slot).min()) < FEWEST_SLOTS_TO_WALK:
        return
    others = OTHER_OFFSETS if _mean_replicas(layers, ranks) >= FEWEST_REPLICAS_FOR_OTHERS else ()
    for offset in others:
        above = np.flatnonzero(state.top > targets(layers, state, ranks))
        if above.size == 0:
            return
        if offset == first_offset(layers, ranks):
            continue
        part, fresh = layers.at(above), state.at(above)
        if place(part, ranks, fresh, offset=offset):
            search(part, ranks, fresh)
            better = np.flatnonzero(fresh.top < state.top[above])
            state.put(above[better], fresh.at(better))
    above = np.flatnonzero(state.top > targets(layers, state, ranks))
    if above.size > 0:
        rest = state.at(above)
        search(layers.at(above), ranks, rest, iterations=ranks.iterations)
        state.put(above, rest)


def _mean_replicas(layers: Layers, ranks: Ranks) -> float:
    """Slots an expert."""
    return float(ranks.first_slot[-1] / layers.load.shape[1])
