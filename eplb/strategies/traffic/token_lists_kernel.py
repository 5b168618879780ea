"""Builds the two lists that the searches read: the choices of each token, and the tokens of each expert."""

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb_traces.jit import helper, njit


@helper
def tokens_of_experts(first_choice: Ints, choice: Map, num_experts: int) -> tuple[Ints, Map]:
    """``(first [E + 1], token [choices])``: the tokens of expert e are the entries first[e] to first[e + 1]."""
    first = np.zeros(num_experts + 1, np.int64)
    for expert in choice:
        first[expert + 1] += 1
    for expert in range(num_experts):
        first[expert + 1] += first[expert]
    following = first[:-1].copy()
    token_of = np.empty(choice.size, np.int32)
    for token in range(first_choice.size - 1):
        for i in range(first_choice[token], first_choice[token + 1]):
            expert = choice[i]
            token_of[following[expert]] = token
            following[expert] += 1
    return first, token_of


@njit("Tuple((int64[::1], int32[::1]))(uint16[:, ::1], int32[::1], int64)")
def choices_among(expert_ids: NDArray[np.uint16], local_id: Map, least: int) -> tuple[Ints, Map]:
    """List the choices of each token among some experts; tokens with fewer than `least` of them are left out.

    Parameters
    ----------
    expert_ids
        [T, K] choices of a layer.
    local_id
        [E] number of each expert among those that count; -1 for the others.
    least
        1 or more.

    Returns
    -------
    tuple
        ``(first [t + 1], choice [choices])``: the local ids of token i are the entries first[i] to first[i + 1].
    """
    num_tokens, top_k = expert_ids.shape
    first = np.zeros(num_tokens + 1, np.int64)
    choice = np.empty(num_tokens * top_k, np.int32)
    kept, size = 0, 0
    for token in range(num_tokens):
        begin = size
        for k in range(top_k):
            local = local_id[expert_ids[token, k]]
            if local >= 0:
                choice[size] = local
                size += 1
        if size - begin < least:
            size = begin
            continue
        kept += 1
        first[kept] = size
    return first[: kept + 1].copy(), choice[:size].copy()


@njit("float64(uint16[:, ::1], float64[:, ::1])")
def expected_visits(expert_ids: NDArray[np.uint16], share: Floats) -> float:
    """Places that the tokens are expected to visit, summed over tokens.

    Parameters
    ----------
    expert_ids
        [T, K] choices of a layer.
    share
        [E, U] probability that a token of an expert goes to a place.
    """
    total = 0.0
    for token in range(expert_ids.shape[0]):
        for place in range(share.shape[1]):
            missed = 1.0
            for k in range(expert_ids.shape[1]):
                missed *= 1.0 - share[expert_ids[token, k], place]
            total += 1.0 - missed
    return total
