"""Improves placements on ranks with two slots or one: searches counts, pairs the largest replica with the smallest.

It applies to equally fast ranks only.
"""

import numpy as np

from eplb.bounds.lower_bounds import lower_bounds
from eplb.core.arrays import Floats, Ints, Map
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.topology import Topology


def has_two_slot_ranks(topology: Topology) -> bool:
    """Whether ranks are equally fast and have two slots each, or some two and some one."""
    return topology.rank_speed is None and int(topology.rank_num_slots.max()) == 2


def improve_layers(  # noqa: PLR0913  # a placement has these arrays
    load: Floats,
    topology: Topology,
    lower: Floats,
    count: Ints,
    phy2log: Map,
    slot_load: Floats,
    rank_load: Floats,
    *,
    tolerance: float,
) -> None:
    """Replace a placement, layer by layer, where other counts and their pairs lower the busiest rank.

    Parameters
    ----------
    load
        [L, E] tokens.
    topology
        One with `has_two_slot_ranks`.
    lower
        [L] a lower bound of the busiest rank; counts are searched only where pairs are not within `tolerance` of it.
    count, phy2log, slot_load, rank_load
        [L, E], [L, P], [L, P], [L, R] in and out; no expert is twice on a rank.
    tolerance
        Relative distance from the bound at which a layer is good enough.
    """
    from eplb.strategies.greedy.two_slot_ranks_kernel import pair_layers, search_counts

    searched, reached = count.copy(), np.empty(load.shape[0])
    busiest = rank_load.max(axis=1)
    search_counts(load, topology.num_ranks, lower, tolerance, searched, reached)
    trial = (
        np.empty((1, phy2log.shape[1]), np.int32),
        np.empty((1, phy2log.shape[1])),
        np.empty((1, rank_load.shape[1])),
    )
    for layer in np.flatnonzero(reached < busiest * (1 - 1e-12)):
        one = slice(layer, layer + 1)
        if pair_layers(load[one], searched[one], topology.rank_first_slot, *trial) and trial[2].max() < busiest[layer]:
            count[one] = searched[one]
            phy2log[one], slot_load[one], rank_load[one] = trial


def improved_map(load: Floats, phy2log: Map, topology: Topology, *, tolerance: float = 2e-4) -> Map:
    """Search better replica counts and pair their replicas; layers that gain nothing stay as they are.

    Parameters
    ----------
    load
        [L, E] tokens.
    phy2log
        [L, P] a placement without an expert twice on a rank.
    topology
        One with `has_two_slot_ranks`.
    tolerance
        Relative distance from the bound at which a layer is good enough.

    Returns
    -------
    Map
        [L, P]; no layer's busiest rank is above the given one.
    """
    load, phy2log = np.ascontiguousarray(load), phy2log.copy()
    lower = lower_bounds(load, topology).value
    count = np.stack([np.bincount(row, minlength=load.shape[1]) for row in phy2log])
    slot_load = np.take_along_axis(load / count, phy2log, axis=1)
    rank_load = np.add.reduceat(slot_load, topology.rank_first_slot[:-1], axis=1)

    def work(layers: slice) -> None:
        improve_layers(
            load[layers], topology, lower[layers], count[layers], phy2log[layers], slot_load[layers],
            rank_load[layers], tolerance=tolerance,
        )  # fmt: skip

    for_layer_chunks(work, load.shape[0])
    return phy2log
