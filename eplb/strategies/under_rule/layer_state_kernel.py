"""Keeps the rank times of one layer under a dispatch rule, and what a step would change in them.

A step moves, adds or removes replicas of at most two experts. Their shares are computed anew by `replica_shares`, so
the times are exact; those of all other experts stay. Id E stands for an empty slot: it has no load.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import READ_FLOATS, READ_INTS
from eplb.dispatch.replica_shares_kernel import ShareRule, replica_shares
from eplb_traces.jit import helper

Flags = NDArray[np.bool_]
Counts = NDArray[np.int16]

RANKS = f"Tuple(({READ_INTS}, {READ_INTS}, {READ_FLOATS}, {READ_INTS}))"
"""numba type of the fields of `Ranks`."""
FREEDOM = f"Tuple((Array(boolean, 3, 'C', readonly=True), {READ_INTS}, {READ_INTS}, int64))"
"""numba type of the fields of `Freedom`; `allowed` [L, E + 1, R], or [1, E + 1, R] for all layers alike."""
NONE = -1


class Ranks(NamedTuple):
    """The ranks."""

    first_slot: Ints  # [R + 1]
    rank_of_slot: Ints  # [P]
    scale: Floats  # [R] time of one token
    unit_of_rank: Ints  # [R] units, such as nodes, that an expert may have to be spread over


class Freedom(NamedTuple):
    """What a step may do."""

    allowed: Flags  # [E + 1, R] whether a rank may hold an expert
    least: Ints  # [E + 1] fewest replicas of an expert
    most: Ints  # [E + 1] most replicas; an expert that has more already gets no further one
    least_units: int  # fewest units of an expert, 1 or 2


class LayerState(NamedTuple):
    """A layer in the search."""

    rule: ShareRule
    ranks: Ranks
    freedom: Freedom
    load: Floats  # [E + 1]
    fixed: Flags  # [P] slots that keep their expert
    phy2log: Map  # [P]
    count: Ints  # [E + 1] replicas
    slots: Map  # [E + 1, C] slots of each expert, ascending
    share: Floats  # [P] share of its expert's tokens
    held: Counts  # [E + 1, R] replicas of an expert on a rank
    rank_time: Floats  # [R]
    change: Floats  # [R] what the step under examination adds to the time of the ranks that it touches
    is_touched: Flags  # [R]
    touched: Ints  # [R] the first `num_touched`
    num_touched: Ints  # [1]
    num_examined: Ints  # [1] experts examined so far
    new_slots: Map  # [C] replicas of one expert after a step
    new_ranks: Ints  # [C]
    new_share: Floats  # [C]


@helper
def blank_state(rule: ShareRule, ranks: Ranks, freedom: Freedom, most_replicas: int) -> LayerState:
    """Allocate a state for experts with up to so many replicas."""
    num_ids, num_ranks, num_slots = freedom.least.size, ranks.scale.size, ranks.rank_of_slot.size
    return LayerState(
        rule, ranks, freedom, np.zeros(num_ids), np.zeros(num_slots, np.bool_), np.empty(num_slots, np.int32),
        np.zeros(num_ids, np.int64), np.empty((num_ids, most_replicas), np.int32), np.zeros(num_slots),
        np.zeros((num_ids, num_ranks), np.int16), np.zeros(num_ranks), np.zeros(num_ranks),
        np.zeros(num_ranks, np.bool_), np.empty(num_ranks, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64),
        np.empty(most_replicas, np.int32), np.empty(most_replicas, np.int64), np.empty(most_replicas),
    )  # fmt: skip


@helper
def start(state: LayerState, load: Floats, fixed: Flags, phy2log: Map) -> None:
    """Derive the state from a map."""
    empty, rank_of_slot = state.load.size - 1, state.ranks.rank_of_slot
    state.load[:], state.fixed[:], state.phy2log[:] = load, fixed, phy2log
    state.count[:], state.held[:], state.rank_time[:] = 0, 0, 0.0
    for slot in range(phy2log.size):
        expert = phy2log[slot]
        if expert != empty:
            state.slots[expert, state.count[expert]] = slot
            state.held[expert, rank_of_slot[slot]] += 1
        state.count[expert] += 1
    for expert in range(empty):
        num = state.count[expert]
        for i in range(num):
            state.new_ranks[i] = rank_of_slot[state.slots[expert, i]]
        if num > 0:
            replica_shares(state.rule, state.new_ranks[:num], state.new_share[:num])
        for i in range(num):
            slot = state.slots[expert, i]
            rank = rank_of_slot[slot]
            state.share[slot] = state.new_share[i]
            state.rank_time[rank] += state.share[slot] * load[expert] * state.ranks.scale[rank]


@helper
def may_move(state: LayerState, expert: int, leaving: int, coming: int) -> bool:
    """Whether a replica of the expert may leave a slot, and another come into a slot of another rank; NONE: none."""
    empty, freedom, rank_of_slot = state.load.size - 1, state.freedom, state.ranks.rank_of_slot
    if expert == empty:
        return True
    if coming >= 0:
        rank = rank_of_slot[coming]
        if not freedom.allowed[expert, rank] or state.held[expert, rank] > 0:
            return False
        if leaving < 0:
            return state.count[expert] < freedom.most[expert]
    elif state.count[expert] <= freedom.least[expert]:
        return False
    if freedom.least_units < 2:
        return True
    unit = NONE if coming < 0 else state.ranks.unit_of_rank[rank_of_slot[coming]]
    for i in range(state.count[expert]):
        if state.slots[expert, i] != leaving:
            other = state.ranks.unit_of_rank[rank_of_slot[state.slots[expert, i]]]
            if unit >= 0 and other != unit:
                return True
            unit = other
    return False


@helper
def shares_after(state: LayerState, expert: int, leaving: int, coming: int) -> int:
    """Write an expert's slots, ranks and shares after a step into the scratch arrays; returns how many there are."""
    num, is_placed = 0, coming < 0
    for i in range(state.count[expert]):
        slot = state.slots[expert, i]
        if slot == leaving:
            continue
        if not is_placed and slot > coming:
            state.new_slots[num] = coming
            num, is_placed = num + 1, True
        state.new_slots[num] = slot
        num += 1
    if not is_placed:
        state.new_slots[num] = coming
        num += 1
    for i in range(num):
        state.new_ranks[i] = state.ranks.rank_of_slot[state.new_slots[i]]
    replica_shares(state.rule, state.new_ranks[:num], state.new_share[:num])
    return num


@helper
def _touch(state: LayerState, rank: int, tokens: float) -> None:
    if not state.is_touched[rank]:
        state.is_touched[rank] = True
        state.touched[state.num_touched[0]] = rank
        state.num_touched[0] += 1
        state.change[rank] = 0.0
    state.change[rank] += tokens * state.ranks.scale[rank]


@helper
def examine(state: LayerState, expert: int, leaving: int, coming: int) -> None:
    """Add to `change` what it changes if a replica of the expert leaves a slot and another comes; NONE: none.

    `highest_after` ends the examination.
    """
    state.num_examined[0] += 1
    if expert == state.load.size - 1:
        return
    load = state.load[expert]
    if state.count[expert] == 1 and leaving >= 0 and coming >= 0:
        _touch(state, state.ranks.rank_of_slot[leaving], -load)
        _touch(state, state.ranks.rank_of_slot[coming], load)
        return
    for i in range(state.count[expert]):
        slot = state.slots[expert, i]
        _touch(state, state.ranks.rank_of_slot[slot], -load * state.share[slot])
    num = shares_after(state, expert, leaving, coming)
    for i in range(num):
        _touch(state, state.new_ranks[i], load * state.new_share[i])


@helper
def highest_after(state: LayerState, busiest: int) -> float:
    """Largest time, after the examined step, of the given rank and of those that get more."""
    highest = 0.0
    rounding = 1e-12 * state.rank_time[busiest]
    for i in range(state.num_touched[0]):
        rank = state.touched[i]
        if rank == busiest or state.change[rank] > rounding:
            highest = max(highest, state.rank_time[rank] + state.change[rank])
        state.is_touched[rank] = False
    state.num_touched[0] = 0
    return highest


@helper
def _add_time(state: LayerState, expert: int, sign: float) -> None:
    """Add the time of an expert's replicas to their ranks, or take it off."""
    if expert == state.load.size - 1:
        return
    for i in range(state.count[expert]):
        slot = state.slots[expert, i]
        rank = state.ranks.rank_of_slot[slot]
        state.rank_time[rank] += sign * state.load[expert] * state.share[slot] * state.ranks.scale[rank]


@helper
def _relocate(state: LayerState, expert: int, leaving: int, coming: int) -> None:
    """Take a replica out of a slot and put one into another, without the rank times."""
    if expert == state.load.size - 1:
        state.count[expert] += (coming >= 0) - (leaving >= 0)
        if coming >= 0:
            state.share[coming] = 0.0
        return
    num = shares_after(state, expert, leaving, coming)
    for i in range(num):
        state.slots[expert, i] = state.new_slots[i]
        state.share[state.new_slots[i]] = state.new_share[i]
    state.count[expert] = num
    if leaving >= 0:
        state.held[expert, state.ranks.rank_of_slot[leaving]] -= 1
    if coming >= 0:
        state.held[expert, state.ranks.rank_of_slot[coming]] += 1


@helper
def exchange(state: LayerState, slot: int, other_slot: int) -> None:
    """Exchange the experts of two slots."""
    expert, other = state.phy2log[slot], state.phy2log[other_slot]
    _add_time(state, expert, -1.0)
    _add_time(state, other, -1.0)
    _relocate(state, expert, slot, other_slot)
    _relocate(state, other, other_slot, slot)
    _add_time(state, expert, 1.0)
    _add_time(state, other, 1.0)
    state.phy2log[slot], state.phy2log[other_slot] = other, expert


@helper
def replace(state: LayerState, slot: int, receiver: int) -> None:
    """Give a slot to another expert."""
    donor = state.phy2log[slot]
    _add_time(state, donor, -1.0)
    _add_time(state, receiver, -1.0)
    _relocate(state, donor, slot, NONE)
    _relocate(state, receiver, NONE, slot)
    _add_time(state, donor, 1.0)
    _add_time(state, receiver, 1.0)
    state.phy2log[slot] = receiver
