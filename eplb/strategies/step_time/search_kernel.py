"""Shortens the step time of a layer: exchanges slots between ranks, and gives redundant slots to other experts.

A step is kept if it lowers the sum over ranks and loads of a power of the expected seconds: a soft maximum. The search
knows one or several loads of the layer, say one of each phase, each in parts of its own reference.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import (
    MIN_RELATIVE_GAIN,
    READ_FLOATS_2D,
    READ_INTS,
    first_random,
    holds,
    next_random,
    power,
    random_below,
)
from eplb.strategies.step_time.expected_time_kernel import expected_seconds, fill_moments, num_moments
from eplb_traces.jit import helper, njit

EXCHANGES_PER_CHANGE = 3  # exchanges tried for each slot that is tried with another expert

Moments = NDArray[np.float64]


class Task(NamedTuple):
    """What does not change during the search of a layer."""

    rows: Floats
    """[E + 1, D] expected rows of each expert under each load; 0 for id E."""
    per_reference: Floats
    """[D] 1 / seconds that count as 1."""
    table: Floats
    """[G, 11] the grouped FFN."""
    first_slot: Ints
    """[R + 1]"""
    rank_of_slot: Ints
    """[P]"""


class LayerState(NamedTuple):
    """A placement of the layer and what follows from it. Id E stands for a cold slot, to which no token is sent."""

    held: Map
    """[P] expert of each slot."""
    num_replicas: Ints
    """[E + 1] slots of each expert."""
    unit: Moments
    """[E + 1, D, M] moments of one replica."""
    sums: Moments
    """[R, D, M] moments of each rank."""
    cost: Floats
    """[R] sum over loads of a power of the seconds."""


@helper
def _blank_state(task: Task, held: Map) -> LayerState:
    num_ids, num_loads = task.rows.shape
    num_ranks, width = task.first_slot.size - 1, num_moments(task.table)
    return LayerState(
        held,
        np.zeros(num_ids, dtype=np.int64),
        np.zeros((num_ids, num_loads, width)),
        np.zeros((num_ranks, num_loads, width)),
        np.zeros(num_ranks),
    )


@helper
def _set_count(task: Task, state: LayerState, expert: int, count: int) -> None:
    """Give an expert another number of replicas; its ranks are to be refreshed."""
    state.num_replicas[expert] = count
    if count > 0:
        for load in range(task.rows.shape[1]):
            fill_moments(task.rows[expert, load], count, task.table, state.unit[expert, load])


@helper
def _cost_of(task: Task, sums: Floats, rank: int, load: int, doublings: int) -> float:
    num_slots = task.first_slot[rank + 1] - task.first_slot[rank]
    seconds = expected_seconds(sums, num_slots, task.table)
    return power(seconds * task.per_reference[load], doublings)


@helper
def _refresh_rank(task: Task, state: LayerState, rank: int, doublings: int) -> None:
    """Add up a rank anew from its slots."""
    state.sums[rank] = 0.0
    state.cost[rank] = 0.0
    for load in range(task.rows.shape[1]):
        sums = state.sums[rank, load]
        for slot in range(task.first_slot[rank], task.first_slot[rank + 1]):
            unit = state.unit[state.held[slot], load]
            for i in range(sums.size):
                sums[i] += unit[i]
        state.cost[rank] += _cost_of(task, sums, rank, load, doublings)


@helper
def _refresh_all(task: Task, state: LayerState, doublings: int) -> None:
    """Compute counts, moments and costs of a placement."""
    state.num_replicas[:] = 0
    for slot in range(state.held.size):
        state.num_replicas[state.held[slot]] += 1
    for expert in range(state.num_replicas.size):
        _set_count(task, state, expert, state.num_replicas[expert])
    for rank in range(task.first_slot.size - 1):
        _refresh_rank(task, state, rank, doublings)


@helper
def _try_exchange(
    task: Task, state: LayerState, slot: int, partner_slot: int, scratch: Floats, doublings: int
) -> bool:  # fmt: skip
    """Exchange the experts of two slots if that lowers the cost of their ranks; `scratch` holds one rank's moments."""
    rank, partner = task.rank_of_slot[slot], task.rank_of_slot[partner_slot]
    expert, other, cold = state.held[slot], state.held[partner_slot], task.rows.shape[0] - 1
    if rank == partner or expert == other:
        return False
    limit = (state.cost[rank] + state.cost[partner]) * (1 - MIN_RELATIVE_GAIN)
    after = 0.0
    for load in range(task.rows.shape[1]):
        leaving, coming = state.unit[expert, load], state.unit[other, load]
        for i in range(scratch.size):
            scratch[i] = state.sums[rank, load, i] + (coming[i] - leaving[i])
        after += _cost_of(task, scratch, rank, load, doublings)
        for i in range(scratch.size):
            scratch[i] = state.sums[partner, load, i] + (leaving[i] - coming[i])
        after += _cost_of(task, scratch, partner, load, doublings)
        if after >= limit:
            return False
    if expert != cold and holds(state.held, task.first_slot[partner], task.first_slot[partner + 1], expert):
        return False
    if other != cold and holds(state.held, task.first_slot[rank], task.first_slot[rank + 1], other):
        return False
    state.held[slot], state.held[partner_slot] = other, expert
    _refresh_rank(task, state, rank, doublings)
    _refresh_rank(task, state, partner, doublings)
    return True


@helper
def _change_slot(task: Task, state: LayerState, slot: int, expert: int, doublings: int) -> float:
    """Give a slot to another expert, or make it cold; return by how much the cost of all ranks concerned grew."""
    leaving, cold, growth = state.held[slot], task.rows.shape[0] - 1, 0.0
    state.held[slot] = expert
    _set_count(task, state, leaving, state.num_replicas[leaving] - 1)
    _set_count(task, state, expert, state.num_replicas[expert] + 1)
    for rank in range(task.first_slot.size - 1):
        first, last = task.first_slot[rank], task.first_slot[rank + 1]
        concerned = first <= slot < last
        concerned = concerned or (leaving != cold and holds(state.held, first, last, leaving))
        concerned = concerned or (expert != cold and holds(state.held, first, last, expert))
        if concerned:
            growth -= state.cost[rank]
            _refresh_rank(task, state, rank, doublings)
            growth += state.cost[rank]
    return growth


@helper
def _try_change(task: Task, state: LayerState, slot: int, expert: int, doublings: int) -> bool:
    """Give a redundant or cold slot to another expert, or make it cold, if that lowers the cost of all ranks."""
    leaving, cold = state.held[slot], task.rows.shape[0] - 1
    rank = task.rank_of_slot[slot]
    if leaving == expert or (leaving != cold and state.num_replicas[leaving] == 1):
        return False
    if expert != cold and holds(state.held, task.first_slot[rank], task.first_slot[rank + 1], expert):
        return False
    before = state.cost.sum()
    if _change_slot(task, state, slot, expert, doublings) < -MIN_RELATIVE_GAIN * before:
        return True
    _change_slot(task, state, slot, leaving, doublings)
    return False


@helper
def _other_expert(task: Task, state: LayerState, busy_slot: int, may_cool: bool, random: np.uint64) -> int:
    """What to try in a slot: half of the time an expert of the costliest rank, else any expert or none."""
    cold, kind = task.rows.shape[0] - 1, random_below(random, 4)
    if kind == 0:
        return random_below(next_random(random), cold)
    return cold if kind == 1 and may_cool else state.held[busy_slot]


@helper
def _descend(
    task: Task, state: LayerState, doublings: int, num_tries: int, may_cool: bool, random: np.uint64
) -> None:  # fmt: skip
    """Try random steps, every second exchange out of the costliest rank."""
    num_slots, cold = state.held.size, task.rows.shape[0] - 1
    scratch = np.empty(state.sums.shape[2])  # moments of one rank
    _refresh_all(task, state, doublings)
    costliest = np.argmax(state.cost)
    for turn in range(num_tries):
        random = next_random(random)
        slot = random_below(random, num_slots)
        random = next_random(random)
        first, last = task.first_slot[costliest], task.first_slot[costliest + 1]
        busy_slot = first + random_below(random, last - first)
        random = next_random(random)
        if num_slots > cold and turn % (EXCHANGES_PER_CHANGE + 1) == 0:
            expert = _other_expert(task, state, busy_slot, may_cool, random)
            kept = (expert != cold or may_cool) and _try_change(task, state, slot, expert, doublings)
        else:
            other = busy_slot if turn & 1 == 0 else random_below(random, num_slots)
            kept = _try_exchange(task, state, slot, other, scratch, doublings)
        if kept:
            costliest = np.argmax(state.cost)


@njit(
    f"void(float64[:, :, ::1], float64[:, ::1], {READ_FLOATS_2D}, {READ_INTS}, {READ_INTS}, int64, int64, uint64,"
    " int64, boolean, int32[:, ::1])"
)
def search_layers(
    rows: Floats, per_reference: Floats, table: Floats, first_slot: Ints, rank_of_slot: Ints, doublings: int,
    num_tries: int, seed: int, first_layer: int, may_cool: bool, held: Map,
) -> None:  # fmt: skip
    """Improve every layer.

    Parameters
    ----------
    rows
        [L, E + 1, D] expected rows of each expert under each load; 0 for id E.
    per_reference
        [L, D] 1 / seconds that count as 1 under each load.
    table
        [G, 11] the grouped FFN: `eplb.cost.RankFfn.table`.
    first_slot, rank_of_slot
        [R + 1] first slot of each rank, then P; [P].
    doublings, num_tries
        The power is 2 ** doublings, for 2 to 5; steps tried.
    seed, first_layer
        Layer l of this call draws its random numbers from seed and first_layer + l.
    may_cool
        Whether redundant slots may get no tokens.
    held
        [L, P] the placement to start from, changed in place; E is a cold slot.
    """
    for layer in range(rows.shape[0]):
        task = Task(rows[layer], per_reference[layer], table, first_slot, rank_of_slot)
        state = _blank_state(task, held[layer])
        random = first_random(seed, first_layer + layer)
        for _ in range(doublings):
            random = next_random(random)
        _descend(task, state, doublings, num_tries, may_cool, random)
