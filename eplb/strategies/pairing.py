"""Knows how to place two copies on each rank: search the replica counts, then pair the largest with the smallest."""

import numpy as np
from numpy.typing import NDArray

from eplb.bounds import companion_bound, mean_bound, replication_bound
from eplb.layer_threads import for_layer_chunks
from eplb.topology import Topology

Floats = NDArray[np.float64]
Map = NDArray[np.int32]

MOST_TRIALS = 4000
"""Moves of a copy tried for each target of a layer: a few milliseconds."""


def pairs_apply(topology: Topology) -> bool:
    """Whether the machine has equally fast ranks with two slots each."""
    return topology.has_equal_slots and topology.rank_speed is None and topology.slots_per_rank == 2


def improve_pairs(
    load: Floats, physical_to_logical_map: Map, rank_load: Floats, topology: Topology, *, tolerance: float = 2e-4
) -> tuple[Map, Floats]:
    """Search better replica counts for ranks with two slots and fold them; layers that gain nothing stay as they are.

    Parameters
    ----------
    load
        [L, E] tokens.
    physical_to_logical_map, rank_load
        [L, P], [L, R] a placement without an expert twice on a rank, and what it gives.
    topology
        Equal ranks with two slots each.
    tolerance
        Relative distance from the bound at which a layer is good enough.

    Returns
    -------
    tuple
        The map and the rank loads; no layer's busiest rank is above the given one.
    """
    from eplb.kernels.count_search import fold_layers, search_counts

    load = np.ascontiguousarray(load)
    num_layers, num_experts = load.shape
    lower = np.maximum(mean_bound(load, topology), replication_bound(load, topology))
    lower = companion_bound(load, topology, lower, rank_load.max(axis=1))
    flat = np.arange(num_layers)[:, None] * num_experts + physical_to_logical_map
    count = np.bincount(flat.reshape(-1), minlength=num_layers * num_experts).reshape(num_layers, num_experts)
    phy2log, slot_load = np.empty_like(physical_to_logical_map), np.empty(physical_to_logical_map.shape)
    folded, reached = np.empty_like(rank_load), np.empty(num_layers)

    def work(layers: slice) -> None:
        part, counts = load[layers], count[layers]
        search_counts(part, topology.num_ranks, lower[layers], tolerance, MOST_TRIALS, counts, reached[layers])
        for layer in range(layers.start, layers.stop):
            one = slice(layer, layer + 1)
            if not fold_layers(load[one], count[one], phy2log[one], slot_load[one], folded[one]):
                folded[layer] = np.inf

    for_layer_chunks(work, num_layers)
    better = folded.max(axis=1) < rank_load.max(axis=1) * (1 - 1e-12)
    return (
        np.where(better[:, None], phy2log, physical_to_logical_map),
        np.where(better[:, None], folded, rank_load),
    )
