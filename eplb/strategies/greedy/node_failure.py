"""Puts every expert on two nodes, so that the failure of a whole node loses no expert.

A placement with two replicas of every expert is repaired: a replica of an expert that is on one node only is exchanged
for a slot on another node, the pair that leaves their ranks lowest. Then exchanges that keep every expert on two nodes
lower the busiest rank again. Where a repair finds no exchange the layer is laid out anew.
"""

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Map
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.topology import Topology


def busy_load(load: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """[L, E] the load with layers without any made even, and which layers these are."""
    idle: NDArray[np.bool_] = load.max(axis=1) == 0
    return (np.where(idle[:, None], 1.0, load) if idle.any() else load), idle


def put_on_two_nodes(load: Floats, phy2log: Map, topology: Topology, *, tolerance: float) -> tuple[Map, Floats]:
    """Give every expert replicas on two nodes.

    Parameters
    ----------
    load
        [L, E] tokens.
    phy2log
        [L, P] a map without empty slots in which every expert has two replicas or more, none twice on a rank.
    topology
        Its nodes have slots for two replicas of each expert on different nodes.
    tolerance
        Relative distance from the mean rank time at which the exchanges stop.

    Returns
    -------
    tuple
        The map [L, P] and the rank times [L, R] it gives: tokens over relative speed.
    """
    from eplb.strategies.greedy.node_failure_kernel import put_layers_on_two_nodes

    load, idle = busy_load(load)
    new, scale = phy2log.copy(), 1 / topology.relative_speed
    rank_time = np.empty((load.shape[0], topology.num_ranks))
    done = np.zeros(load.shape[0], dtype=np.bool_)
    target = load.sum(axis=1) / topology.num_ranks * (1 + tolerance)
    target[idle] = np.inf

    def work(layers: slice) -> None:
        put_layers_on_two_nodes(
            np.ascontiguousarray(load[layers]), topology.rank_first_slot, topology.rank_of_slot,
            topology.node_of_rank, scale, target[layers], new[layers], rank_time[layers], done[layers],
        )  # fmt: skip

    for_layer_chunks(work, load.shape[0])
    for layer in np.nonzero(~done)[0]:
        new[layer] = two_node_layout(load[layer], topology)
        work(slice(layer, layer + 1))
    rank_time[idle] = 0.0
    return new, rank_time


def two_node_layout(load: Floats, topology: Topology) -> Map:
    """[P] any layout with every expert on two nodes: places counted off node by node, two laps over the experts.

    A node has at most E places in the count, so an expert's two places, E apart, are on different nodes. The slots
    that are left go, rank by rank, to the experts with the most load a replica that the rank lacks.
    """
    num_experts = load.size
    order = np.argsort(-load, kind="stable")
    node_of_slot = topology.node_of_rank[topology.rank_of_slot]
    places = np.concatenate([np.nonzero(node_of_slot == node)[0][:num_experts] for node in range(topology.num_nodes)])
    layout = np.full(topology.num_slots, -1, dtype=np.int32)
    layout[places[: 2 * num_experts]] = np.tile(order, 2)
    count = np.full(num_experts, 2)
    for slot in np.nonzero(layout < 0)[0]:
        held = layout[topology.rank_of_slot == topology.rank_of_slot[slot]]
        unit = load / count
        unit[held[held >= 0]] = -1.0
        layout[slot] = unit.argmax()
        count[layout[slot]] += 1
    return layout
