"""Starts layers on many ranks of unequal speed: ranks of like speed form a class, and each expert belongs to one class.

All replicas of an expert carry the same load, so that a slow and a fast rank with equally many slots need replicas of
different experts. Experts are shared out so that the load of a class is in proportion to its speed; each class is then
a topology of equal ranks. This takes the place of replacing single replicas, whose steps grow with ranks times slots.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb.errors import InfeasibleError
from eplb.strategies.greedy.local_search import LayerState, Ranks

MOST_CLASSES: Final = 8

PackEqual = Callable[[Floats, Ints], Map]
"""Packs [1, E] experts on equally fast ranks with these first slots; returns [1, P]."""


def place_by_class(load: Floats, ranks: Ranks, state: LayerState, pack_equal: PackEqual) -> bool:
    """Place every layer of `load` [L, E] into `state`; False if the experts are too few for two classes."""
    classes = speed_classes(ranks, load.shape[1])
    if not classes:
        return False
    num_slots = np.diff(ranks.first_slot)
    slots_of = [np.concatenate([np.arange(*ranks.first_slot[rank : rank + 2]) for rank in own]) for own in classes]
    speed = np.array([(1 / ranks.rank_scale[own]).sum() for own in classes])
    least = [int(num_slots[own].max()) for own in classes]
    try:
        for layer, row in enumerate(load):
            shared = share_out(row, speed, least, [slots.size for slots in slots_of])
            for own, slots, experts in zip(classes, slots_of, shared, strict=True):
                first_slot = np.concatenate([[0], np.cumsum(num_slots[own])]).astype(np.int64)
                state.phy2log[layer, slots] = experts[pack_equal(row[None, experts], first_slot)[0]]
    except InfeasibleError:
        return False
    _fill(load, ranks, state)
    return True


def speed_classes(ranks: Ranks, num_experts: int) -> list[Ints]:
    """Ranks of each class by falling speed, at most `MOST_CLASSES`; empty if two or more classes are not possible.

    A class needs as many experts as its largest rank has slots, since no rank holds an expert twice.
    """
    num_slots, order = np.diff(ranks.first_slot), np.argsort(ranks.rank_scale, kind="stable")
    starts = np.flatnonzero(np.diff(ranks.rank_scale[order], prepend=-1.0))
    for number in range(min(MOST_CLASSES, starts.size), 1, -1):
        parts = np.split(order, starts[1:]) if starts.size <= number else np.array_split(order, number)
        classes = [np.sort(part) for part in parts]
        if sum(int(num_slots[own].max()) for own in classes) <= num_experts:
            return classes
    return []


def share_out(load: Floats, speed: Floats, least: list[int], most: list[int]) -> list[Ints]:
    """Share experts [E] out over classes, largest first, each to the class that lacks most of its load.

    Parameters
    ----------
    load
        [E] tokens.
    speed
        [K] of each class; its load is to be in proportion.
    least, most
        [K] fewest and most experts of each class.

    Returns
    -------
    list
        [K] experts of each class, ascending.
    """
    lacking = load.sum() * speed / speed.sum()
    held: list[list[int]] = [[] for _ in least]
    for left, expert in zip(range(load.size, 0, -1), np.argsort(-load, kind="stable").tolist(), strict=True):
        needs = [max(0, fewest - len(own)) for fewest, own in zip(least, held, strict=True)]
        must = sum(needs) == left
        open_classes = [k for k, own in enumerate(held) if len(own) < most[k] and (needs[k] > 0 or not must)]
        if not open_classes:
            raise InfeasibleError(f"{load.size} experts: expected {sum(least)} to {sum(most)} for {len(least)} classes")
        chosen = max(open_classes, key=lambda k: (lacking[k], -k))
        held[chosen].append(expert)
        lacking[chosen] -= load[expert]
    return [np.sort(np.array(own, dtype=np.int64)) for own in held]


def _fill(load: Floats, ranks: Ranks, state: LayerState) -> None:
    """Fill counts, slot loads and rank times from the map."""
    num_layers, num_experts = load.shape
    base = np.arange(num_layers)[:, None] * num_experts
    count = np.bincount((base + state.phy2log).ravel(), minlength=load.size)
    state.count[:] = count.reshape(load.shape)
    state.slot_load[:] = np.take_along_axis(load / state.count, state.phy2log, axis=1)
    state.rank_time[:] = np.add.reduceat(state.slot_load, ranks.first_slot[:-1], axis=1) * ranks.rank_scale
