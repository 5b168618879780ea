"""Takes steps on a layer: exchange two replicas, replace one, undo a step that is not needed.

Id E stands for an empty slot: it has no load and costs no fetch.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import fetches_saved, fetches_to_add, link_slots
from eplb_traces.jit import helper

Counts = NDArray[np.int16]
Flags = NDArray[np.bool_]

ROUNDING = 1e-11  # a rank is over its limit when it is so by more than this part of the mean rank load


class LayerState(NamedTuple):
    """A layer in the search. Slots of an expert are chained: from `head`, by `following`, to -1."""

    first_slot: Ints  # [R + 1]
    rank_of_slot: Ints  # [P]
    load: Floats  # [E + 1]
    limit: Floats  # [R]
    held_before: Counts  # [E + 1, R] replicas of an expert on a rank, in the live placement
    phy2log: Map  # [P]
    replica_load: Floats  # [E + 1] load of one replica
    num_replicas: Ints  # [E + 1]
    held: Counts  # [E + 1, R] replicas of an expert on a rank
    head: Map  # [E + 1]
    following: Map  # [P]
    rank_load: Floats  # [R]
    overload: Floats  # [R]
    touched: Flags  # [R] the rank has other experts than at first: only there a step may cost less than its two fetches
    changed: Flags  # [R] the last step changed the rank's load or experts


@helper
def _link(head: Map, following: Map, expert: int, slot: int) -> None:
    """Put a slot into the chain of its expert; empty slots are in none."""
    if expert < head.size - 1:
        following[slot] = head[expert]
        head[expert] = slot


@helper
def _unlink(head: Map, following: Map, expert: int, slot: int) -> None:
    """Take a slot out of the chain of its expert."""
    at = head[expert]
    if at == slot:
        head[expert] = following[slot]
    elif at >= 0:
        while following[at] != slot:
            at = following[at]
        following[at] = following[slot]


@helper
def start(state: LayerState, phy2log: Map) -> None:
    """Derive the state from a map."""
    empty = state.load.size - 1
    state.phy2log[:] = phy2log
    state.num_replicas[:], state.held[:], state.rank_load[:] = 0, 0, 0.0
    link_slots(phy2log, state.head, state.following)
    for slot in range(phy2log.size):
        state.num_replicas[phy2log[slot]] += 1
        state.held[phy2log[slot], state.rank_of_slot[slot]] += 1
    state.head[empty] = -1
    state.held[empty] = 0  # a rank may have any number of empty slots
    state.num_replicas[empty] = phy2log.size + 2  # and each of them may be filled
    state.replica_load[:] = state.load / np.maximum(1, state.num_replicas)
    for slot in range(phy2log.size):
        state.rank_load[state.rank_of_slot[slot]] += state.replica_load[phy2log[slot]]


@helper
def exchange(state: LayerState, slot: int, other_slot: int) -> None:
    """Exchange the experts of two slots of two ranks."""
    phy2log = state.phy2log
    for here, there in ((slot, other_slot), (other_slot, slot)):
        expert, rank = phy2log[here], state.rank_of_slot[here]
        state.rank_load[rank] += state.replica_load[phy2log[there]] - state.replica_load[expert]
        state.changed[rank] = state.touched[rank] = True
        if expert < state.num_replicas.size - 1:
            state.held[expert, rank] -= 1
            state.held[expert, state.rank_of_slot[there]] += 1
        _unlink(state.head, state.following, expert, here)
    phy2log[slot], phy2log[other_slot] = phy2log[other_slot], phy2log[slot]
    _link(state.head, state.following, phy2log[slot], slot)
    _link(state.head, state.following, phy2log[other_slot], other_slot)


@helper
def replace(state: LayerState, slot: int, receiver: int) -> None:
    """Give a slot to another expert; both experts split their load anew."""
    donor, rank = state.phy2log[slot], state.rank_of_slot[slot]
    state.changed[rank] = state.touched[rank] = True
    state.rank_load[rank] -= state.replica_load[donor]
    _unlink(state.head, state.following, donor, slot)
    for step in (-1, 1):
        expert = receiver if step > 0 else donor
        if expert < state.num_replicas.size - 1:
            state.held[expert, rank] += step
            state.num_replicas[expert] += step
            replica_load = state.load[expert] / state.num_replicas[expert]
            at = state.head[expert]
            while at >= 0:
                state.rank_load[state.rank_of_slot[at]] += replica_load - state.replica_load[expert]
                state.changed[state.rank_of_slot[at]] = True
                at = state.following[at]
            state.replica_load[expert] = replica_load
    state.rank_load[rank] += state.replica_load[receiver]
    state.phy2log[slot] = receiver
    _link(state.head, state.following, receiver, slot)


@helper
def undo_one(state: LayerState, live: Map, first_live: Ints) -> bool:
    """Save a fetch under the limits: give a slot back to an expert that its rank had, or exchange; False if neither.

    `live` [Q] and `first_live` [R + 1] are the experts that each rank had.
    """
    phy2log, held, before, replica_load = state.phy2log, state.held, state.held_before, state.replica_load
    for slot in range(phy2log.size):
        expert, rank = phy2log[slot], state.rank_of_slot[slot]
        if before[expert, rank] > 0:
            continue
        end = first_live[rank + 1] if state.num_replicas[expert] > 1 else 0
        for live_slot in range(first_live[rank], end):
            former = live[live_slot]
            if held[former, rank] > 0 or former == state.num_replicas.size - 1:
                continue
            replace(state, slot, former)
            if (state.rank_load - state.limit).max() <= ROUNDING:
                return True
            replace(state, slot, expert)
        for other_slot in range(phy2log.size):
            other, partner = phy2log[other_slot], state.rank_of_slot[other_slot]
            if not state.touched[partner] or partner == rank or held[expert, partner] > 0 or held[other, rank] > 0:
                continue
            moved = replica_load[expert] - replica_load[other]
            if state.rank_load[rank] - moved > state.limit[rank]:
                continue
            if state.rank_load[partner] + moved > state.limit[partner]:
                continue
            fetches = fetches_to_add(held, before, expert, partner) + fetches_to_add(held, before, other, rank)
            if fetches - 1 - fetches_saved(held, before, other, partner) < 0:
                exchange(state, slot, other_slot)
                return True
    return False
