"""Computes DeepSeek's EPLB slot by slot, in single precision as the published function does.

Source: the description of deepseek-ai/EPLB@d52c72d (groups to nodes, replicas inside a node, replicas to ranks).
"""

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Ints
from eplb_traces.jit import helper, njit

Singles = NDArray[np.float32]


@helper
def _balanced_packing(
    weight: Singles, num_packs: int, pack_of: Ints, place_of: Ints, order: Ints, pack_weight: Singles, pack_size: Ints
) -> None:
    """Give each item, heaviest first, to the lightest pack that is not full; ties to the lowest item and pack.

    `order` [items] is scratch; `pack_weight` and `pack_size` [packs] are scratch.
    """
    num_items = weight.size
    capacity = num_items // num_packs
    if capacity == 1:
        for item in range(num_items):
            pack_of[item], place_of[item] = item, 0
        return
    order[:num_items] = np.argsort(-weight, kind="mergesort")
    pack_weight[:num_packs] = 0
    pack_size[:num_packs] = 0
    for i in range(num_items):
        item = order[i]
        lightest = -1
        for pack in range(num_packs):
            if pack_size[pack] < capacity and (lightest < 0 or pack_weight[pack] < pack_weight[lightest]):
                lightest = pack
        pack_of[item], place_of[item] = lightest, pack_size[lightest]
        pack_weight[lightest] += weight[item]
        pack_size[lightest] += 1


@njit("void(float32[:, ::1], int64, int64, int64, int64[:, ::1], int64[:, ::1], int64[:, ::1])")
def rebalance_layers(
    weight: Singles, num_groups: int, num_nodes: int, num_ranks: int, phy2log: Ints, replica: Ints, logcnt: Ints
) -> None:
    """Plan every layer. ``num_groups = num_nodes = 1`` is the global policy, more the hierarchical one.

    Parameters
    ----------
    weight
        [L, E]
    num_groups, num_nodes, num_ranks
        Each divides what the published function asks it to; nothing is checked here.
    phy2log, replica
        [L, P] out: expert of each slot, and which of the expert's replicas it is.
    logcnt
        [L, E] out: replicas of each expert.
    """
    num_layers, num_experts = weight.shape
    num_slots = phy2log.shape[1]
    group_size, groups_per_node = num_experts // num_groups, num_groups // num_nodes
    node_experts, node_slots, node_ranks = num_experts // num_nodes, num_slots // num_nodes, num_ranks // num_nodes
    slots_per_rank = num_slots // num_ranks
    most = max(num_slots, num_groups)
    pack_of, place_of, order = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    most_packs = max(num_nodes, node_ranks)
    pack_weight, pack_size = np.empty(most_packs, np.float32), np.empty(most_packs, np.int64)
    group_weight = np.empty(num_groups, np.float32)
    node_order = np.empty(num_experts, np.int64)
    replica_expert, replica_number = np.empty(node_slots, np.int64), np.empty(node_slots, np.int64)
    replica_weight = np.empty(node_slots, np.float32)
    for layer in range(num_layers):
        # Groups to nodes: node_order lists the experts node by node.
        for group in range(num_groups):
            group_weight[group] = weight[layer, group * group_size : (group + 1) * group_size].sum()
        _balanced_packing(group_weight, num_nodes, pack_of, place_of, order, pack_weight, pack_size)
        for group in range(num_groups):
            first = (pack_of[group] * groups_per_node + place_of[group]) * group_size
            for i in range(group_size):
                node_order[first + i] = group * group_size + i
        for node in range(num_nodes):
            expert_of = node_order[node * node_experts : (node + 1) * node_experts]
            # Replicas: one each, then always to the expert with the most weight a replica.
            for i in range(node_experts):
                replica_expert[i], replica_number[i] = i, 0
                logcnt[layer, expert_of[i]] = 1
            for added in range(node_experts, node_slots):
                heaviest, heaviest_load = 0, np.float32(-1)
                for i in range(node_experts):
                    load = weight[layer, expert_of[i]] / np.float32(logcnt[layer, expert_of[i]])
                    if load > heaviest_load:
                        heaviest, heaviest_load = i, load
                replica_expert[added] = heaviest
                replica_number[added] = logcnt[layer, expert_of[heaviest]]
                logcnt[layer, expert_of[heaviest]] += 1
            for i in range(node_slots):
                expert = expert_of[replica_expert[i]]
                replica_weight[i] = weight[layer, expert] / np.float32(logcnt[layer, expert])
            # Replicas to the ranks of the node.
            _balanced_packing(replica_weight, node_ranks, pack_of, place_of, order, pack_weight, pack_size)
            for i in range(node_slots):
                slot = node * node_slots + pack_of[i] * slots_per_rank + place_of[i]
                phy2log[layer, slot] = expert_of[replica_expert[i]]
                replica[layer, slot] = replica_number[i]
