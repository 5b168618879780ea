"""Exchanges replicas to lower a soft maximum of rank times plus a locality penalty on each off-node replica.

The soft maximum of times t at sharpness b is log(sum(exp(b t))) / b, at most log(R) / b above the plain one. It is
smooth: taking load off one of many equally busy ranks counts, as it does not under the plain maximum.
"""

from typing import NamedTuple

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import READ_FLOATS, READ_INTS, first_random, holds, next_random, sum_rank_time
from eplb_traces.jit import helper, njit

MIN_GAIN = 1e-9


class LayerState(NamedTuple):
    """A layer's placement, the topology it is on and scratch arrays."""

    first_slot: Ints  # [R + 1]
    rank_of_slot: Ints  # [P]
    node_of_rank: Ints  # [R]
    rank_scale: Floats  # [R] time of a token
    load: Floats  # [E]
    home_of_expert: Ints  # [E] node
    count: Ints  # [E] replicas
    phy2log: Map  # [P]
    time: Floats  # [R]
    change: Floats  # [R] of the time by a trial move; 0 between trials
    touched: Ints  # [2 P] ranks whose time changes


@helper
def _add_to_holders(
    phy2log: Map, rank_of_slot: Ints, rank_scale: Floats, expert: int, more: float, change: Floats, touched: Ints,
    num_touched: int,
) -> int:  # fmt: skip
    """Note that every replica of the expert takes `more`; returns the number of touched ranks, each counted once."""
    for slot in range(phy2log.size):
        if phy2log[slot] == expert:
            rank = rank_of_slot[slot]
            change[rank] += more * rank_scale[rank]
            seen = False
            for i in range(num_touched):
                seen = seen or touched[i] == rank
            if not seen:
                touched[num_touched] = rank
                num_touched += 1
    return num_touched


@helper
def _descend(state: LayerState, price: float, sharpness: float, num_tries: int, random: np.uint64) -> None:
    """Try exchanges of two replicas and, every third turn, to replace a replica by one more of another expert.

    Every second turn of each kind takes load off the busiest rank. A try is kept if soft maximum plus penalty falls.
    """
    first_slot, phy2log, count, load = state.first_slot, state.phy2log, state.count, state.load
    time, change, touched, rank_scale = state.time, state.change, state.touched, state.rank_scale
    rank_of_slot, node_of_rank, home_of_expert = state.rank_of_slot, state.node_of_rank, state.home_of_expert
    busiest = np.argmax(time)
    weight = np.exp(sharpness * (time - time[busiest]))
    total, offset = weight.sum(), time[busiest]
    for turn in range(num_tries):
        random = next_random(random)
        if turn & 1 == 0:
            width = np.uint64(first_slot[busiest + 1] - first_slot[busiest])
            slot = first_slot[busiest] + np.int64((random >> np.uint64(4)) % width)
        else:
            slot = np.int64((random >> np.uint64(4)) % np.uint64(phy2log.size))
        other_slot = np.int64((random >> np.uint64(34)) % np.uint64(phy2log.size))
        rank, other_rank = rank_of_slot[slot], rank_of_slot[other_slot]
        expert, other = phy2log[slot], phy2log[other_slot]
        if rank == other_rank or expert == other:
            continue
        if holds(phy2log, first_slot[other_rank], first_slot[other_rank + 1], expert):
            continue
        replaces = turn % 3 == 0  # a new replica of `expert` replaces the one of `other`
        node, other_node = node_of_rank[rank], node_of_rank[other_rank]
        home, other_home = home_of_expert[expert], home_of_expert[other]
        off_node = np.int64(other_node != home) - np.int64(other_node != other_home)
        if replaces:
            if count[other] == 1 or count[expert] == time.size:
                continue
            unit, other_unit = load[expert] / (count[expert] + 1), load[other] / (count[other] - 1)
            num_touched = _add_to_holders(
                phy2log, rank_of_slot, rank_scale, expert, unit - load[expert] / count[expert], change, touched, 0
            )
            num_touched = _add_to_holders(
                phy2log, rank_of_slot, rank_scale, other, other_unit - load[other] / count[other], change, touched,
                num_touched,
            )  # fmt: skip
            change[other_rank] += (unit - other_unit) * rank_scale[other_rank]
        else:
            if holds(phy2log, first_slot[rank], first_slot[rank + 1], other):
                continue
            moved = load[expert] / count[expert] - load[other] / count[other]
            off_node += np.int64(node != other_home) - np.int64(node != home)
            if -(weight[rank] if moved > 0 else weight[other_rank]) >= total * np.expm1(-sharpness * price * off_node):
                continue  # not even if that rank became idle
            change[rank] = -moved * rank_scale[rank]
            change[other_rank] = moved * rank_scale[other_rank]
            touched[0], touched[1], num_touched = rank, other_rank, 2
        growth = 0.0
        for i in range(num_touched):
            touched_rank = touched[i]
            growth += np.exp(sharpness * (time[touched_rank] + change[touched_rank] - offset)) - weight[touched_rank]
        kept = growth < total * np.expm1(-sharpness * (price * off_node + MIN_GAIN))
        for i in range(num_touched):
            if kept:
                time[touched[i]] += change[touched[i]]
            change[touched[i]] = 0.0
        if kept:
            phy2log[other_slot] = expert
            if replaces:
                count[expert] += 1
                count[other] -= 1
            else:
                phy2log[slot] = other
            busiest = np.argmax(time)
            offset = time[busiest]
            weight[:] = np.exp(sharpness * (time - offset))
            total = weight.sum()


@njit(
    f"void(float64[:, ::1], int64[:, ::1], {READ_INTS}, {READ_INTS}, {READ_FLOATS}, float64, float64[::1],"
    " int64, uint64, int64, int64[:, ::1], int32[:, ::1])"
)
def improve_locality(
    load: Floats, home_of_expert: Ints, first_slot: Ints, node_of_rank: Ints, rank_scale: Floats,
    price: float, sharpness: Floats, num_tries: int, seed: int, first_layer: int, count: Ints, phy2log: Map,
) -> None:  # fmt: skip
    """Improve every layer's map in place.

    Parameters
    ----------
    load
        [L, E], each layer scaled so that the mean rank time is 1.
    home_of_expert
        [L, E] node.
    first_slot, node_of_rank, rank_scale
        [R + 1] first slot of each rank, then P; [R]; [R] 1 / relative speed.
    price
        Locality penalty of one off-node replica, in mean rank times.
    sharpness
        One descent for each.
    num_tries
        Moves tried in each descent.
    seed, first_layer
        Layer l of this call draws its random numbers from seed and first_layer + l.
    count, phy2log
        [L, E], [L, P] in and out; no expert twice on a rank.
    """
    time, change = np.empty(rank_scale.size), np.zeros(rank_scale.size)
    rank_of_slot = np.repeat(np.arange(rank_scale.size), np.diff(first_slot))
    touched = np.empty(2 * rank_of_slot.size, np.int64)
    for layer in range(load.shape[0]):
        state = LayerState(
            first_slot, rank_of_slot, node_of_rank, rank_scale, load[layer], home_of_expert[layer], count[layer],
            phy2log[layer], time, change, touched,
        )  # fmt: skip
        sum_rank_time(load[layer] / count[layer], phy2log[layer], rank_of_slot, rank_scale, time)
        random = first_random(seed, first_layer + layer)
        for sharp in sharpness:
            _descend(state, price, sharp, num_tries, random)
            random = next_random(random)
