"""One placement for many loads: spread the copies, then exchange experts while the busiest moments get less busy.

Knows arrays only. Every scenario is scaled to mean rank load 1, so a rank's row of loads over scenarios can be weighed
by the sum of its p-th powers: a soft maximum over ranks and scenarios together. Sums run in four fixed lanes, so that
the result is the same on every machine.
"""

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb_traces.jit import njit

LANES = 4  # scenarios are padded with zeros to a multiple of this
MIN_RELATIVE_GAIN = 1e-9


@njit("float64(float64, int64)")
def _power(x: float, doublings: int) -> float:
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


@njit("float64(float64[::1], int64)")
def _row_cost(row: Floats, doublings: int) -> float:
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    for t in range(0, row.size, 4):
        s0 += _power(row[t], doublings)
        s1 += _power(row[t + 1], doublings)
        s2 += _power(row[t + 2], doublings)
        s3 += _power(row[t + 3], doublings)
    return (s0 + s1) + (s2 + s3)


@njit("float64(float64[::1], float64[::1], float64, float64, float64[::1], float64[::1], float64, int64)")
def _cost_after_exchange(
    row: Floats,
    partner_row: Floats,
    scale: float,
    partner_scale: float,
    leaving: Floats,
    coming: Floats,
    limit: float,
    doublings: int,
) -> float:
    """Sum of both rows' costs if `leaving` and `coming` change places; anything >= `limit` once that is certain."""
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    for t in range(0, row.size, 4):
        d0, d1 = leaving[t] - coming[t], leaving[t + 1] - coming[t + 1]
        d2, d3 = leaving[t + 2] - coming[t + 2], leaving[t + 3] - coming[t + 3]
        s0 += _power(row[t] - scale * d0, doublings) + _power(partner_row[t] + partner_scale * d0, doublings)
        s1 += _power(row[t + 1] - scale * d1, doublings) + _power(partner_row[t + 1] + partner_scale * d1, doublings)
        s2 += _power(row[t + 2] - scale * d2, doublings) + _power(partner_row[t + 2] + partner_scale * d2, doublings)
        s3 += _power(row[t + 3] - scale * d3, doublings) + _power(partner_row[t + 3] + partner_scale * d3, doublings)
        if (s0 + s1) + (s2 + s3) >= limit:
            return limit
    return (s0 + s1) + (s2 + s3)


@njit("boolean(int32[::1], int64, int64, int64)")
def _holds(phy2log: Map, first: int, last: int, expert: int) -> bool:
    """Whether one of the slots first..last-1 holds the expert."""
    for slot in range(first, last):  # noqa: SIM110  # numba compiles the loop, not any()
        if phy2log[slot] == expert:
            return True
    return False


@njit("uint64(uint64)")
def _next_random(state: int) -> int:
    """Marsaglia's xorshift64."""
    state ^= state << np.uint64(13)
    state ^= state >> np.uint64(7)
    return state ^ (state << np.uint64(17))


@njit(
    "boolean(float64[:, ::1], int64[::1], int64[::1], int64[::1], float64[::1], int32[::1], float64[:, ::1])",
)
def _place_spread(
    unit: Floats, count: Ints, order: Ints, first_slot: Ints, rank_scale: Floats, phy2log: Map, rank_rows: Floats
) -> bool:
    """Place experts in `order`, each copy where the sum of 4th powers grows least; False if a copy finds no rank.

    Experts with several copies come first in `order`. Each of their copies goes to a rank that has as few of them as
    any other, so that every rank holds its share: there load is spread already, or can be moved when it drifts.
    """
    num_ranks = rank_scale.size
    used = np.zeros(num_ranks, dtype=np.int64)
    rank_rows[:] = 0.0
    for expert in order:
        for _ in range(count[expert]):
            fewest = phy2log.size
            for rank in range(num_ranks):
                first, last = first_slot[rank], first_slot[rank] + used[rank]
                if last < first_slot[rank + 1] and not _holds(phy2log, first, last, expert):
                    fewest = min(fewest, used[rank])
            found, least = -1, np.inf
            for rank in range(num_ranks):
                first, last = first_slot[rank], first_slot[rank] + used[rank]
                if last == first_slot[rank + 1] or _holds(phy2log, first, last, expert):
                    continue
                if count[expert] > 1 and used[rank] > fewest:
                    continue
                growth = 0.0
                for t in range(unit.shape[1]):
                    before = rank_rows[rank, t]
                    growth += _power(before + rank_scale[rank] * unit[expert, t], 2) - _power(before, 2)
                if growth < least:
                    found, least = rank, growth
            if found < 0:
                return False
            phy2log[first_slot[found] + used[found]] = expert
            used[found] += 1
            for t in range(unit.shape[1]):
                rank_rows[found, t] += rank_scale[found] * unit[expert, t]
    return True


@njit(
    "void(float64[:, ::1], int64[::1], int64[::1], float64[::1], int64, boolean, int64, uint64, int32[::1],"
    " float64[:, ::1])",
)
def _exchange_at_random(
    unit: Floats,
    count: Ints,
    first_slot: Ints,
    rank_scale: Floats,
    doublings: int,
    keep_spread: bool,
    num_tries: int,
    random: int,
    phy2log: Map,
    rank_rows: Floats,
) -> None:
    """Try exchanges, every second one out of the costliest rank; keep those that lower the two ranks' cost.

    With `keep_spread` an expert with one copy changes places only with another such, and so with several: every rank
    then keeps its share of the copies.
    """
    num_ranks = rank_scale.size
    cost = np.empty(num_ranks, dtype=np.float64)
    for rank in range(num_ranks):
        cost[rank] = _row_cost(rank_rows[rank], doublings)
    costliest = np.argmax(cost)
    for turn in range(num_tries):
        random = _next_random(random)
        rank = costliest if turn & 1 == 0 else np.int64((random >> np.uint64(4)) % np.uint64(num_ranks))
        width = np.uint64(first_slot[rank + 1] - first_slot[rank])
        slot = first_slot[rank] + np.int64((random >> np.uint64(36)) % width)
        random = _next_random(random)
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
            rank_rows[rank], rank_rows[partner], scale, partner_scale, unit[expert], unit[other], limit, doublings
        )
        if after >= limit:
            continue
        if count[expert] > 1 and _holds(phy2log, first_slot[partner], first_slot[partner + 1], expert):
            continue
        if count[other] > 1 and _holds(phy2log, first_slot[rank], first_slot[rank + 1], other):
            continue
        phy2log[slot], phy2log[partner_slot] = other, expert
        for t in range(unit.shape[1]):
            moved = unit[expert, t] - unit[other, t]
            rank_rows[rank, t] -= scale * moved
            rank_rows[partner, t] += partner_scale * moved
        cost[rank] = _row_cost(rank_rows[rank], doublings)
        cost[partner] = _row_cost(rank_rows[partner], doublings)
        costliest = np.argmax(cost)


@njit(
    "void(float64[:, :, ::1], int64[:, ::1], int64[:, ::1], int64[::1], float64[::1], int64[::1], int64, uint64,"
    " int64, float64, boolean, int32[:, ::1], boolean[::1])",
)
def plan_layers(
    scenarios: Floats,
    count: Ints,
    order: Ints,
    first_slot: Ints,
    rank_scale: Floats,
    doublings: Ints,
    num_tries: int,
    seed: int,
    first_layer: int,
    copies_share: float,
    keep_spread: bool,
    phy2log: Map,
    placed: NDArray[np.bool_],
) -> None:
    """Place and improve every layer.

    Parameters
    ----------
    scenarios
        [L, E, T] tokens scaled so that the mean rank has 1 in each scenario; T padded with zeros to a multiple of 4.
    count, order
        [L, E] copies of each expert, at most one a rank; experts to place, those with several copies first.
    first_slot, rank_scale
        [R + 1] first slot of each rank, then P; [R] 1 / relative speed.
    doublings
        One descent for each, with costs of power 2 ** doublings.
    num_tries
        Exchanges tried in each descent.
    seed, first_layer
        Layer l of this call draws its random numbers from seed and first_layer + l.
    copies_share
        How much of its even share a copy counts: 1 for even dispatch, less where the runtime splits each batch anew
        and can take load off a copy.
    keep_spread
        Whether every rank keeps its even share of the experts with several copies.
    phy2log, placed
        [L, P] out; [L] out: False where a layer was not placed.
    """
    num_layers, num_experts, num_scenarios = scenarios.shape
    unit = np.empty((num_experts, num_scenarios), dtype=np.float64)
    rank_rows = np.empty((rank_scale.size, num_scenarios), dtype=np.float64)
    for layer in range(num_layers):
        for expert in range(num_experts):
            share = 1.0 if count[layer, expert] == 1 else copies_share / count[layer, expert]
            for t in range(num_scenarios):
                unit[expert, t] = share * scenarios[layer, expert, t]
        placed[layer] = _place_spread(
            unit, count[layer], order[layer], first_slot, rank_scale, phy2log[layer], rank_rows
        )
        if not placed[layer]:
            continue
        random = np.uint64(seed) * np.uint64(2654435761) + np.uint64(first_layer + layer + 1) * np.uint64(
            0x9E3779B97F4A7C15
        )
        random = random | np.uint64(1)
        for power in doublings:
            _exchange_at_random(
                unit,
                count[layer],
                first_slot,
                rank_scale,
                power,
                keep_spread,
                num_tries,
                random,
                phy2log[layer],
                rank_rows,
            )
            random = _next_random(random)
