"""Repeats the draws of SGLang's `static` dispatch for a whole placement: the Mersenne Twister, `sample`, `shuffle`.

The generator is MT19937 (Matsumoto and Nishimura 1998), used as Python's `random` module uses it: an index below n is
the first value of n's bit length in bits that is below n.
"""

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import READ_FLOATS, READ_INTS, READ_MAPS
from eplb_traces.jit import helper, njit

Words = NDArray[np.uint32]

SIZE, MIDDLE = 624, 397
WORD, UPPER, LOWER, MATRIX = 0xFFFFFFFF, 0x80000000, 0x7FFFFFFF, 0x9908B0DF
NONE = -1


@helper
def _twist(words: Words) -> None:
    """Compute the next 624 words."""
    for i in range(SIZE):
        following = i + 1 if i + 1 < SIZE else 0
        other = i + MIDDLE if i + MIDDLE < SIZE else i + MIDDLE - SIZE
        mixed = (np.int64(words[i]) & UPPER) | (np.int64(words[following]) & LOWER)
        value = np.int64(words[other]) ^ (mixed >> 1)
        words[i] = np.uint32(value ^ MATRIX if mixed & 1 else value)


@helper
def _next_word(words: Words, at: Ints) -> int:
    """The next 32 bits; `words` [624] is the state, `at` [1] the position in it."""
    if at[0] == SIZE:
        _twist(words)
        at[0] = 0
    word = np.int64(words[at[0]])
    at[0] += 1
    word ^= word >> 11
    word ^= (word << 7) & 0x9D2C5680
    word ^= (word << 15) & 0xEFC60000
    return (word ^ (word >> 18)) & WORD


@helper
def _shift(bound: int) -> int:
    """32 less the bit length of a bound."""
    shift = 32
    while bound > 0:
        bound >>= 1
        shift -= 1
    return shift


@helper
def _index_below(words: Words, at: Ints, bound: int, shift: int) -> int:
    """Draw an index below the bound, whose `_shift` is given."""
    index = _next_word(words, at) >> shift
    while index >= bound:
        index = _next_word(words, at) >> shift
    return index


@helper
def _sample(words: Words, at: Ints, count: int, drawn: Ints) -> None:
    """Draw `drawn.size` different indices below `count`, as `random.sample` does."""
    num, pool_size = drawn.size, 21
    if num > 5:
        power = 4  # the least power of 4 that is at least 3 num
        while power < 3 * num:
            power *= 4
        pool_size += power
    pool = np.arange(count)
    for i in range(num):
        if count <= pool_size:
            index = _index_below(words, at, count - i, _shift(count - i))
            drawn[i] = pool[index]
            pool[index] = pool[count - i - 1]
            continue
        index = _index_below(words, at, count, _shift(count))
        while pool[index] < 0:
            index = _index_below(words, at, count, _shift(count))
        drawn[i] = index
        pool[index] = NONE


@helper
def _fair_draw(words: Words, at: Ints, count: int, drawn: Ints) -> None:
    """Draw an index below `count` for each entry: each equally often, the rest sampled, all shuffled."""
    whole = drawn.size // count * count
    for i in range(whole):
        drawn[i] = i % count
    _sample(words, at, count, drawn[whole:])
    shift = _shift(drawn.size)
    for i in range(drawn.size - 1, 0, -1):
        if (i + 1) >> (31 - shift) == 0:
            shift += 1
        index = _index_below(words, at, i + 1, shift)
        drawn[i], drawn[index] = drawn[index], drawn[i]


@helper
def _nearest(slots: Ints, rank_of_slot: Ints, node_of_rank: Ints, near: Ints) -> None:
    """Find the nearest replica of an expert with several, an index of `slots`, for each rank; NONE if there is none."""
    near[:] = NONE
    first_node, spans_nodes = node_of_rank[rank_of_slot[slots[0]]], False
    for i in range(slots.size):
        spans_nodes |= node_of_rank[rank_of_slot[slots[i]]] != first_node
    for i in range(slots.size - 1, -1, -1):  # backwards: the first of several wins
        node = node_of_rank[rank_of_slot[slots[i]]]
        for rank in range(near.size):
            if spans_nodes and node_of_rank[rank] == node:
                near[rank] = i
    for i in range(slots.size - 1, -1, -1):
        near[rank_of_slot[slots[i]]] = i


@helper
def _draw_far(near: Ints, count: int, walk_of_rank: Ints, words: Words, at: Ints, num_walks: int) -> int:
    """Draw for the ranks without a nearest replica and write it to `near`; returns the number of walks.

    Ranks with one generator state between them are a walk. One of whose ranks only some draw is split. Ranks in no walk
    are left out.
    """
    is_far = near < 0
    num_far = is_far.sum()
    drawn = np.empty(num_far, dtype=np.int64)
    for walk in range(num_walks if num_far > 0 else 0):
        draws = stays = False
        for rank in range(near.size):
            draws |= walk_of_rank[rank] == walk and is_far[rank]
            stays |= walk_of_rank[rank] == walk and not is_far[rank]
        if not draws:
            continue
        if stays:
            words[num_walks], at[num_walks] = words[walk], at[walk]
            for rank in range(near.size):
                if walk_of_rank[rank] == walk and not is_far[rank]:
                    walk_of_rank[rank] = num_walks
            num_walks += 1
        _fair_draw(words[walk], at[walk], count, drawn)
        i = 0
        for rank in range(near.size):
            if is_far[rank]:
                if walk_of_rank[rank] == walk:
                    near[rank] = drawn[i]
                i += 1
    return num_walks


@njit(
    f"void({READ_MAPS}, {READ_INTS}, {READ_INTS}, {READ_FLOATS}, {READ_INTS}, boolean[::1], uint32[::1], int64,"
    " UniTuple(int64, 3), float64[:, ::1])"
)
def draw_shares(
    phy2log: Map, rank_of_slot: Ints, node_of_rank: Ints, source: Floats, layer_of_row: Ints,
    row_counts: NDArray[np.bool_], seeded: Words, seeded_at: int, sizes: tuple[int, int, int], shares: Floats,
) -> None:  # fmt: skip
    """Compute the share of its expert's tokens that every slot gets from some of the ranks.

    Parameters
    ----------
    phy2log, rank_of_slot, node_of_rank, source
        [L, P] -1 in empty slots; [P]; [R]; [R] share of the tokens that each rank sends.
    layer_of_row, row_counts
        [H] layer of the placement in each row of the engine's file; whether the row is that layer's own and not that
        of a dense layer.
    seeded, seeded_at
        [624] state of the generator that every rank starts with, and the position in it.
    sizes
        E; the ranks first..last-1 that count. An expert with one replica counts for the first rank.
    shares
        [L, P] out; 0 in empty slots.
    """
    num_experts, first_rank, last_rank = sizes
    num_slots, num_ranks = phy2log.shape[1], node_of_rank.size
    words, at = np.empty((num_ranks, SIZE), dtype=np.uint32), np.empty((num_ranks, 1), dtype=np.int64)
    words[0], at[0, 0] = seeded, seeded_at
    walk_of_rank, num_walks = np.full(num_ranks, NONE), 1
    walk_of_rank[first_rank:last_rank] = 0
    first, slots = np.empty(num_experts + 1, dtype=np.int64), np.empty(num_slots, dtype=np.int64)
    near = np.empty(num_ranks, dtype=np.int64)
    shares[:] = 0.0
    for row in range(layer_of_row.size):
        layer = layer_of_row[row]
        first[:] = 0
        for expert in phy2log[layer]:
            if expert >= 0:
                first[expert + 1] += 1
        for expert in range(num_experts):
            first[expert + 1] += first[expert]
        end = first.copy()
        for slot in range(num_slots):
            if phy2log[layer, slot] >= 0:
                slots[end[phy2log[layer, slot]]] = slot
                end[phy2log[layer, slot]] += 1
        for expert in range(num_experts):
            own = slots[first[expert] : first[expert + 1]]
            if own.size == 1 and row_counts[row] and first_rank == 0:
                shares[layer, own[0]] = 1.0
            if own.size < 2:
                continue
            _nearest(own, rank_of_slot, node_of_rank, near)
            num_walks = _draw_far(near, own.size, walk_of_rank, words, at, num_walks)
            for rank in range(first_rank, last_rank if row_counts[row] else first_rank):
                shares[layer, own[near[rank]]] += source[rank]
