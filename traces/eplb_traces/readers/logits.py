"""Chooses the experts of tokens from router logits: the K largest, within the best groups where routing is limited."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError


def chosen_experts(
    logits: NDArray[Any], top_k: int, *, num_groups: int = 1, top_groups: int | None = None
) -> NDArray[np.int64]:
    """Return the ids of the K largest logits, largest first, ties to the lowest id.

    Softmax and sigmoid keep the order, so that the ids do not depend on them.

    Parameters
    ----------
    logits
        [.., E]
    top_k
        K
    num_groups, top_groups
        Choices lie in the `top_groups` groups with the largest logits (DeepSeek-V2's group-limited greedy routing,
        arXiv:2405.04434, section 2.1.2); None: no limit.

    Raises
    ------
    InputError
        If K is above E.
    """
    num_experts = logits.shape[-1]
    if not 1 <= top_k <= num_experts:
        raise InputError(f"top_k = {top_k} (--top-k): expected 1 to {num_experts}, the logits of a token")
    scores = logits.astype(np.float64)
    if top_groups is not None and top_groups < num_groups:
        grouped = scores.reshape(*scores.shape[:-1], num_groups, num_experts // num_groups)
        order = np.argsort(-grouped.max(axis=-1), axis=-1, kind="stable")
        mask = np.ones(order.shape, dtype=bool)
        np.put_along_axis(mask, order[..., :top_groups], False, axis=-1)
        grouped[mask] = -np.inf
        scores = grouped.reshape(scores.shape)
    ids: NDArray[np.int64] = np.argsort(-scores, axis=-1, kind="stable")[..., :top_k]
    return ids
