"""Computes the seconds of the slowest rank in drawn batches: what a map claims, with whole rows and whole tiles.

Written apart from `eplb.cost.predict`, which evaluates plans: a test compares the two.
"""

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map

# Columns of the table of a grouped FFN, as `eplb.cost.grouped_ffn.TileRegime.bound_to` writes them.
MOST_ROWS, TILE_ROWS, GATE_UP_TILES, DOWN_TILES, AT_ONCE, FIXED, EXPERT, TILE, ROW, GATE_UP_WAVE, DOWN_WAVE = range(11)


def draw_batches(rows: Floats, num_batches: int, seed: int) -> Ints:
    """[B, L, E] choices of each expert in drawn steps: multinomial, with the expected rows [L, E] as shares."""
    total = rows.sum(axis=1)
    share = np.where(total[:, None] > 0, rows, 1.0)
    share = share / share.sum(axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    size = (num_batches, len(rows))
    return np.asarray(rng.multinomial(np.round(total).astype(np.int64), share, size=size), dtype=np.int64)


def slots_of_ids(held: Map, num_experts: int) -> Ints:
    """[L, E + 1] slots of each id."""
    return np.stack([np.bincount(row, minlength=num_experts + 1) for row in held])


def slot_rows(batches: Ints, held: Map) -> Floats:
    """[B, L, P] whole rows of each slot: the even part of every replica, rounded so that no row is lost.

    Parameters
    ----------
    batches
        [B, L, E] choices of each expert.
    held
        [L, P] expert of each slot, E for a slot that gets no tokens.
    """
    num_experts = batches.shape[2]
    tokens = np.pad(batches, ((0, 0), (0, 0), (0, 1))).astype(np.float64)
    of_slot = np.take_along_axis(tokens, held[None].astype(np.int64), axis=2)
    count = np.take_along_axis(slots_of_ids(held, num_experts), held.astype(np.int64), axis=1)
    before = _earlier_replicas(held)
    return np.asarray(np.round(of_slot * (before + 1) / count + 1e-9) - np.round(of_slot * before / count + 1e-9))


def _earlier_replicas(held: Map) -> Ints:
    """[L, P] slots before this one that hold the same expert."""
    order = np.argsort(held, axis=1, kind="stable")
    ids = np.take_along_axis(held, order, axis=1)
    place = np.arange(held.shape[1])
    is_first = np.concatenate([np.ones((len(held), 1), dtype=np.bool_), ids[:, 1:] != ids[:, :-1]], axis=1)
    first = np.maximum.accumulate(np.where(is_first, place, 0), axis=1)
    earlier = np.empty(held.shape, dtype=np.int64)
    np.put_along_axis(earlier, order, place - first, axis=1)
    return earlier


def makespans(batches: Ints, held: Map, first_slot: Ints, table: Floats) -> Floats:
    """Seconds of the slowest rank of each layer in each batch.

    Parameters
    ----------
    batches, held
        As for `slot_rows`.
    first_slot
        [R + 1] first slot of each rank, then P.
    table
        [G, 11] `eplb.cost.RankFfn.table`.

    Returns
    -------
    NDArray
        [B, L]
    """
    slots = slot_rows(batches, held)
    rows, used = _by_rank(slots, first_slot), _by_rank(slots > 0, first_slot)
    regime = np.searchsorted(table[:, MOST_ROWS], np.floor(rows / np.diff(first_slot)))
    seconds = np.zeros(rows.shape)
    for index, constants in enumerate(table):
        high = _by_rank(np.ceil(slots / constants[TILE_ROWS]), first_slot)
        gate_up = np.ceil(high * constants[GATE_UP_TILES] / constants[AT_ONCE]) * constants[GATE_UP_WAVE]
        down = np.ceil(high * constants[DOWN_TILES] / constants[AT_ONCE]) * constants[DOWN_WAVE]
        linear = constants[FIXED] + used * constants[EXPERT] + high * constants[TILE] + rows * constants[ROW]
        seconds = np.where((regime == index) & (rows > 0), linear + gate_up + down, seconds)
    return np.asarray(seconds.max(axis=2))


def _by_rank(slots: Floats | NDArray[np.bool_], first_slot: Ints) -> Floats:
    return np.asarray(np.add.reduceat(slots.astype(np.float64), first_slot[:-1], axis=2))
