"""Who sends what to whom, and in which batch, when a layer goes from one placement to another. Knows arrays only.

Batches are the colours of an edge colouring: senders on one side, receivers on the other, an edge for every copy that
crosses ranks. By König's theorem the colours needed are the most copies that one rank sends or receives; alternating
paths reach that number (the usual constructive proof, as in Diestel, Graph Theory, proposition 5.3.1).
"""

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Ints, Map
from eplb_traces.jit import njit

Hops = NDArray[np.int8]

NO_COPY, SAME_RANK, SAME_NODE, OTHER_NODE = -1, 0, 1, 2


@njit("int64(int64, int64, int64[::1])")
def _hop(rank: int, source_rank: int, node_of_rank: Ints) -> int:
    """How far apart two ranks are."""
    if rank == source_rank:
        return SAME_RANK
    return SAME_NODE if node_of_rank[rank] == node_of_rank[source_rank] else OTHER_NODE


@njit("void(int32[::1], int32[::1], int64[::1], int64, int32[::1], int8[::1])")
def _find_local(old: Map, new: Map, first_slot: Ints, num_ranks: int, source: Map, hop: Hops) -> None:
    """Serve slots from their own rank where it can be; the others are marked OTHER_NODE with source -1.

    A rank that needs an expert for several slots fetches it for the first of them, which is the source of the others.
    """
    source[:] = -1
    hop[:] = NO_COPY
    for rank in range(num_ranks):
        for slot in range(first_slot[rank], first_slot[rank + 1]):
            expert = new[slot]
            if expert < 0 or expert == old[slot]:
                continue
            hop[slot] = OTHER_NODE
            for held in range(first_slot[rank + 1] - 1, first_slot[rank] - 1, -1):
                if old[held] == expert:
                    source[slot], hop[slot] = held, SAME_RANK
            for before in range(first_slot[rank], slot):
                if hop[slot] == OTHER_NODE and new[before] == expert and hop[before] == OTHER_NODE:
                    source[slot], hop[slot] = before, SAME_RANK


@njit("void(int32[::1], int32[::1], int64[::1], int64[::1], int32[::1], int32[::1], int32[::1], int8[::1], int64[::1])")
def _choose_sources(
    old: Map, new: Map, rank_of_slot: Ints, node_of_rank: Ints, head: Map, following: Map, source: Map, hop: Hops,
    sends: Ints,
) -> None:  # fmt: skip
    """Give each copy that crosses ranks the nearest holder; among those the rank that sends least, ties to the lowest.

    Then copies are moved to a holder equally near that sends at least two less, until there is none: every move lowers
    the sum of squares of the sends.
    """
    head[:] = -1
    sends[:] = 0
    for slot in range(old.size - 1, -1, -1):
        if old[slot] >= 0:
            following[slot] = head[old[slot]]
            head[old[slot]] = slot
    moved = True
    while moved:
        moved = False
        for slot in range(new.size):
            if hop[slot] <= SAME_RANK:
                continue
            best, best_hop, best_sends = source[slot], OTHER_NODE + 1, 0
            if best >= 0:
                best_hop, best_sends = hop[slot], sends[rank_of_slot[best]] - 1
            at = head[new[slot]]
            while at >= 0:
                distance = _hop(rank_of_slot[slot], rank_of_slot[at], node_of_rank)
                load = sends[rank_of_slot[at]]
                if distance < best_hop or (distance == best_hop and load < best_sends):
                    best, best_hop, best_sends = at, distance, load
                at = following[at]
            if best != source[slot]:
                if source[slot] >= 0:
                    sends[rank_of_slot[source[slot]]] -= 1
                sends[rank_of_slot[best]] += 1
                source[slot], hop[slot] = best, best_hop
                moved = True


@njit("void(int64[::1], int64[::1], int32[:, ::1], int32[:, ::1], int64, int32[::1])")
def _give_batch(sender: Ints, receiver: Ints, sent: Map, received: Map, copy: int, batch: Map) -> None:
    """Colour one edge, recolouring an alternating path if no colour is free at both of its ends.

    `sent` [R, B] and `received` [R, B] hold the copy of each rank and batch, -1 if none.
    """
    from_rank, to_rank = sender[copy], receiver[copy]
    free_sent = free_received = -1
    for b in range(sent.shape[1] - 1, -1, -1):
        free_sent = b if sent[from_rank, b] < 0 else free_sent
        free_received = b if received[to_rank, b] < 0 else free_received
    for b in range(sent.shape[1]):
        if sent[from_rank, b] < 0 and received[to_rank, b] < 0:
            batch[copy] = b
            sent[from_rank, b] = received[to_rank, b] = copy
            return
    # The path of batches free_sent, free_received, free_sent, ... that starts at the receiver never meets the sender.
    old, new, at_receiver = free_sent, free_received, True
    moving = received[to_rank, old]
    received[to_rank, old] = -1
    while moving >= 0:
        near, far = (received, sent) if at_receiver else (sent, received)
        near_rank, far_rank = receiver[moving], sender[moving]
        if not at_receiver:
            near_rank, far_rank = far_rank, near_rank
        following = far[far_rank, new]
        near[near_rank, new] = far[far_rank, new] = moving
        far[far_rank, old] = -1
        batch[moving] = new
        moving, old, new, at_receiver = following, new, old, not at_receiver
    batch[copy] = free_sent
    sent[from_rank, free_sent] = received[to_rank, free_sent] = copy


@njit(
    "void(Array(int32, 2, 'C', readonly=True), Array(int32, 2, 'C', readonly=True), int64, int64[::1], int64[::1],"
    " int64[::1], int32[:, ::1], int8[:, ::1], int32[:, ::1])",
)
def schedule_layers(
    old_map: Map, new_map: Map, num_experts: int, first_slot: Ints, rank_of_slot: Ints, node_of_rank: Ints,
    source: Map, hop: Hops, batch: Map,
) -> None:  # fmt: skip
    """Find the source, the distance and the batch of every slot whose expert changes.

    The number of batches of a layer is the least there can be for the chosen sources. O(M (R + B)) a layer for M copies
    in B batches. Copies between nodes are coloured first, so that they share batches where possible.

    Parameters
    ----------
    old_map, new_map
        [L, P] the placements; -1 in holes.
    first_slot, rank_of_slot, node_of_rank
        [R + 1], [P], [R]
    source, hop, batch
        [L, P] out: slot copied from, distance, batch of copies that cross ranks; -1 where there is none.
    """
    num_layers, num_slots = old_map.shape
    num_ranks = node_of_rank.size
    old, new = np.empty(num_slots, np.int32), np.empty(num_slots, np.int32)
    head, following = np.empty(num_experts, np.int32), np.empty(num_slots, np.int32)
    sends, receives = np.empty(num_ranks, np.int64), np.empty(num_ranks, np.int64)
    sender, receiver = np.empty(num_slots, np.int64), np.empty(num_slots, np.int64)
    for layer in range(num_layers):
        old[:], new[:] = old_map[layer], new_map[layer]
        batch[layer] = -1
        _find_local(old, new, first_slot, num_ranks, source[layer], hop[layer])
        _choose_sources(old, new, rank_of_slot, node_of_rank, head, following, source[layer], hop[layer], sends)
        receives[:] = 0
        for slot in range(num_slots):
            if hop[layer, slot] > SAME_RANK:
                receives[rank_of_slot[slot]] += 1
                sender[slot], receiver[slot] = rank_of_slot[source[layer, slot]], rank_of_slot[slot]
        num_batches = max(sends.max(), receives.max())
        sent = np.full((num_ranks, num_batches), -1, np.int32)
        received = np.full((num_ranks, num_batches), -1, np.int32)
        for distance in (OTHER_NODE, SAME_NODE):
            for slot in range(num_slots):
                if hop[layer, slot] == distance:
                    _give_batch(sender, receiver, sent, received, slot, batch[layer])


@njit("void(Array(int32, 2, 'C', readonly=True), int32[:, ::1], int64[::1])")
def keep_slots(old: Map, new: Map, first_slot: Ints) -> None:
    """Reorder every rank's slots in `new` so that experts the rank had stay where they were; the others fill up.

    The others keep their order. Nothing else changes: what a rank holds is what it held.
    """
    num_slots = old.shape[1]
    taken, kept = np.empty(num_slots, np.bool_), np.empty(num_slots, np.int32)
    for layer in range(old.shape[0]):
        for rank in range(first_slot.size - 1):
            begin, end = first_slot[rank], first_slot[rank + 1]
            kept[begin:end] = -2
            for slot in range(begin, end):
                taken[slot] = False
                for was in range(begin, end):
                    if not taken[slot] and kept[was] == -2 and old[layer, was] == new[layer, slot]:
                        taken[slot] = True
                        kept[was] = new[layer, slot]
            free = begin
            for slot in range(begin, end):
                if not taken[slot]:
                    while kept[free] != -2:
                        free += 1
                    kept[free] = new[layer, slot]
            new[layer, begin:end] = kept[begin:end]
