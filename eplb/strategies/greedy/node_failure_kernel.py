"""Exchanges replicas until every expert is on two nodes, then lowers the busiest rank under that condition."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import MIN_RELATIVE_GAIN, READ_FLOATS, READ_FLOATS_2D, READ_INTS, holds, sum_rank_time
from eplb_traces.jit import helper, njit


class LayerState(NamedTuple):
    """A layer's placement and the topology it is on."""

    first_slot: Ints  # [R + 1]
    rank_of_slot: Ints  # [P]
    node_of_rank: Ints  # [R]
    rank_scale: Floats  # [R] time of a token
    phy2log: Map  # [P]
    count: Ints  # [E] replicas
    on_node: Ints  # [E, N] replicas on each node
    unit: Floats  # [E] load of a replica
    rank_time: Floats  # [R]


@helper
def _may_exchange(state: LayerState, slot: int, other: int) -> bool:
    """Whether no rank would hold an expert twice and neither expert would have all its replicas on the other's node."""
    rank, other_rank = state.rank_of_slot[slot], state.rank_of_slot[other]
    mine, theirs = state.phy2log[slot], state.phy2log[other]
    first_slot = state.first_slot
    if rank == other_rank or holds(state.phy2log, first_slot[other_rank], first_slot[other_rank + 1], mine):
        return False
    if holds(state.phy2log, first_slot[rank], first_slot[rank + 1], theirs):
        return False
    node, other_node = state.node_of_rank[rank], state.node_of_rank[other_rank]
    if node == other_node:
        return True
    on_node, count = state.on_node, state.count
    return on_node[mine, other_node] + 1 < count[mine] and on_node[theirs, node] + 1 < count[theirs]


@helper
def _exchange(state: LayerState, slot: int, other: int) -> None:
    phy2log, unit, on_node = state.phy2log, state.unit, state.on_node
    rank, other_rank = state.rank_of_slot[slot], state.rank_of_slot[other]
    node, other_node = state.node_of_rank[rank], state.node_of_rank[other_rank]
    mine, theirs = phy2log[slot], phy2log[other]
    state.rank_time[rank] -= (unit[mine] - unit[theirs]) * state.rank_scale[rank]
    state.rank_time[other_rank] += (unit[mine] - unit[theirs]) * state.rank_scale[other_rank]
    on_node[mine, node] -= 1
    on_node[mine, other_node] += 1
    on_node[theirs, other_node] -= 1
    on_node[theirs, node] += 1
    phy2log[slot], phy2log[other] = theirs, mine


@helper
def _exchange_best(state: LayerState, begin: int, end: int, only: int, limit: float) -> bool:
    """Exchange a slot of begin..end-1 for the one that leaves their two ranks lowest, below `limit`; False if none is.

    With `only` >= 0 the slot must hold that expert and its partner must be on another node. Ties go to the lowest slot.
    """
    phy2log, rank_of_slot, node_of_rank, unit = state.phy2log, state.rank_of_slot, state.node_of_rank, state.unit
    rank_scale, rank_time = state.rank_scale, state.rank_time
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
            if higher < limit and _may_exchange(state, slot, other):
                limit, best_slot, best_other = higher, slot, other
    if best_slot >= 0:
        _exchange(state, best_slot, best_other)
    return best_slot >= 0


@njit(
    f"void({READ_FLOATS_2D}, {READ_INTS}, {READ_INTS}, {READ_INTS}, {READ_FLOATS}, {READ_FLOATS}, int32[:, ::1],"
    " float64[:, ::1], boolean[::1])"
)
def put_layers_on_two_nodes(
    load: Floats, first_slot: Ints, rank_of_slot: Ints, node_of_rank: Ints, rank_scale: Floats, target: Floats,
    phy2log: Map, rank_time: Floats, done: NDArray[np.bool_],
) -> None:  # fmt: skip
    """Put every expert on two nodes, then lower the busiest rank, layer by layer. Ties go to the lowest slot.

    Parameters
    ----------
    load
        [L, E]
    first_slot, rank_of_slot, node_of_rank, rank_scale
        [R + 1], [P], [R], [R]
    target
        [L] rank time at which a layer is good enough.
    phy2log
        [L, P] in and out; every slot holds an expert, every expert has two replicas or more, none twice on a rank.
    rank_time, done
        [L, R], [L] out: time of each rank; False where an expert on one node found no exchange.
    """
    num_experts, num_ranks = load.shape[1], rank_scale.size
    count, unit = np.empty(num_experts, np.int64), np.empty(num_experts)
    on_node = np.empty((num_experts, node_of_rank[num_ranks - 1] + 1), np.int64)
    for layer in range(load.shape[0]):
        experts, ranks = phy2log[layer], rank_time[layer]
        on_node[:] = 0
        for slot in range(experts.size):
            on_node[experts[slot], node_of_rank[rank_of_slot[slot]]] += 1
        for expert in range(num_experts):
            count[expert] = on_node[expert].sum()
            unit[expert] = load[layer, expert] / count[expert]
        sum_rank_time(unit, experts, rank_of_slot, rank_scale, ranks)
        state = LayerState(
            first_slot, rank_of_slot, node_of_rank, rank_scale, experts, count, on_node, unit, ranks
        )  # fmt: skip
        done[layer] = True
        for expert in range(num_experts):
            if on_node[expert].max() == count[expert]:
                done[layer] = done[layer] and _exchange_best(state, 0, experts.size, expert, np.inf)
        improved = done[layer]
        while improved:
            busiest = ranks.argmax()
            limit = ranks[busiest] * (1 - MIN_RELATIVE_GAIN)
            improved = ranks[busiest] > target[layer] and _exchange_best(
                state, first_slot[busiest], first_slot[busiest + 1], -1, limit
            )
