"""Knows how to lower layers that a plain descent leaves above their target, and all layers of large machines.

Three means, each for the layers that the ones before leave above: a descent whose steps do not grow dearer with the
ranks; other replica counts, packed anew; a walk over the plateau of equally good plans. Counts that make the largest
copy least make many small ones, and where experts have many copies, the largest cannot fill the room beside these.
Ranks with two slots or one are left as they are: there is nothing to exchange two for two.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from eplb.core.arrays import Floats, Ints, Map

FEWEST_SLOTS = 3
MOST_RANKS_TO_SCAN = 384
"""On larger machines a descent that looks at all ranks in each step takes most of the time."""
LARGEST_FIRST = 0.0
OTHER_OFFSETS = (0.5, 0.7, 0.85)
"""Of the divisors of replica counts, see `kernels.largest_first.count_replicas`; tried in this order."""
FEWEST_COPIES_FOR_OTHERS = 1.5
"""Mean copies of an expert below which other counts do not help."""
FEWEST_COPIES_TO_START = 2.0
"""Mean copies of an expert from which large machines do without those that make the largest copy least."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Ranks:
    """What the kernels know of a machine and of what is wanted on it."""

    first_slot: Ints
    """[R + 1] first slot of each rank, then P."""
    rank_scale: Floats
    """[R] time of one token."""
    room: Ints
    """[E + 1] see `greedy.most_copies_together`."""
    tolerance: float
    """Relative distance from the mean rank time at which a layer is good enough."""
    most_slots_for_doubles: int
    """See `kernels.swap_descent`."""

    @property
    def num_ranks(self) -> int:
        """Ranks of the machine."""
        return self.rank_scale.size

    @property
    def alike(self) -> bool:
        """Whether all ranks are equally fast."""
        return bool((self.rank_scale == self.rank_scale[0]).all())


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Layers:
    """What is to be placed."""

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
class Books:
    """Layers as they are placed: arrays that the kernels write to."""

    count: Ints
    """[L, E]"""
    phy2log: Map
    """[L, P]"""
    slot_load: Floats
    """[L, P]"""
    rank_time: Floats
    """[L, R]"""

    @classmethod
    def blank(cls, num_layers: int, num_experts: int, *, num_slots: int, num_ranks: int) -> "Books":
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

    def at(self, layers: slice | Ints) -> "Books":
        """Some of the layers: views for a slice, copies for indices."""
        return Books(
            count=self.count[layers],
            phy2log=self.phy2log[layers],
            slot_load=self.slot_load[layers],
            rank_time=self.rank_time[layers],
        )

    def put(self, layers: slice | Ints, other: "Books") -> None:
        """Overwrite these layers with those of other books."""
        self.count[layers] = other.count
        self.phy2log[layers] = other.phy2log
        self.slot_load[layers] = other.slot_load
        self.rank_time[layers] = other.rank_time


def levels_apply(ranks: Ranks) -> bool:
    """Whether ranks have enough slots for these means to help."""
    return int(np.diff(ranks.first_slot).min()) >= FEWEST_SLOTS


def is_large(ranks: Ranks) -> bool:
    """Whether the machine is levelled at once instead of after the plain descent: many ranks, all alike.

    Where ranks differ, copies must be made to fit them, which only the plain descent does.
    """
    num_slots = np.diff(ranks.first_slot)
    return ranks.num_ranks > MOST_RANKS_TO_SCAN and ranks.alike and bool((num_slots == num_slots[0]).all())


def targets(mean: Floats, books: Books, ranks: Ranks) -> Floats:
    """[L] rank time that is good enough: a copy is never split, no rank that holds the largest one can go below it."""
    return np.maximum(mean * (1 + ranks.tolerance), books.slot_load.max(axis=1) * ranks.rank_scale.min())


def place_and_level(layers: Layers, ranks: Ranks, *, offset: float) -> Books | None:
    """Count, pack and descend by levels; None if the copies cannot be kept apart.

    Parameters
    ----------
    layers, ranks
        What to place, and where.
    offset
        See `kernels.largest_first.count_replicas`.
    """
    from eplb.strategies.greedy.replicate_and_pack_kernel import place_layers

    num_slots = int(ranks.first_slot[-1])
    books = Books.blank(*layers.load.shape, num_slots=num_slots, num_ranks=ranks.num_ranks)
    if not place_layers(
        layers.load, layers.order, ranks.first_slot, ranks.rank_scale, ranks.room, 1, ranks.num_ranks, offset,
        books.count, books.phy2log, books.slot_load, books.rank_time,
    ):  # fmt: skip
        return None
    descend_levels(layers.mean, books, ranks)
    return books


def descend_levels(mean: Floats, books: Books, ranks: Ranks) -> None:
    """Lower the busiest rank of each layer by exchanges with the idlest ranks."""
    from eplb.strategies.greedy.level_search_kernel import descend_by_levels

    descend_by_levels(
        ranks.first_slot, ranks.rank_scale, mean, targets(mean, books, ranks), ranks.most_slots_for_doubles,
        books.phy2log, books.slot_load, books.rank_time,
    )  # fmt: skip


def level_better(layers: Layers, books: Books, ranks: Ranks, *, looks: int) -> None:
    """On layers above their target try other counts, then walk over the plateau.

    Parameters
    ----------
    layers, ranks
        As in `place_and_level`.
    books
        Placed layers, in and out; no layer's busiest rank gets busier.
    looks
        How often the walk looks at the busiest rank of a layer.
    """
    from eplb.strategies.greedy.level_search_kernel import walk_plateaus

    done = first_offset(layers, ranks) if is_large(ranks) else LARGEST_FIRST
    many = mean_copies(layers, ranks) >= FEWEST_COPIES_FOR_OTHERS
    offsets = [offset for offset in OTHER_OFFSETS if many and offset != done]
    for offset in offsets:
        above = np.flatnonzero(books.top > targets(layers.mean, books, ranks))
        if above.size == 0:
            return
        fresh = place_and_level(layers.at(above), ranks, offset=offset)
        if fresh is not None:
            better = np.flatnonzero(fresh.top < books.top[above])
            books.put(above[better], fresh.at(better))
    above = np.flatnonzero(books.top > targets(layers.mean, books, ranks))
    rest = books.at(above)
    walk_plateaus(
        ranks.first_slot, ranks.rank_scale, targets(layers.mean[above], rest, ranks),
        ranks.most_slots_for_doubles, looks, rest.phy2log, rest.slot_load, rest.rank_time,
    )  # fmt: skip
    books.put(above, rest)


def first_offset(layers: Layers, ranks: Ranks) -> float:
    """Which counts to try first on a large machine."""
    return OTHER_OFFSETS[0] if mean_copies(layers, ranks) >= FEWEST_COPIES_TO_START else LARGEST_FIRST


def mean_copies(layers: Layers, ranks: Ranks) -> float:
    """Slots an expert."""
    return float(ranks.first_slot[-1] / layers.load.shape[1])
