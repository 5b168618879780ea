"""Computes the expected seconds of a rank while the rows of its slots vary from batch to batch.

The rows of an expert are Poisson distributed with its expected rows as mean: each choice of a batch falls on it with
its share of the load. A replica gets an even part of them. The expectations of a rank follow from sums over its slots,
so that a change of one slot costs a few additions. A slot has rows with probability 1 - exp(-rows); all other tails are
those of a normal distribution.
"""

import math

from eplb.core.arrays import Floats
from eplb.strategies.step_time.makespans import (
    AT_ONCE,
    DOWN_TILES,
    DOWN_WAVE,
    EXPERT,
    FIXED,
    GATE_UP_TILES,
    GATE_UP_WAVE,
    MOST_ROWS,
    ROW,
    TILE,
    TILE_ROWS,
)
from eplb_traces.jit import helper

# Moments of a slot; after them, for each regime, the mean and the variance of its tile rows.
ROWS, ROWS_VARIANCE, USED, FIRST_TILES = range(4)

REACH = 4.0  # standard deviations beyond which a tail counts as 0 or 1
SMOOTH = 0.45  # from this standard deviation on, rounding up adds 1/2 on average, within 1 %


@helper
def num_moments(table: Floats) -> int:
    """M, the moments of a slot."""
    return FIRST_TILES + 2 * table.shape[0]


@helper
def normal_tail(distance: float) -> float:
    """Probability that a normal variable is more than so many standard deviations above its mean."""
    return 0.5 * math.erfc(distance * 0.7071067811865476)


@helper
def fill_moments(rows: float, num_replicas: int, table: Floats, moments: Floats) -> None:
    """Compute the moments of one replica of an expert.

    Parameters
    ----------
    rows, num_replicas
        Expected rows of the expert, and replicas that share them evenly.
    table
        [G, 11]
    moments
        [M] out.
    """
    moments[:] = 0.0
    if rows <= 0.0:
        return
    mean, spread = rows / num_replicas, math.sqrt(rows) / num_replicas
    used = -math.expm1(-mean)
    moments[ROWS], moments[ROWS_VARIANCE], moments[USED] = mean, spread * spread, used
    for regime in range(table.shape[0]):
        height = table[regime, TILE_ROWS]
        tile = max(1, math.ceil((mean - REACH * spread) / height))  # the slot has so many tile rows for certain
        expected, squares = (used, used) if tile == 1 else (float(tile), float(tile * tile))
        while tile * height < mean + REACH * spread:
            beyond = normal_tail((tile * height + 0.5 / num_replicas - mean) / spread)
            expected += beyond
            squares += (2 * tile + 1) * beyond
            tile += 1
        moments[FIRST_TILES + 2 * regime] = expected
        moments[FIRST_TILES + 2 * regime + 1] = max(0.0, squares - expected * expected)


@helper
def rounded_up(mean: float, spread: float) -> float:
    """Expectation of a normal variable rounded up to an integer >= 1."""
    if spread >= SMOOTH:
        return max(1.0, mean + 0.5)
    whole = max(1, math.floor(mean - REACH * spread))
    expected = float(whole)
    while whole < mean + REACH * spread:
        expected += normal_tail((whole - mean) / spread) if spread > 0.0 else 1.0
        whole += 1
    return expected


@helper
def expected_seconds(sums: Floats, num_slots: int, table: Floats) -> float:
    """Expected seconds of a rank.

    Parameters
    ----------
    sums
        [M] moments summed over the slots of the rank.
    num_slots
        Slots of the rank, those without tokens included: the kernel chooses its tile by rows over slots.
    table
        [G, 11]
    """
    if sums[ROWS] <= 0.0:
        return 0.0
    spread, expected, above = math.sqrt(sums[ROWS_VARIANCE]), 0.0, 1.0
    for regime in range(table.shape[0]):
        most, beyond = table[regime, MOST_ROWS], 0.0
        if not math.isinf(most):  # compiled, floor gives an integer, which has no infinity
            edge = (math.floor(most) + 1.0) * num_slots - 0.5
            beyond = normal_tail((edge - sums[ROWS]) / spread)
        share, above = above - beyond, beyond
        if share <= 0.0:
            continue
        high, width = sums[FIRST_TILES + 2 * regime], math.sqrt(sums[FIRST_TILES + 2 * regime + 1])
        gate_up = table[regime, GATE_UP_TILES] / table[regime, AT_ONCE]
        down = table[regime, DOWN_TILES] / table[regime, AT_ONCE]
        seconds = table[regime, FIXED] + sums[USED] * table[regime, EXPERT] + high * table[regime, TILE]
        seconds += sums[ROWS] * table[regime, ROW]
        seconds += rounded_up(high * gate_up, width * gate_up) * table[regime, GATE_UP_WAVE]
        seconds += rounded_up(high * down, width * down) * table[regime, DOWN_WAVE]
        expected += share * seconds
    return expected * -math.expm1(-sums[ROWS])
