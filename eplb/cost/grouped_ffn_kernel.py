"""Computes the seconds of ranks from the tokens of their slots, compiled."""

import numpy as np

from eplb.core.arrays import Floats, Ints
from eplb_traces.jit import helper, njit

# Columns of the table, as `TileRegime.bound_to` writes them.
MOST_ROWS, TILE_ROWS, GATE_UP_TILES, DOWN_TILES, AT_ONCE, FIXED, EXPERT, TILE, ROW, GATE_UP_WAVE, DOWN_WAVE = range(11)


@helper
def rank_seconds(slot_tokens: Floats, first: int, last: int, table: Floats) -> float:
    """Seconds of the rank that holds the slots first .. last - 1; 0 if none has a row.

    Parameters
    ----------
    slot_tokens
        [P] rows.
    first, last
        Slots of the rank.
    table
        [regimes, 11]
    """
    rows = 0.0
    for slot in range(first, last):
        rows += slot_tokens[slot]
    if rows <= 0.0:
        return 0.0
    regime = 0
    while np.floor(rows / (last - first)) > table[regime, MOST_ROWS]:
        regime += 1
    used, tile_rows, height = 0, 0.0, table[regime, TILE_ROWS]
    for slot in range(first, last):
        if slot_tokens[slot] > 0.0:
            used += 1
            tile_rows += np.ceil(slot_tokens[slot] / height)
    gate_up = np.ceil(tile_rows * table[regime, GATE_UP_TILES] / table[regime, AT_ONCE])
    down = np.ceil(tile_rows * table[regime, DOWN_TILES] / table[regime, AT_ONCE])
    seconds = table[regime, FIXED] + used * table[regime, EXPERT] + tile_rows * table[regime, TILE]
    seconds += rows * table[regime, ROW]
    return seconds + gate_up * table[regime, GATE_UP_WAVE] + down * table[regime, DOWN_WAVE]


@njit(
    "void(Array(float64, 2, 'C', readonly=True), Array(int64, 1, 'C', readonly=True),"
    " Array(float64, 2, 'C', readonly=True), float64[:, ::1])"
)
def ranks_seconds(slot_tokens: Floats, rank_first_slot: Ints, table: Floats, seconds: Floats) -> None:
    """Fill in the seconds of every rank in every batch.

    Parameters
    ----------
    slot_tokens, rank_first_slot, table
        [B, P] rows; [R + 1]; [regimes, 11].
    seconds
        [B, R] out.
    """
    for batch in range(slot_tokens.shape[0]):
        for rank in range(rank_first_slot.size - 1):
            first, last = rank_first_slot[rank], rank_first_slot[rank + 1]
            seconds[batch, rank] = rank_seconds(slot_tokens[batch], first, last, table)
