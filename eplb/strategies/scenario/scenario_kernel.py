"""Makes one placement for many windows: spreads the replicas, then exchanges while the busiest moments get less busy.

Every window is scaled to mean rank load 1, so a rank's row of loads over windows can be weighed by the sum of its p-th
powers: a soft maximum over ranks and windows together. Sums run in four fixed lanes, so that the result is the same on
every machine.
"""

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import (
    MIN_RELATIVE_GAIN,
    READ_FLOATS,
    READ_INTS,
    first_random,
    holds,
    next_random,
    power,
    sum_of_powers,
)
from eplb_traces.jit import helper, njit

DOUBLINGS = (3, 4)  # one descent for each, with costs of power 2 ** doublings


@helper
def _cost_after_exchange(
    row: Floats, partner_row: Floats, scale: float, partner_scale: float, leaving: Floats, coming: Floats,
    limit: float, doublings: int,
) -> float:  # fmt: skip
    """Sum of both rows' costs if `leaving` and `coming` change places; anything >= `limit` once that is certain."""
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    for t in range(0, row.size, 4):
        d0, d1 = leaving[t] - coming[t], leaving[t + 1] - coming[t + 1]
        d2, d3 = leaving[t + 2] - coming[t + 2], leaving[t + 3] - coming[t + 3]
        s0 += power(row[t] - scale * d0, doublings) + power(partner_row[t] + partner_scale * d0, doublings)
        s1 += power(row[t + 1] - scale * d1, doublings) + power(partner_row[t + 1] + partner_scale * d1, doublings)
        s2 += power(row[t + 2] - scale * d2, doublings) + power(partner_row[t + 2] + partner_scale * d2, doublings)
        s3 += power(row[t + 3] - scale * d3, doublings) + power(partner_row[t + 3] + partner_scale * d3, doublings)
        if (s0 + s1) + (s2 + s3) >= limit:
            return limit
    return (s0 + s1) + (s2 + s3)


@helper
def _place_spread(
    replica_load: Floats, count: Ints, order: Ints, first_slot: Ints, rank_scale: Floats, phy2log: Map,
    rank_load: Floats,
) -> bool:  # fmt: skip
    """Place experts in `order`, each replica where the sum of 4th powers grows least; False if one finds no rank.

    Experts with several replicas come first in `order`. Each of their replicas goes to a rank that has as few of them
    as any other, so that every rank holds its share: there load is spread already, or can be moved when it drifts.
    """
    num_ranks, num_windows = rank_load.shape
    used = np.zeros(num_ranks, dtype=np.int64)
    rank_load[:] = 0.0
    for expert in order:
        for _ in range(count[expert]):
            fewest = phy2log.size
            for rank in range(num_ranks):
                first, last = first_slot[rank], first_slot[rank] + used[rank]
                if last < first_slot[rank + 1] and not holds(phy2log, first, last, expert):
                    fewest = min(fewest, used[rank])
            found, least = -1, np.inf
            for rank in range(num_ranks):
                first, last = first_slot[rank], first_slot[rank] + used[rank]
                if last == first_slot[rank + 1] or holds(phy2log, first, last, expert):
                    continue
                if count[expert] > 1 and used[rank] > fewest:
                    continue
                growth = 0.0
                for t in range(num_windows):
                    before = rank_load[rank, t]
                    growth += power(before + rank_scale[rank] * replica_load[expert, t], 2) - power(before, 2)
                if growth < least:
                    found, least = rank, growth
            if found < 0:
                return False
            phy2log[first_slot[found] + used[found]] = expert
            used[found] += 1
            for t in range(num_windows):
                rank_load[found, t] += rank_scale[found] * replica_load[expert, t]
    return True


@helper
def _exchange_at_random(
    replica_load: Floats, count: Ints, first_slot: Ints, rank_scale: Floats, doublings: int, keep_spread: bool,
    num_tries: int, random: np.uint64, phy2log: Map, rank_load: Floats,
) -> None:  # fmt: skip
    """Try exchanges, every second one out of the costliest rank; keep those that lower the two ranks' cost.

    With `keep_spread` an expert with one replica changes places only with another such, and so with several: every rank
    then keeps its share of the replicas.
    """
    num_ranks = rank_scale.size
    cost = np.empty(num_ranks)
    for rank in range(num_ranks):
        cost[rank] = sum_of_powers(rank_load[rank], doublings)
    costliest = np.argmax(cost)
    for turn in range(num_tries):
        random = next_random(random)
        rank = costliest if turn & 1 == 0 else np.int64((random >> np.uint64(4)) % np.uint64(num_ranks))
        width = np.uint64(first_slot[rank + 1] - first_slot[rank])
        slot = first_slot[rank] + np.int64((random >> np.uint64(36)) % width)
        random = next_random(random)
        partner = np.int64((random >> np.uint64(4)) % np.uint64(num_ranks))
        width = np.uint64(first_slot[partner + 1] - first_slot[partner])
        partner_slot = first_slot[partner] + np.int64((random >> np.uint64(36)) % width)
        expert, other = phy2log[slot], phy2log[partner_slot]
        if partner == rank or expert == other:
            continue
        if keep_spread and (count[expert] > 1) != (count[other] > 1):
            continue
        limit = (cost[rank] + cost[partner]) * (1 - MIN_RELATIVE_GAIN)
        scale, partner_scale = rank_scale[rank], rank_scale[partner]
        after = _cost_after_exchange(
            rank_load[rank], rank_load[partner], scale, partner_scale, replica_load[expert], replica_load[other], limit,
            doublings,
        )  # fmt: skip
        if after >= limit:
            continue
        if count[expert] > 1 and holds(phy2log, first_slot[partner], first_slot[partner + 1], expert):
            continue
        if count[other] > 1 and holds(phy2log, first_slot[rank], first_slot[rank + 1], other):
            continue
        phy2log[slot], phy2log[partner_slot] = other, expert
        for t in range(replica_load.shape[1]):
            moved = replica_load[expert, t] - replica_load[other, t]
            rank_load[rank, t] -= scale * moved
            rank_load[partner, t] += partner_scale * moved
        cost[rank] = sum_of_powers(rank_load[rank], doublings)
        cost[partner] = sum_of_powers(rank_load[partner], doublings)
        costliest = np.argmax(cost)


@njit(
    f"void(float64[:, :, ::1], int64[:, ::1], int64[:, ::1], {READ_INTS}, {READ_FLOATS}, int64, uint64, int64, float64,"
    " boolean, int32[:, ::1])"
)
def plan_layers(
    load: Floats, count: Ints, order: Ints, first_slot: Ints, rank_scale: Floats, num_tries: int, seed: int,
    first_layer: int, replica_share: float, keep_spread: bool, phy2log: Map,
) -> None:  # fmt: skip
    """Place and improve every layer.

    Parameters
    ----------
    load
        [L, E, W] tokens scaled so that the mean rank has 1 in each window; W padded with zeros to a multiple of 4.
    count, order
        [L, E] replicas of each expert, at most one a rank; experts to place, those with several replicas first.
    first_slot, rank_scale
        [R + 1] first slot of each rank, then P; [R] 1 / relative speed.
    num_tries
        Exchanges tried in each descent.
    seed, first_layer
        Layer l of this call draws its random numbers from seed and first_layer + l.
    replica_share
        How much of its even share a replica counts: 1 for even dispatch, less where the runtime splits each batch anew
        and can take load off a replica.
    keep_spread
        Whether every rank keeps its even share of the experts with several replicas.
    phy2log
        [L, P] out; -1 in the first slot of a layer that was not placed.
    """
    num_layers, num_experts, num_windows = load.shape
    replica_load, rank_load = np.empty((num_experts, num_windows)), np.empty((rank_scale.size, num_windows))
    for layer in range(num_layers):
        for expert in range(num_experts):
            share = 1.0 if count[layer, expert] == 1 else replica_share / count[layer, expert]
            for t in range(num_windows):
                replica_load[expert, t] = share * load[layer, expert, t]
        if not _place_spread(
            replica_load, count[layer], order[layer], first_slot, rank_scale, phy2log[layer], rank_load
        ):  # fmt: skip
            phy2log[layer, 0] = -1
            continue
        random = first_random(seed, first_layer + layer)
        for doublings in DOUBLINGS:
            _exchange_at_random(
                replica_load, count[layer], first_slot, rank_scale, doublings, keep_spread, num_tries, random,
                phy2log[layer], rank_load,
            )  # fmt: skip
            random = next_random(random)
