"""Describes the part of a layer that one integer model solves: ranks, their experts, and what is fixed around them."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats
from eplb.core.constraints import Constraints

Layout = list[list[int]]
"""[R] the experts of each rank."""

MOST_EXACT_SUM = 1 << 50
"""Integers up to here are exact in doubles, with room to spare."""
UNITS_PER_MEAN = 1e9
"""Where no exact scale exists: integer units that the mean rank load becomes."""
LEAST_MEAN = 1e-299
"""Below it the scale would overflow."""


@final
@dataclass(frozen=True)
class Replicas:
    """One way in which an expert can be present: so many replicas in the region of so many in all."""

    inside: int
    total: int


@final
@dataclass(frozen=True, eq=False)
class Region:
    """A sub-problem of one layer."""

    load: Floats
    """[E] tokens of each expert."""
    slots: tuple[int, ...]
    """[r] slots of each rank of the region."""
    speed: tuple[float, ...]
    """[r] relative speeds."""
    ranks: tuple[int, ...]
    """[r] ids in the topology, for constraints on ranks."""
    choices: dict[int, tuple[Replicas, ...]]
    """The experts of the region and what each may choose from, fewest replicas first."""
    constraints: Constraints
    group_of_expert: tuple[int, ...] | None = None
    """[E] where groups are pinned to nodes and the region is the whole topology."""
    node_of_rank: tuple[int, ...] | None = None
    """[r] beside `group_of_expert`."""

    @property
    def num_variables(self) -> int:
        """Booleans that its model needs, about."""
        return sum(len(ways) for ways in self.choices.values()) * (len(self.slots) + 1)

    @property
    def ranks_are_alike(self) -> bool:
        """Whether ranks can be exchanged without changing anything."""
        alike = len(set(self.slots)) == 1 and len(set(self.speed)) == 1
        return alike and not self.constraints.tells_ranks_apart and self.group_of_expert is None


def scale_of(load: Floats, num_ranks: int, most_replicas: int, *, exact: bool) -> float:
    """Integer units a token. Rounding is always down, so that a bound on the integers bounds the tokens.

    With whole token counts and few replicas the least common multiple of 1..most_replicas makes every share an integer
    and the answer exact; elsewhere shares lose less than one of `UNITS_PER_MEAN` units of the mean rank, of which
    loads near the smallest float64 have fewer.
    """
    multiple = math.lcm(*range(1, min(most_replicas, 40) + 1))
    whole = bool((load == np.floor(load)).all())
    if exact and whole and most_replicas <= 40 and load.sum() * multiple < MOST_EXACT_SUM:
        return float(multiple)
    return UNITS_PER_MEAN / max(float(load.sum()) / num_ranks, LEAST_MEAN)


def whole_layer(  # noqa: PLR0913  # a layer has these parts
    load: Floats,
    slots: tuple[int, ...],
    speed: tuple[float, ...],
    constraints: Constraints,
    upper: float,
    *,
    even: bool,
) -> Region:
    """All experts on all ranks, every count that a solution below `upper` can have.

    Parameters
    ----------
    load, slots, speed, constraints
        [E], [R], [R] and what must be met.
    upper
        Tokens over speed on the busiest rank that are reached already; infinite if nothing is.
    even
        Whether each replica gets the same share: then an expert needs load / (upper x fastest speed) replicas.
    """
    num_ranks, num_slots = len(slots), sum(slots)
    forbidden = Counter(expert for expert, _ in set(constraints.forbid))
    pinned = Counter(expert for expert, _ in constraints.pinned_pairs(num_ranks))
    least = []
    for expert, tokens in enumerate(load.tolist()):
        needed = math.ceil(tokens / (upper * max(speed)) * (1 - 1e-9)) if even and upper > 0 else 1
        least.append(max(1, needed, pinned[expert]))
    num_free = num_slots - sum(least)
    choices = {}
    for expert, fewest in enumerate(least):
        most = min(num_ranks - forbidden[expert], fewest + max(num_free, 0))
        counts = range(fewest, most + 1)
        if constraints.replica_counts is not None:
            counts = range(constraints.replica_counts[expert], constraints.replica_counts[expert] + 1)
        choices[expert] = tuple(Replicas(count, count) for count in counts)
    return Region(load, slots, speed, tuple(range(num_ranks)), choices, constraints)


def some_ranks(
    whole: Region, layout: Layout, ranks: tuple[int, ...], count: NDArray[np.int64], *, free_counts: bool
) -> Region:
    """The given ranks with what they hold.

    Parameters
    ----------
    whole
        The layer.
    layout
        [R] its present placement.
    ranks
        Ranks to arrange anew.
    count
        [E] replicas in the layer.
    free_counts
        Whether an expert that lives nowhere else may gain or lose a replica.
    """
    inside = Counter(expert for rank in ranks for expert in layout[rank])
    choices = {}
    for expert, held in sorted(inside.items()):
        total = int(count[expert])
        counts = {held}
        if held == total and free_counts:
            allowed = {ways.total for ways in whole.choices[expert]}
            counts |= {c for c in (held - 1, held + 1) if c in allowed and c <= len(ranks)}
        choices[expert] = tuple(Replicas(c, c if held == total else total) for c in sorted(counts))
    return Region(
        whole.load,
        tuple(whole.slots[rank] for rank in ranks),
        tuple(whole.speed[rank] for rank in ranks),
        ranks,
        choices,
        whole.constraints,
    )
