"""Finds sources and batches of the replicas that a migration moves, and slots for those that stay.

Batches are the colours of an edge colouring: senders on one side, receivers on the other, an edge for every replica
that crosses ranks. By König's theorem the colours needed are the most replicas that one rank sends or receives;
alternating paths reach that number (the usual constructive proof, as in Diestel, Graph Theory, proposition 5.3.1).
"""

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Ints, Map
from eplb.core.kernel_helpers import READ_INTS, READ_MAPS, link_slots
from eplb_traces.jit import helper, njit

Hops = NDArray[np.int8]

NO_COPY, SAME_RANK, SAME_NODE, OTHER_NODE = -1, 0, 1, 2


@helper
def _find_local(old: Map, new: Map, first_slot: Ints, source: Map, hop: Hops) -> None:
    """Find sources on the slot's own rank; a slot without one is marked OTHER_NODE, its source -1.

    A rank that needs an expert for several slots fetches it for the first of them, which is the source of the others.
    """
    source[:], hop[:] = -1, NO_COPY
    for rank in range(first_slot.size - 1):
        for slot in range(first_slot[rank], first_slot[rank + 1]):
            expert = new[slot]
            if expert < 0 or expert == old[slot]:
                continue
            hop[slot] = OTHER_NODE
            for other in range(first_slot[rank + 1] - 1, first_slot[rank] - 1, -1):
                if old[other] == expert:
                    source[slot], hop[slot] = other, SAME_RANK
            for other in range(first_slot[rank], slot):
                if hop[slot] == OTHER_NODE and new[other] == expert and hop[other] == OTHER_NODE:
                    source[slot], hop[slot] = other, SAME_RANK


@helper
def _choose_sources(
    new: Map, rank_of_slot: Ints, node_of_rank: Ints, head: Map, following: Map, source: Map, hop: Hops, sends: Ints
) -> None:
    """Take the nearest holder as source; of several the rank that sends least, ties to the lowest slot.

    Then a slot changes to a holder equally near that sends at least two less, until none can: every change lowers the
    sum of squares of the sends. `head` and `following` chain the slots of the old map.
    """
    sends[:] = 0
    changed = True
    while changed:
        changed = False
        for slot in range(new.size):
            if hop[slot] <= SAME_RANK:
                continue
            best, best_hop, best_sends = source[slot], OTHER_NODE + 1, 0
            if best >= 0:
                best_hop, best_sends = hop[slot], sends[rank_of_slot[best]] - 1
            node, at = node_of_rank[rank_of_slot[slot]], head[new[slot]]
            while at >= 0:
                distance = SAME_NODE if node_of_rank[rank_of_slot[at]] == node else OTHER_NODE
                load = sends[rank_of_slot[at]]
                if distance < best_hop or (distance == best_hop and load < best_sends):
                    best, best_hop, best_sends = at, distance, load
                at = following[at]
            if best != source[slot]:
                if source[slot] >= 0:
                    sends[rank_of_slot[source[slot]]] -= 1
                sends[rank_of_slot[best]] += 1
                source[slot], hop[slot] = best, best_hop
                changed = True


@helper
def _assign_batch(sender: Ints, receiver: Ints, sent: Map, received: Map, slot: int, batch: Map) -> None:
    """Colour one edge, recolouring an alternating path if no colour is free at both of its ends.

    `sent` [R, B] and `received` [R, B] hold the slot that is filled by each rank and batch, -1 if none.
    """
    from_rank, to_rank = sender[slot], receiver[slot]
    free_sent = free_received = -1
    for b in range(sent.shape[1]):
        if sent[from_rank, b] < 0 and received[to_rank, b] < 0:
            batch[slot] = b
            sent[from_rank, b] = received[to_rank, b] = slot
            return
        free_sent = b if free_sent < 0 and sent[from_rank, b] < 0 else free_sent
        free_received = b if free_received < 0 and received[to_rank, b] < 0 else free_received
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
    batch[slot] = free_sent
    sent[from_rank, free_sent] = received[to_rank, free_sent] = slot


@njit(
    f"void({READ_MAPS}, {READ_MAPS}, int64, {READ_INTS}, {READ_INTS}, {READ_INTS}, int32[:, ::1], int8[:, ::1],"
    " int32[:, ::1])"
)
def schedule_layers(
    old: Map, new: Map, num_experts: int, first_slot: Ints, rank_of_slot: Ints, node_of_rank: Ints, source: Map,
    hop: Hops, batch: Map,
) -> None:  # fmt: skip
    """Find the source, the distance and the batch of every slot whose expert changes.

    The number of batches of a layer is the least there can be for the chosen sources. O(M (R + B)) a layer for M
    replicas in B batches. Replicas between nodes are coloured first, so that they share batches where possible.

    Parameters
    ----------
    old, new
        [L, P] the placements; -1 in empty slots.
    first_slot, rank_of_slot, node_of_rank
        [R + 1], [P], [R]
    source, hop, batch
        [L, P] out: slot to copy from, distance, batch of replicas that cross ranks; -1 where there is none.
    """
    num_slots, num_ranks = old.shape[1], node_of_rank.size
    head, following = np.empty(num_experts, np.int32), np.empty(num_slots, np.int32)
    sends, receives = np.empty(num_ranks, np.int64), np.empty(num_ranks, np.int64)
    sender, receiver = np.empty(num_slots, np.int64), np.empty(num_slots, np.int64)
    batch[:] = -1
    for layer in range(old.shape[0]):
        _find_local(old[layer], new[layer], first_slot, source[layer], hop[layer])
        link_slots(old[layer], head, following)
        _choose_sources(
            new[layer], rank_of_slot, node_of_rank, head, following, source[layer], hop[layer], sends
        )  # fmt: skip
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
                    _assign_batch(sender, receiver, sent, received, slot, batch[layer])


@njit(f"void({READ_MAPS}, int32[:, ::1], {READ_INTS})")
def reorder_slots(old: Map, new: Map, first_slot: Ints) -> None:
    """Reorder every rank's slots in `new` [L, P]: see `eplb.core.migration.keep_slots`.

    Experts that did not have a slot on the rank fill the slots that are left, in the order that they had.
    """
    taken, kept = np.empty(old.shape[1], np.bool_), np.empty(old.shape[1], np.int32)
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
