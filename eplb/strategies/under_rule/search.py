"""Lowers the busiest rank of every layer under a dispatch rule with fixed shares, from a given map.

One interface for whoever has limits on where replicas may be: ranks that may hold an expert, slots that keep theirs,
fewest and most replicas, spread over units. The kernel is `descent_kernel`.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.placement import EMPTY_SLOT
from eplb.core.topology import Topology
from eplb.dispatch.replica_shares import ReplicaShares

Flags = NDArray[np.bool_]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Limits:
    """What the search may do.

    Parameters
    ----------
    allowed
        [L, E, R], or [1, E, R] for all layers alike, whether a rank may hold an expert; None: all.
    fixed
        [L, P] slots that keep their expert; None: none.
    least_replicas, most_replicas
        [E] fewest and most replicas of an expert, or one number for all; at most one a rank in any case.
    units
        [R] unit of each rank if every expert is to be on two units or more; None if not.
    """

    allowed: Flags | None = None
    fixed: Flags | None = None
    least_replicas: Ints | int = 1
    most_replicas: Ints | int | None = None
    units: Ints | None = None


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """Maps and what they give."""

    phy2log: Map
    """[L, P] experts; -1 in empty slots."""
    rank_time: Floats
    """[L, R] tokens over relative speed."""

    @property
    def busiest(self) -> Floats:
        """[L] time of the busiest rank."""
        return np.asarray(self.rank_time.max(axis=1))


@final
@dataclass(frozen=True, kw_only=True)
class RuleSearch:
    """Parameters of the search.

    Parameters
    ----------
    tolerance
        Relative distance from the mean rank time at which a layer is good enough.
    examinations_per_slot
        After so many examined changes of an expert, over its slots, a layer is left as it is.
    kicks
        Groups of random exchanges between other ranks before a layer that is stuck above its target is left.
    """

    tolerance: float = 1e-3
    examinations_per_slot: int = 200
    kicks: int = 30

    def __call__(  # a map, its rule and limits
        self,
        load: Floats,
        phy2log: Map,
        shares: ReplicaShares,
        *,
        limits: Limits,
        target: Floats | None = None,
    ) -> Found:
        """Search from a map; no layer's busiest rank gets busier.

        Parameters
        ----------
        load
            [L, E] tokens; layers without any stay as they are.
        phy2log
            [L, P] the map to start from; -1 is an empty slot.
        shares
            Rule, topology and sources.
        limits
            What the search may do.
        target
            [L] rank time that is good enough; by default the mean and the tolerance.
        """
        from eplb.strategies.under_rule.descent_kernel import descend_layers

        topology, (num_layers, num_experts) = shares.topology, load.shape
        ids = np.where(phy2log == EMPTY_SLOT, np.int32(num_experts), phy2log)
        most_replicas = most_replicas_of(ids, num_experts, topology)
        if target is None:
            target = load.sum(axis=1) / topology.relative_speed.sum() * (1 + self.tolerance)
        padded = np.concatenate([load, np.zeros((num_layers, 1))], axis=1)
        rule, ranks = shares.fields(most_replicas), rank_fields(topology, limits)
        allowed, least, most, units = freedom_fields(limits, num_experts, topology)
        fixed = np.zeros(ids.shape, dtype=np.bool_) if limits.fixed is None else np.ascontiguousarray(limits.fixed)
        rank_time = np.empty((num_layers, topology.num_ranks))
        sizes = most_replicas, self.kicks, self.examinations_per_slot * topology.num_slots

        def work(rows: slice) -> None:
            own = allowed if allowed.shape[0] == 1 else allowed[rows]
            descend_layers(
                padded[rows], rule, ranks, (own, least, most, units), fixed[rows], target[rows], sizes, ids[rows],
                rank_time[rows],
            )  # fmt: skip

        for_layer_chunks(work, num_layers)
        ids[ids == num_experts] = EMPTY_SLOT
        return Found(phy2log=ids, rank_time=rank_time)


def most_replicas_of(ids: Map, num_experts: int, topology: Topology) -> int:
    """Most replicas that an expert has or may get: one a rank, or as many as the map has already."""
    base = np.arange(ids.shape[0])[:, None] * (num_experts + 1)
    count = np.bincount((base + ids).ravel(), minlength=ids.shape[0] * (num_experts + 1))
    most = int(count.reshape(-1, num_experts + 1)[:, :num_experts].max())
    return max(most + 1, topology.num_ranks)


def rank_fields(topology: Topology, limits: Limits) -> tuple[Ints, Ints, Floats, Ints]:
    """The fields of the kernels' `Ranks`."""
    scale = 1 / topology.relative_speed
    units = topology.node_of_rank if limits.units is None else np.array(limits.units, dtype=np.int64)
    for array in (scale, units):
        array.setflags(write=False)
    return topology.rank_first_slot, topology.rank_of_slot, scale, units


def freedom_fields(limits: Limits, num_experts: int, topology: Topology) -> tuple[Flags, Ints, Ints, int]:
    """The fields of the kernels' `Freedom`; an empty slot, id E, may be anywhere and any number of times."""
    num_ranks = topology.num_ranks
    num_masks = 1 if limits.allowed is None else limits.allowed.shape[0]
    allowed = np.ones((num_masks, num_experts + 1, num_ranks), dtype=np.bool_)
    if limits.allowed is not None:
        allowed[:, :num_experts] = limits.allowed
    least, most = np.zeros(num_experts + 1, dtype=np.int64), np.full(num_experts + 1, num_ranks)
    least[:num_experts] = limits.least_replicas
    if limits.most_replicas is not None:
        most[:num_experts] = np.minimum(num_ranks, limits.most_replicas)
    for array in (allowed, least, most):
        array.setflags(write=False)
    return allowed, least, most, 1 if limits.units is None else 2
