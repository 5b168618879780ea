"""Pins expert groups to nodes: places whole groups on nodes, then each node's experts on its ranks."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Map
from eplb.core.problem import Problem
from eplb.errors import InfeasibleError

Place = Callable[[Floats, NDArray[np.int64], Floats], Map]
"""From load [L, E] or [L, E, W], first slot [R + 1] and speed [R] of the ranks to a map [L, P]."""


def place_pinned(load: Floats, problem: Problem, place: Place) -> Map:
    """Place whole groups on nodes as if they were experts on ranks, then the experts of each node on its ranks.

    Parameters
    ----------
    load
        [L, E] tokens, or [L, E, W] for W windows.
    problem
        Groups and topology; the nodes divide the groups.
    place
        Places experts on ranks.

    Raises
    ------
    InfeasibleError
        If a rank has more slots than its node has experts.
    """
    topology, (num_layers, num_experts) = problem.topology, load.shape[:2]
    num_nodes, num_groups = topology.num_nodes, problem.num_groups
    per_node = num_groups // num_nodes
    most_slots, node_experts = int(topology.rank_num_slots.max()), num_experts // num_nodes
    if most_slots > node_experts:
        raise InfeasibleError(
            f"rank {int(topology.rank_num_slots.argmax())} has {most_slots} slots: the groups pinned to its node have "
            f"{node_experts} experts, and a rank can hold each of them only once"
        )
    group_load = load.reshape(num_layers, num_groups, num_experts // num_groups, *load.shape[2:]).sum(axis=2)
    node_speed = topology.node_speed / (topology.num_ranks / num_nodes)
    groups = place(group_load, np.arange(num_nodes + 1) * per_node, node_speed)
    experts_by_group = np.arange(num_experts, dtype=np.int32).reshape(num_groups, -1)
    layers = np.arange(num_layers)[:, None]
    maps = []
    for node, (begin, end) in enumerate(pairwise(topology.node_first_rank.tolist())):
        ranks = slice(begin, end)
        first_slot = topology.rank_first_slot[ranks.start : ranks.stop + 1]
        experts = experts_by_group[groups[:, node * per_node : (node + 1) * per_node]].reshape(num_layers, -1)
        local = place(load[layers, experts], first_slot - first_slot[0], topology.relative_speed[ranks])
        maps.append(np.take_along_axis(experts, local, axis=1))
    return np.concatenate(maps, axis=1)
