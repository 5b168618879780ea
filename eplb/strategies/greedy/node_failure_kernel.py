"""Exchanges that put every expert on two nodes, then exchanges that lower the busiest rank and keep it so.

Knows arrays only. The descent is the one of `swap_descent` with single exchanges, each of them the best of all.
"""

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb_traces.jit import njit

MIN_RELATIVE_GAIN = 1e-9  # a step must lower the busiest rank by this much, or rounding could make it circle


@njit("boolean(int32[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[:, ::1], int64, int64)")
def _may_exchange(
    phy2log: Map,
    first_slot: Ints,
    rank_of_slot: Ints,
    node_of_rank: Ints,
    count: Ints,
    on_node: NDArray[np.int64],
    slot: int,
    other: int,
) -> bool:
    """Whether no rank would hold an expert twice and neither expert would have all its copies on the other's node."""
    rank, other_rank = rank_of_slot[slot], rank_of_slot[other]
    if rank == other_rank:
        return False
    mine, theirs = phy2log[slot], phy2log[other]
    for held in range(first_slot[other_rank], first_slot[other_rank + 1]):
        if phy2log[held] == mine:
            return False
    for held in range(first_slot[rank], first_slot[rank + 1]):
        if phy2log[held] == theirs:
            return False
    node, other_node = node_of_rank[rank], node_of_rank[other_rank]
    if node == other_node:
        return True
    return on_node[mine, other_node] + 1 < count[mine] and on_node[theirs, node] + 1 < count[theirs]


@njit(
    "boolean(int32[::1], int64[::1], int64[::1], int64[::1], float64[::1], int64[::1], int64[:, ::1], float64[::1],"
    " float64[::1], int64, int64, int64, float64)"
)
def _exchange_best(
    phy2log: Map,
    first_slot: Ints,
    rank_of_slot: Ints,
    node_of_rank: Ints,
    rank_scale: Floats,
    count: Ints,
    on_node: NDArray[np.int64],
    unit: Floats,
    rank_time: Floats,
    begin: int,
    end: int,
    only: int,
    limit: float,
) -> bool:
    """Exchange a slot of begin..end-1 for the one that leaves their two ranks lowest, below `limit`; False if none is.

    With `only` >= 0 the slot must hold that expert and its partner must be on another node. Ties go to the lowest slot.
    """
    best_slot, best_other = -1, -1
    for slot in range(begin, end):
        if only >= 0 and phy2log[slot] != only:
            continue
        rank = rank_of_slot[slot]
        for other in range(phy2log.size):
            other_rank = rank_of_slot[other]
            if only >= 0 and node_of_rank[rank] == node_of_rank[other_rank]:
                continue
            moved = unit[phy2log[slot]] - unit[phy2log[other]]
            higher = max(
                rank_time[rank] - moved * rank_scale[rank], rank_time[other_rank] + moved * rank_scale[other_rank]
            )
            if higher < limit and _may_exchange(
                phy2log, first_slot, rank_of_slot, node_of_rank, count, on_node, slot, other
            ):
                limit, best_slot, best_other = higher, slot, other
    if best_slot < 0:
        return False
    rank, other_rank = rank_of_slot[best_slot], rank_of_slot[best_other]
    mine, theirs = phy2log[best_slot], phy2log[best_other]
    rank_time[rank] -= (unit[mine] - unit[theirs]) * rank_scale[rank]
    rank_time[other_rank] += (unit[mine] - unit[theirs]) * rank_scale[other_rank]
    on_node[mine, node_of_rank[rank]] -= 1
    on_node[mine, node_of_rank[other_rank]] += 1
    on_node[theirs, node_of_rank[other_rank]] -= 1
    on_node[theirs, node_of_rank[rank]] += 1
    phy2log[best_slot], phy2log[best_other] = theirs, mine
    return True


@njit(
    "void(Array(float64, 2, 'C', readonly=True), int64[::1], int64[::1], int64[::1], float64[::1], float64[::1],"
    " int32[:, ::1], float64[:, ::1], boolean[::1])"
)
def span_layers(
    load: Floats,
    first_slot: Ints,
    rank_of_slot: Ints,
    node_of_rank: Ints,
    rank_scale: Floats,
    target: Floats,
    phy2log: Map,
    rank_time: Floats,
    done: NDArray[np.bool_],
) -> None:
    """Repair and descend, layer by layer. Deterministic; ties go to the lowest slot.

    Parameters
    ----------
    load
        [L, E]
    first_slot, rank_of_slot, node_of_rank, rank_scale
        [R + 1], [P], [R], [R]
    target
        [L] rank time at which a layer is good enough.
    phy2log
        [L, P] in and out; every slot holds an expert, every expert has two copies or more, none twice on a rank.
    rank_time, done
        [L, R], [L] out: time of each rank; False where an expert on one node found no exchange.
    """
    num_experts, num_ranks = load.shape[1], rank_scale.size
    num_nodes = node_of_rank[num_ranks - 1] + 1
    on_node = np.empty((num_experts, num_nodes), dtype=np.int64)
    count = np.empty(num_experts, dtype=np.int64)
    unit = np.empty(num_experts, dtype=np.float64)
    for layer in range(load.shape[0]):
        experts, ranks = phy2log[layer], rank_time[layer]
        on_node[:] = 0
        count[:] = 0
        ranks[:] = 0.0
        for slot in range(experts.size):
            on_node[experts[slot], node_of_rank[rank_of_slot[slot]]] += 1
            count[experts[slot]] += 1
        for expert in range(num_experts):
            unit[expert] = load[layer, expert] / count[expert]
        for slot in range(experts.size):
            ranks[rank_of_slot[slot]] += unit[experts[slot]] * rank_scale[rank_of_slot[slot]]
        done[layer] = True
        for expert in range(num_experts):
            if on_node[expert].max() == count[expert]:
                done[layer] = done[layer] and _exchange_best(
                    experts, first_slot, rank_of_slot, node_of_rank, rank_scale, count, on_node, unit, ranks,
                    0, experts.size, expert, np.inf,
                )  # fmt: skip
        helped = done[layer]
        while helped:
            busiest = 0
            for rank in range(1, num_ranks):
                if ranks[rank] > ranks[busiest]:
                    busiest = rank
            helped = ranks[busiest] > target[layer] and _exchange_best(
                experts, first_slot, rank_of_slot, node_of_rank, rank_scale, count, on_node, unit, ranks,
                first_slot[busiest], first_slot[busiest + 1], -1, ranks[busiest] * (1 - MIN_RELATIVE_GAIN),
            )  # fmt: skip
