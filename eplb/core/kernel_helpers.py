"""Functions, constants and argument types that the kernels of several folders share.

Nothing here is an entry point: Python code calls a kernel, and the kernel calls these. See `eplb_traces.jit`.
"""

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb_traces.jit import helper

MIN_RELATIVE_GAIN = 1e-9  # a step must lower the busiest rank by this much, or rounding could make the search circle
LANES = 4  # loads over windows are summed in so many lanes: numbers of windows are padded with zeros to a multiple

# numba types of arguments that a kernel only reads: they fit the read-only arrays of frozen types and all others.
READ_INTS = "Array(int64, 1, 'C', readonly=True)"
READ_FLOATS = "Array(float64, 1, 'C', readonly=True)"
READ_FLOATS_2D = "Array(float64, 2, 'C', readonly=True)"
READ_MAPS = "Array(int32, 2, 'C', readonly=True)"


@helper
def holds(phy2log: Map, first: int, last: int, expert: int) -> bool:
    """Whether one of the slots first..last-1 holds the expert."""
    for slot in range(first, last):  # noqa: SIM110  # numba compiles the loop, not any()
        if phy2log[slot] == expert:
            return True
    return False


@helper
def link_slots(phy2log: Map, head: Map, following: Map) -> None:
    """Chain the slots of each expert, ascending; negative ids are in no chain.

    Parameters
    ----------
    phy2log
        [P]
    head, following
        [E], [P] out: first slot of each expert, next slot with the same expert; -1 if there is none.
    """
    head[:] = -1
    for slot in range(phy2log.size - 1, -1, -1):
        if phy2log[slot] >= 0:
            following[slot] = head[phy2log[slot]]
            head[phy2log[slot]] = slot


@helper
def sum_rank_time(unit: Floats, phy2log: Map, rank_of_slot: Ints, rank_scale: Floats, rank_time: Floats) -> None:
    """Add up the time of each rank, in slot order.

    Parameters
    ----------
    unit, phy2log, rank_of_slot, rank_scale
        [E] load of one replica; [P], [P]; [R] time of one token.
    rank_time
        [R] out.
    """
    rank_time[:] = 0.0
    for slot in range(phy2log.size):
        rank_time[rank_of_slot[slot]] += unit[phy2log[slot]] * rank_scale[rank_of_slot[slot]]


@helper
def first_random(seed: int, layer: int) -> np.uint64:
    """State of the random numbers of a layer: another one for each seed and layer, odd and so never 0."""
    state = np.uint64(seed) * np.uint64(2654435761) + np.uint64(layer + 1) * np.uint64(0x9E3779B97F4A7C15)
    return state | np.uint64(1)


@helper
def next_random(state: np.uint64) -> np.uint64:
    """State after this one (Marsaglia 2003, xorshift64)."""
    state = state ^ (state << np.uint64(13))
    state = state ^ (state >> np.uint64(7))
    return state ^ (state << np.uint64(17))


@helper
def random_below(state: np.uint64, size: int) -> int:
    """A number from 0 to size - 1, signed: sums of unsigned and signed integers are floats."""
    return np.int64((state >> np.uint64(20)) % np.uint64(size))


@helper
def power(x: float, doublings: int) -> float:
    """Raise x to the power 2 ** doublings, for 2 to 5 doublings."""
    x = x * x
    x = x * x
    if doublings > 2:
        x = x * x
    if doublings > 3:
        x = x * x
    if doublings > 4:
        x = x * x
    return x


@helper
def sum_of_powers(row: Floats, doublings: int) -> float:
    """Sum of a row's powers 2 ** doublings, in four fixed lanes: the same bytes on every machine."""
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    for t in range(0, row.size, 4):
        s0 += power(row[t], doublings)
        s1 += power(row[t + 1], doublings)
        s2 += power(row[t + 2], doublings)
        s3 += power(row[t + 3], doublings)
    return (s0 + s1) + (s2 + s3)


@helper
def fetches_to_add(held: NDArray[np.int16], held_before: NDArray[np.int16], expert: int, rank: int) -> int:
    """Fetches that one more replica of the expert on the rank costs: 1 if neither map has one there, else 0.

    `held` and `held_before` [E + 1, R] count the replicas of an expert on a rank, now and in the live placement; id E
    stands for an empty slot, which the live placement counts as held everywhere.
    """
    return 1 if held_before[expert, rank] == 0 and held[expert, rank] == 0 else 0


@helper
def fetches_saved(held: NDArray[np.int16], held_before: NDArray[np.int16], expert: int, rank: int) -> int:
    """Fetches saved when a replica of the expert leaves the rank: 1 if it is the last that was fetched, else 0."""
    return 1 if held_before[expert, rank] == 0 and held[expert, rank] == 1 else 0
