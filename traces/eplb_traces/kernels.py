"""Compiled loops over token-level expert ids. Import this module inside the function that needs it: see `jit`."""

import numpy as np
from numpy.typing import NDArray

from eplb_traces.jit import njit


@njit("int64(Array(uint16, 3, 'C', readonly=True), int64)")
def first_bad_choice(expert_ids: NDArray[np.uint16], num_experts: int) -> int:
    """Find the flat index t * L + l of the first (token, layer) with an id >= `num_experts` or an id twice; -1: none.

    Parameters
    ----------
    expert_ids
        [t, L, K]
    num_experts
        E
    """
    num_tokens, num_layers, top_k = expert_ids.shape
    last_choice_with = np.full(num_experts, -1, dtype=np.int64)
    for token in range(num_tokens):
        for layer in range(num_layers):
            choice: int = token * num_layers + layer
            for k in range(top_k):
                expert = expert_ids[token, layer, k]
                if expert >= num_experts or last_choice_with[expert] == choice:
                    return choice
                last_choice_with[expert] = choice
    return -1


@njit("void(Array(uint16, 3, 'C', readonly=True), Array(int64, 1, 'C', readonly=True), int64[:, :, ::1])")
def count_tokens(expert_ids: NDArray[np.uint16], window_of_token: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    """Add every choice to ``counts[window of the token, layer, expert]``, in place.

    Parameters
    ----------
    expert_ids
        [t, L, K], every id < E
    window_of_token
        [t], every window < W
    counts
        [W, L, E]
    """
    num_tokens, num_layers, top_k = expert_ids.shape
    for token in range(num_tokens):
        window = window_of_token[token]
        for layer in range(num_layers):
            for k in range(top_k):
                counts[window, layer, expert_ids[token, layer, k]] += 1
