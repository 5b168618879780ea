"""Completes the live map of an engine, so that a replan can start from it.

Engines pass maps with empty slots (of ranks that have just joined), maps with more ranks than remain, and maps in which
a rank holds an expert twice. Usable live experts keep their slots.
"""

import logging

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.placement import EMPTY_SLOT
from eplb.core.topology import Topology
from eplb.errors import InputError

_logger = logging.getLogger("eplb")


def adopt_live_map(live: Ints, load: Floats, topology: Topology) -> Map | None:
    """Fit a live map to the current ranks and fill its empty slots.

    Ranks that left or joined are the last ones, as engines number them. Of two replicas on a rank the first is kept. An
    expert without a slot takes an empty slot, or replaces the replica whose loss raises the tokens per replica least.
    Every other empty slot takes the expert with the most tokens per replica that its rank does not hold, ties to the
    lowest id.

    Parameters
    ----------
    live
        [L, any] expert of each slot, -1 for an empty slot.
    load
        [L, E] tokens.
    topology
        The current ranks, each with the same number of slots, at most E.

    Returns
    -------
    NDArray or None
        [L, P] without empty or duplicate slots; None if the number of slots per rank changed.

    Raises
    ------
    InputError
        For another number of layers, or an id out of range.
    """
    num_layers, num_experts = load.shape
    if live.shape[0] != num_layers:
        raise InputError(f"the live map has {live.shape[0]} layers: the load has {num_layers}")
    if live.min() < EMPTY_SLOT or live.max() >= num_experts:
        layer, slot = (int(i) for i in np.argwhere((live < EMPTY_SLOT) | (live >= num_experts))[0])
        raise InputError(
            f"live map[layer {layer}, slot {slot}] = {live[layer, slot]}: expected -1 or 0 <= id < {num_experts}"
        )
    slots_per_rank = int(topology.rank_num_slots[0])
    if live.shape[1] % slots_per_rank:
        _logger.warning(
            "the live map has %d slots per layer, which is not a multiple of %d per rank: planning without it",
            live.shape[1],
            slots_per_rank,
        )
        return None
    fitted = cut_or_padded(live, topology.num_slots)
    fitted[duplicate_replicas(fitted, slots_per_rank)] = EMPTY_SLOT
    incomplete = (fitted == EMPTY_SLOT).any(axis=1) | ~_holds_all(fitted, num_experts)
    for index in np.nonzero(incomplete)[0]:
        _fill_up(load[index], fitted[index], slots_per_rank)
    return fitted


def cut_or_padded(live: Ints, num_slots: int) -> Map:
    """[L, num_slots] the first slots, padded with empty slots."""
    fitted = np.full((live.shape[0], num_slots), EMPTY_SLOT, dtype=np.int32)
    width = min(live.shape[1], num_slots)
    fitted[:, :width] = live[:, :width]
    return fitted


def duplicate_replicas(phy2log: Ints | Map, slots_per_rank: int) -> NDArray[np.bool_]:
    """[L, P] whether an earlier slot of the same rank holds the slot's expert."""
    held = phy2log.reshape(phy2log.shape[0], -1, slots_per_rank)
    same = (held[..., :, None] == held[..., None, :]) & (held != EMPTY_SLOT)[..., None]
    earlier = np.tri(slots_per_rank, k=-1, dtype=np.bool_)
    second = np.asarray((same & earlier).any(axis=-1))
    return second.reshape(phy2log.shape)


def _holds_all(phy2log: Map, num_experts: int) -> NDArray[np.bool_]:
    """[L] whether every expert has a slot."""
    has = np.zeros((phy2log.shape[0], num_experts), dtype=np.bool_)
    has[np.arange(phy2log.shape[0])[:, None], phy2log] = True  # -1 marks the last; such layers are filled anyway
    return np.asarray(has.all(axis=1))


def _fill_up(load: Floats, row: Map, slots_per_rank: int) -> None:
    """Fill the empty slots of a layer [P], with experts that have no slot first; see `adopt_live_map`."""
    rank_of_slot = np.arange(row.size) // slots_per_rank
    occupied = np.nonzero(row != EMPTY_SLOT)[0]
    held = np.zeros((row.size // slots_per_rank, load.size), dtype=np.bool_)
    held[rank_of_slot[occupied], row[occupied]] = True
    count = np.bincount(row[occupied], minlength=load.size)
    empty = np.nonzero(row == EMPTY_SLOT)[0]
    # One slot per rank and round, so that the experts with most load are spread over the ranks.
    round_of_slot = np.concatenate([np.arange(n) for n in np.bincount(rank_of_slot[empty])] or [empty])
    queue = empty[np.lexsort((rank_of_slot[empty], round_of_slot))].tolist()
    missing = np.nonzero(count == 0)[0]
    for expert in missing[np.argsort(-load[missing], kind="stable")].tolist():
        if queue:
            slot = queue.pop(0)
        else:
            left = load[row] / np.maximum(count[row] - 1, 1)
            slot = int(np.where(count[row] > 1, left, np.inf).argmin())
            count[row[slot]] -= 1
            held[rank_of_slot[slot], row[slot]] = False
        row[slot], count[expert], held[rank_of_slot[slot], expert] = expert, 1, True
    for slot in queue:
        lacking = ~held[rank_of_slot[slot]]
        expert = int(np.where(lacking, load / np.maximum(count, 1), -1.0).argmax())
        row[slot] = expert
        count[expert] += 1
        held[rank_of_slot[slot], expert] = True
