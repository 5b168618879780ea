"""Compiled loops over pairs of a token's choices. Import this module inside the function that needs it: see `jit`."""

import numpy as np
from numpy.typing import NDArray

from eplb_traces.jit import helper, njit

TOKENS_AT_ONCE = 128  # a constant of the kernel: its scratch rows and the table of counts share the core's caches


@helper
def _lay_out(expert_ids: NDArray[np.uint16], layer: int, by_choice: NDArray[np.uint32]) -> None:
    """Copy the choices of a layer, [t, L, K], to [K, at least t]."""
    num_tokens, _, top_k = expert_ids.shape
    for t in range(num_tokens):
        for k in range(top_k):
            by_choice[k, t] = expert_ids[t, layer, k]


@helper
def _count(entries: NDArray[np.uint32], table: NDArray[np.uint32]) -> None:
    """Add one to the table at every entry; an entry may be there more than once."""
    for entry in entries:
        table[entry] += 1


@njit("void(Array(uint16, 3, 'C', readonly=True), Array(int64, 1, 'C', readonly=True), int64, uint32[:, :, ::1])")
def count_pairs(
    expert_ids: NDArray[np.uint16], layers: NDArray[np.int64], distance: int, counts: NDArray[np.uint32]
) -> None:
    """Add every pair of choices of a token to a table per layer, in place.

    Some tokens at a time are laid out choice by choice, so that the inner loops run over tokens: their length does not
    depend on K. One loop computes where each pair is counted, with vector instructions, the next one counts.

    Parameters
    ----------
    expert_ids
        [t, L, K], every id < E
    layers
        [n] the layer of the pair's first expert; every layer + distance < L
    distance
        Layers from the first expert to the second. At 0, each pair of one layer is counted once, at the lower id and
        the higher one, and every choice with itself: half of the table is used. Else all K x K pairs.
    counts
        [n, E, E] by first and second expert; below 2^32 before and after, which is for the caller to see to
    """
    num_tokens, _, top_k = expert_ids.shape
    num_experts = np.uint32(counts.shape[1])
    first_ids = np.empty((top_k, TOKENS_AT_ONCE), dtype=np.uint32)
    second_ids = first_ids if distance == 0 else np.empty_like(first_ids)
    entry = np.empty(TOKENS_AT_ONCE, dtype=np.uint32)
    for n in range(layers.size):
        table = counts[n].reshape(-1)
        for start in range(0, num_tokens, TOKENS_AT_ONCE):
            ids = expert_ids[start : start + TOKENS_AT_ONCE]
            size = len(ids)
            _lay_out(ids, layers[n], first_ids)
            if distance != 0:
                _lay_out(ids, layers[n] + distance, second_ids)
            for k in range(top_k):
                first = first_ids[k]
                for j in range(k if distance == 0 else 0, top_k):
                    second = second_ids[j]
                    if distance == 0:
                        for t in range(size):
                            low, high = min(first[t], second[t]), max(first[t], second[t])
                            entry[t] = low * num_experts + high
                    else:
                        for t in range(size):
                            entry[t] = first[t] * num_experts + second[t]
                    _count(entry[:size], table)
