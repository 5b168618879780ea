"""Compiled loop over pairs of a token's choices. Import this module inside the function that needs it: see `jit`."""

import numpy as np
from numpy.typing import NDArray

from eplb_traces.jit import njit

TOKENS_AT_ONCE = 128  # a constant of the kernel: its scratch rows and the table of counts share the core's caches


@njit("void(Array(uint16, 3, 'C', readonly=True), Array(int64, 1, 'C', readonly=True), int64, uint32[:, :, ::1])")
def count_pairs(
    expert_ids: NDArray[np.uint16], layers: NDArray[np.int64], distance: int, counts: NDArray[np.uint32]
) -> None:
    """Add every pair of choices of a token to a table per layer, in place.

    Some tokens at a time are laid out choice by choice, so that the innermost loop runs over tokens: its length does
    not depend on K, and all it does is add two numbers and count.

    Parameters
    ----------
    expert_ids
        [t, L, K], every id < E
    layers
        [n] the layer of the pair's first expert; every layer + distance < L
    distance
        Layers from the first expert to the second. At 0, each pair of one layer is counted once, in the order in which
        the token chose, and every choice with itself: the table plus its transpose is symmetric. Else all K x K pairs.
    counts
        [n, E, E] by first and second expert; below 2^32 before and after, which is for the caller to see to
    """
    num_tokens, _, top_k = expert_ids.shape
    num_experts = np.uint32(counts.shape[1])
    row = np.empty((top_k, TOKENS_AT_ONCE), dtype=np.uint32)
    column = np.empty((top_k, TOKENS_AT_ONCE), dtype=np.uint32)
    for n in range(layers.size):
        table = counts[n].reshape(-1)
        for start in range(0, num_tokens, TOKENS_AT_ONCE):
            size = min(TOKENS_AT_ONCE, num_tokens - start)
            for t in range(size):
                for k in range(top_k):
                    expert = np.uint32(expert_ids[start + t, layers[n], k])
                    row[k, t] = expert * num_experts
                    column[k, t] = expert if distance == 0 else expert_ids[start + t, layers[n] + distance, k]
            for first in range(top_k):
                first_row = row[first]
                for second in range(first if distance == 0 else 0, top_k):
                    second_column = column[second]
                    for t in range(size):
                        table[first_row[t] + second_column[t]] += 1
