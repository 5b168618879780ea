"""Knows how the map that is live in an engine becomes a full one to plan on from; knows no engine and no strategy.

Engines hand over maps with holes (ranks that have just joined), maps of more ranks than are left, and maps in which a
rank holds an expert twice. What is live and useful stays in its slot.
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
    """Fit a live map to the ranks that there are from now on, and fill it up.

    Ranks that left are the last ones and ranks that joined come last, as engines number them. Of two copies on a rank
    the first stays. An expert without a slot takes a hole, or the slot of the copy that is cheapest to give up; every
    other hole takes the expert with the most tokens a copy that its rank lacks, ties to the lowest id.

    Parameters
    ----------
    live
        [L, any] expert of each slot, -1 where there is none.
    load
        [L, E] tokens.
    topology
        The ranks from now on, each with the same number of slots, at most E.

    Returns
    -------
    NDArray or None
        [L, P] without holes or doubles; None if ranks had another number of slots, so that nothing can stay.

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
            "the live map has %d slots a layer, no multiple of %d a rank: planning afresh",
            live.shape[1],
            slots_per_rank,
        )
        return None
    fitted = cut_or_padded(live, topology.num_slots)
    fitted[second_copies(fitted, slots_per_rank)] = EMPTY_SLOT
    incomplete = (fitted == EMPTY_SLOT).any(axis=1) | ~_holds_all(fitted, num_experts)
    for index in np.nonzero(incomplete)[0]:
        _fill_up(load[index], fitted[index], slots_per_rank)
    return fitted


def cut_or_padded(live: Ints, num_slots: int) -> Map:
    """[L, num_slots] the first slots, and holes where there are no more."""
    fitted = np.full((live.shape[0], num_slots), EMPTY_SLOT, dtype=np.int32)
    width = min(live.shape[1], num_slots)
    fitted[:, :width] = live[:, :width]
    return fitted


def second_copies(phy2log: Ints | Map, slots_per_rank: int) -> NDArray[np.bool_]:
    """[L, P] whether an earlier slot of the same rank holds the slot's expert."""
    held = phy2log.reshape(phy2log.shape[0], -1, slots_per_rank)
    same = (held[..., :, None] == held[..., None, :]) & (held != EMPTY_SLOT)[..., None]
    earlier = np.tri(slots_per_rank, k=-1, dtype=np.bool_)
    second = np.asarray((same & earlier).any(axis=-1))
    return second.reshape(phy2log.shape)


def _holds_all(phy2log: Map, num_experts: int) -> NDArray[np.bool_]:
    """[L] whether every expert has a slot."""
    has = np.zeros((phy2log.shape[0], num_experts), dtype=np.bool_)
    has[np.arange(phy2log.shape[0])[:, None], phy2log] = True  # a hole counts for the last one: it is filled anyway
    return np.asarray(has.all(axis=1))


def _fill_up(load: Floats, row: Map, slots_per_rank: int) -> None:
    """Write experts into the holes of a layer [P], those without a slot first; see `adopt_live_map`."""
    rank_of_slot = np.arange(row.size) // slots_per_rank
    occupied = np.nonzero(row != EMPTY_SLOT)[0]
    held = np.zeros((row.size // slots_per_rank, load.size), dtype=np.bool_)
    held[rank_of_slot[occupied], row[occupied]] = True
    count = np.bincount(row[occupied], minlength=load.size)
    holes = np.nonzero(row == EMPTY_SLOT)[0]
    # One hole a rank and round, so that no rank gets all that is hot.
    round_of_hole = np.concatenate([np.arange(n) for n in np.bincount(rank_of_slot[holes])] or [holes])
    queue = holes[np.lexsort((rank_of_slot[holes], round_of_hole))].tolist()
    dead = np.nonzero(count == 0)[0]
    for expert in dead[np.argsort(-load[dead], kind="stable")].tolist():
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
