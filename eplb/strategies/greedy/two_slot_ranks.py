"""Knows how to place two copies, or one, on each rank: search the counts, then pair the largest with the smallest."""

import numpy as np

from eplb.bounds.lower_bounds import lower_bounds
from eplb.core.arrays import Floats, Ints, Map
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.topology import Topology


def pairs_apply(topology: Topology) -> bool:
    """Whether the machine has equally fast ranks with two slots, or some with two and some with one."""
    return topology.rank_speed is None and int(topology.rank_num_slots.max()) == 2


def pair_better(  # noqa: PLR0913  # a placement has these arrays
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
    """Replace a placement, layer by layer, where other counts and their pairing lower the busiest rank.

    Parameters
    ----------
    load
        [L, E] tokens.
    topology
        One for which `pairs_apply`.
    lower
        [L] a lower bound of the busiest rank; counts are searched only where pairs are not within `tolerance` of it.
    count, phy2log, slot_load, rank_load
        [L, E], [L, P], [L, P], [L, R] in and out; no expert is twice on a rank.
    tolerance
        Relative distance from the bound at which a layer is good enough.
    """
    from eplb.strategies.greedy.two_slot_ranks_kernel import fold_layers, search_counts

    first_slot = topology.rank_first_slot.copy()
    searched, reached = count.copy(), np.empty(load.shape[0])
    reaches = rank_load.max(axis=1)
    search_counts(load, topology.num_ranks, lower, tolerance, searched, reached)
    fresh = (
        np.empty((1, phy2log.shape[1]), np.int32),
        np.empty((1, phy2log.shape[1])),
        np.empty((1, rank_load.shape[1])),
    )
    for layer in np.flatnonzero(reached < reaches * (1 - 1e-12)):
        one = slice(layer, layer + 1)
        if fold_layers(load[one], searched[one], first_slot, *fresh) and fresh[2].max() < reaches[layer]:
            count[one] = searched[one]
            phy2log[one], slot_load[one], rank_load[one] = fresh


def improve_pairs(
    load: Floats, physical_to_logical_map: Map, rank_load: Floats, topology: Topology, *, tolerance: float = 2e-4
) -> tuple[Map, Floats]:
    """Search better replica counts and fold them; layers that gain nothing stay as they are.

    Parameters
    ----------
    load
        [L, E] tokens.
    physical_to_logical_map, rank_load
        [L, P], [L, R] a placement without an expert twice on a rank, and what it gives.
    topology
        One for which `pairs_apply`.
    tolerance
        Relative distance from the bound at which a layer is good enough.

    Returns
    -------
    tuple
        The map and the rank loads; no layer's busiest rank is above the given one.
    """
    load = np.ascontiguousarray(load)
    num_layers, num_experts = load.shape
    lower = lower_bounds(load, topology).value
    flat = np.arange(num_layers)[:, None] * num_experts + physical_to_logical_map
    count = np.bincount(flat.reshape(-1), minlength=num_layers * num_experts).reshape(num_layers, num_experts)
    slot_load = np.take_along_axis(load / count, physical_to_logical_map, axis=1)
    phy2log, rank_load = physical_to_logical_map.copy(), rank_load.copy()

    def work(layers: slice) -> None:
        pair_better(
            load[layers], topology, lower[layers], count[layers], phy2log[layers], slot_load[layers],
            rank_load[layers], tolerance=tolerance,
        )  # fmt: skip

    for_layer_chunks(work, num_layers)
    return phy2log, rank_load
