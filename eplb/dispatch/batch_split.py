"""Splits the counts of one batch over replicas so that rank loads are as equal as possible.

Every rank computes the same split from the same counts, without communication. Input and output are integers: a split
is rounded by largest remainder, and no token is lost.
"""

import numpy as np
from numpy.typing import NDArray

from eplb.errors import InputError

SWEEPS = 4
"""Rounds of block coordinate descent; the sum of squared rank loads is convex, and four rounds leave it nearly flat."""


def split_counts(
    tokens: NDArray[np.int64], log2phy: NDArray[np.int32], rank_of_slot: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Split every expert's tokens over its slots, least loaded ranks first.

    Experts with one slot are assigned first; the others are filled in by falling count (ties to the lowest id), then
    each is removed and filled in again, `SWEEPS` rounds. Cost: O(sweeps * replicated experts * X log X).

    Parameters
    ----------
    tokens
        [E] tokens of each logical expert in this batch, all ranks together.
    log2phy
        [E, X] slots of each expert, padded with -1.
    rank_of_slot
        [P] rank of each slot.

    Returns
    -------
    NDArray
        [E, X] tokens of each replica; a row sums to its expert's tokens, padding gets 0.

    Raises
    ------
    InputError
        If an expert with tokens has no slot.
    """
    count = (log2phy >= 0).sum(axis=1)
    if ((count == 0) & (tokens > 0)).any():
        expert = int(np.flatnonzero((count == 0) & (tokens > 0))[0])
        raise InputError(f"expert {expert} has {tokens[expert]} tokens and no slot")
    split = np.zeros(log2phy.shape, dtype=np.int64)
    split[:, 0] = tokens
    replicated = np.flatnonzero((count > 1) & (tokens > 0))
    single = count == 1
    rank_load = np.bincount(
        rank_of_slot[log2phy[single, 0]], weights=tokens[single], minlength=int(rank_of_slot.max()) + 1
    ).astype(np.int64)
    split[replicated] = 0
    order = replicated[np.argsort(-tokens[replicated], kind="stable")]
    for _ in range(SWEEPS):
        for expert in order:
            ranks = rank_of_slot[log2phy[expert, : count[expert]]]
            row = split[expert, : count[expert]]
            np.subtract.at(rank_load, ranks, row)
            row[:] = filled_in(int(tokens[expert]), ranks, rank_load)
            np.add.at(rank_load, ranks, row)
    return split


def filled_in(tokens: int, ranks: NDArray[np.int64], rank_load: NDArray[np.int64]) -> NDArray[np.int64]:
    """[X] tokens of each replica when `tokens` fill up ranks that carry `rank_load` already.

    Replicas on one rank share what the rank gets, the first taking the odd ones.
    """
    own_ranks, first, num_replicas = np.unique(ranks, return_index=True, return_counts=True)
    base = rank_load[own_ranks].astype(np.float64)
    by_load = np.sort(base)
    to_level = np.arange(1, by_load.size + 1) * by_load - np.cumsum(by_load)  # raises ranks up to the i-th
    num_filled = int(np.searchsorted(to_level, tokens, side="right"))
    fill_level = (tokens + by_load[:num_filled].sum()) / num_filled
    on_rank = largest_remainder(np.maximum(fill_level - base, 0.0), tokens)
    share = np.zeros(ranks.size, dtype=np.int64)
    for index, rank in enumerate(own_ranks):
        if num_replicas[index] == 1:
            share[first[index]] = on_rank[index]
        else:
            here = np.flatnonzero(ranks == rank)
            share[here] = largest_remainder(np.full(here.size, on_rank[index] / here.size), int(on_rank[index]))
    return share


def largest_remainder(shares: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Round shares that sum to `total`: the remainder goes to the largest fractions, ties to the lowest index."""
    whole = np.floor(shares + 1e-9).astype(np.int64)
    left = total - int(whole.sum())
    order = np.argsort(-(shares - whole), kind="stable")
    whole[order[:left]] += 1
    return whole


def source_quotas(
    split: NDArray[np.int64], source_tokens: NDArray[np.int64], slot_rank: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Assign the tokens of each source rank to an expert's replicas.

    A rank's own replica takes as many of that rank's tokens as it can; the rest are assigned in order of rank and slot.

    Parameters
    ----------
    split
        [X] tokens of each replica.
    source_tokens
        [R] the expert's tokens by source rank; same sum.
    slot_rank
        [X] rank of each replica.

    Returns
    -------
    NDArray
        [R, X] tokens from each rank to each replica; rows sum to `source_tokens`, columns to `split`.
    """
    quota = np.zeros((source_tokens.size, split.size), dtype=np.int64)
    room, waiting = split.copy(), source_tokens.copy()
    for replica, rank in enumerate(slot_rank):
        local = min(room[replica], waiting[rank])
        quota[rank, replica] = local
        room[replica] -= local
        waiting[rank] -= local
    ends_room, ends_waiting = np.cumsum(room), np.cumsum(waiting)
    overlap = np.minimum(ends_waiting[:, None], ends_room) - np.maximum(
        (ends_waiting - waiting)[:, None], ends_room - room
    )
    return quota + np.maximum(overlap, 0)
