"""Arranges the replicas of some ranks so that tokens visit few of them, under a cap on the rank load.

Under even dispatch an expert with c replicas sends a token to each of its ranks with probability 1 / c, independently
of the token's other choices. A token misses rank r with the product of 1 - p(e, r) over its experts e. ``alone[e, r]``
is the sum, over the tokens of e, of that product without e: so the expected visits are linear in the shares of one
expert, and a change of p(e, r) by d changes them by d * alone[e, r], exactly.

Moves are the exchange of two replicas of different ranks, and one more replica of an expert in the place of a replica
of another one. The gain of a move is the sum of the gains of its two experts; tokens that chose both make it an
estimate, and the visits after the move are exact again. Penalty and tabu list are those of the node partition.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import READ_FLOATS, READ_INTS, first_random, next_random
from eplb.strategies.traffic.node_partition_kernel import (
    ADAPTATION,
    FIRST_PENALTY,
    LEAST_PENALTY,
    MOST_PENALTY,
    SHORTEST_TENURE,
    STEPS_TO_ADAPT,
    Tokens,
)
from eplb.strategies.traffic.token_lists_kernel import tokens_of_experts
from eplb_traces.jit import helper, njit

TENURES = 6
STEPS_TO_RECOUNT = 256  # sums of products are computed anew after so many steps: rounding cannot add up
SWAP, REPLACE = 0, 1


class State(NamedTuple):
    """Shares of the experts, and what tokens miss."""

    share: Floats  # [E, R] probability that a token of the expert goes to the rank
    full: NDArray[np.int16]  # [T, R] choices of the token that go to the rank for certain
    partly: Floats  # [T, R] product of 1 - share over the choices that may go to the rank
    alone: Floats  # [E, R]


@helper
def _missed(full: int, partly: float, share: float) -> float:
    """Probability that a token misses a rank by all its choices but one of that share."""
    if share >= 1.0:
        return partly if full == 1 else 0.0
    return partly / (1.0 - share) if full == 0 else 0.0


@helper
def _count_visits(tokens: Tokens, state: State) -> float:
    """Fill `full`, `partly` and `alone` for the shares; returns the expected visits."""
    share, full, partly, alone = state.share, state.full, state.partly, state.alone
    full[:], partly[:], alone[:] = 0, 1.0, 0.0
    visits, num_ranks = 0.0, share.shape[1]
    for token in range(full.shape[0]):
        begin, end = tokens.first_choice[token], tokens.first_choice[token + 1]
        for i in range(begin, end):
            for rank in range(num_ranks):
                if share[tokens.choice[i], rank] >= 1.0:
                    full[token, rank] += 1
                else:
                    partly[token, rank] *= 1.0 - share[tokens.choice[i], rank]
        for rank in range(num_ranks):
            visits += 1.0 if full[token, rank] > 0 else 1.0 - partly[token, rank]
        for i in range(begin, end):
            expert = tokens.choice[i]
            for rank in range(num_ranks):
                alone[expert, rank] += _missed(full[token, rank], partly[token, rank], share[expert, rank])
    return visits


@helper
def _set_share(tokens: Tokens, state: State, expert: int, rank: int, new: float) -> float:
    """Change one share; returns the change of the expected visits."""
    share, full, partly, alone = state.share, state.full, state.partly, state.alone
    old = share[expert, rank]
    if new == old:
        return 0.0
    for i in range(tokens.first_token[expert], tokens.first_token[expert + 1]):
        token = tokens.token_of[i]
        full_before, partly_before = full[token, rank], partly[token, rank]
        full_after, partly_after = full_before, partly_before
        if old >= 1.0:
            full_after -= 1
        else:
            partly_after /= 1.0 - old
        if new >= 1.0:
            full_after += 1
        else:
            partly_after *= 1.0 - new
        full[token, rank], partly[token, rank] = full_after, partly_after
        if full_before > 1 and full_after > 1:
            continue
        for j in range(tokens.first_choice[token], tokens.first_choice[token + 1]):
            other = tokens.choice[j]
            if other != expert:
                own = share[other, rank]
                alone[other, rank] += _missed(full_after, partly_after, own) - _missed(full_before, partly_before, own)
    share[expert, rank] = new
    return (new - old) * alone[expert, rank]


@helper
def _set_count(tokens: Tokens, state: State, expert: int, new_count: int, gone: int, added: int) -> float:
    """Give the expert's ranks the share of `new_count` replicas, without rank `gone` and with rank `added`, or -1."""
    change = 0.0
    for rank in range(state.share.shape[1]):
        if rank == gone:
            change += _set_share(tokens, state, expert, rank, 0.0)
        elif rank == added or state.share[expert, rank] > 0:
            change += _set_share(tokens, state, expert, rank, 1.0 / new_count)
    return change


@helper
def _over(load: float, cap: float) -> float:
    return max(0.0, load / cap - 1.0)


@helper
def _growth_of_replacement(
    state: State, count: Ints, load: Floats, rank_load: Floats, cap: Floats, over: Floats, expert: int, other: int,
    rank: int,
) -> float:  # fmt: skip
    """Change of the load above the caps if the replica of `other` on the rank becomes one of `expert`."""
    more = load[expert] / (count[expert] + 1)
    less = load[expert] / count[expert] - more
    other_now = load[other] / count[other]
    other_more = load[other] / (count[other] - 1) - other_now
    growth = 0.0
    for r in range(rank_load.size):
        change = 0.0
        if state.share[expert, r] > 0:
            change -= less
        if r == rank:
            change += more - other_now
        elif state.share[other, r] > 0:
            change += other_more
        if change != 0.0:
            growth += _over(rank_load[r] + change, cap[r]) - over[r]
    return growth


@helper
def _sum_loads(state: State, load: Floats, cap: Floats, rank_load: Floats, over: Floats) -> float:
    """Fill the rank loads and what is above the caps; returns the latter's sum."""
    for rank in range(rank_load.size):
        rank_load[rank] = 0.0
        for expert in range(load.size):
            rank_load[rank] += load[expert] * state.share[expert, rank]
        over[rank] = _over(rank_load[rank], cap[rank] * (1 + 1e-12))
    return over.sum()


@njit(
    f"Tuple((float64, float64))(int64[::1], int32[::1], {READ_FLOATS}, {READ_INTS}, {READ_FLOATS}, int64, uint64,"
    " int32[::1])"
)
def arrange_replicas(
    first_choice: Ints, choice: Map, load: Floats, first_slot: Ints, cap: Floats, num_steps: int, seed: int,
    phy2log: Map,
) -> tuple[float, float]:  # fmt: skip
    """Search for the map with the fewest expected visits among those with the least load above the caps.

    Parameters
    ----------
    first_choice, choice
        [T + 1], [choices] the experts of each token, of those that live on these ranks.
    load
        [E] tokens of each expert.
    first_slot
        [R + 1] first slot of each rank, then P.
    cap
        [R] most tokens of each rank.
    num_steps
        Moves.
    seed
        Of the tabu tenures.
    phy2log
        [P] expert of each slot, none twice on a rank: in, the start; out, the best found.

    Returns
    -------
    tuple
        Expected visits (tokens x ranks), and the load above the caps as a sum of relative excesses; 0 if none.
    """
    num_experts, num_ranks, num_slots = load.size, cap.size, phy2log.size
    tokens = Tokens(first_choice, choice, *tokens_of_experts(first_choice, choice, num_experts))
    num_tokens = first_choice.size - 1
    rank_of_slot = np.repeat(np.arange(num_ranks), np.diff(first_slot))
    count = np.zeros(num_experts, np.int64)
    for slot in range(num_slots):
        count[phy2log[slot]] += 1
    state = State(
        np.zeros((num_experts, num_ranks)), np.zeros((num_tokens, num_ranks), np.int16),
        np.ones((num_tokens, num_ranks)), np.zeros((num_experts, num_ranks)),
    )  # fmt: skip
    for slot in range(num_slots):
        state.share[phy2log[slot], rank_of_slot[slot]] = 1.0 / count[phy2log[slot]]
    visits = _count_visits(tokens, state)
    rank_load, over = np.empty(num_ranks), np.empty(num_ranks)
    total_over = _sum_loads(state, load, cap, rank_load, over)
    best, best_visits, best_over = phy2log.copy(), visits, total_over
    stays_until, held_alone = np.zeros(num_experts, np.int64), np.empty(num_experts)
    penalty, streak, random = FIRST_PENALTY, 0, first_random(seed, 0)
    for step in range(num_steps):
        for expert in range(num_experts):
            held_alone[expert] = 0.0
            for rank in range(num_ranks):
                if state.share[expert, rank] > 0:
                    held_alone[expert] += state.alone[expert, rank]
        weight = penalty * num_tokens
        kind, slot, other_slot, lowest = -1, -1, -1, np.inf
        for i in range(num_slots):
            expert, rank = phy2log[i], rank_of_slot[i]
            if stays_until[expert] > step:
                continue
            unit = load[expert] / count[expert]
            for j in range(first_slot[rank + 1], num_slots):
                other, other_rank = phy2log[j], rank_of_slot[j]
                if (
                    stays_until[other] > step
                    or state.share[expert, other_rank] > 0
                    or state.share[other, rank] > 0
                ):  # fmt: skip
                    continue
                moved = unit - load[other] / count[other]
                cost = (state.alone[expert, other_rank] - state.alone[expert, rank]) / count[expert]
                cost += (state.alone[other, rank] - state.alone[other, other_rank]) / count[other]
                growth = _over(rank_load[rank] - moved, cap[rank]) - over[rank]
                growth += _over(rank_load[other_rank] + moved, cap[other_rank]) - over[other_rank]
                cost += weight * growth
                if cost < lowest:
                    kind, slot, other_slot, lowest = SWAP, i, j, cost
            if count[expert] == 1:
                continue
            # One more replica of `gained` in the place of this replica.
            base = (held_alone[expert] - state.alone[expert, rank]) / (count[expert] - 1)
            base -= held_alone[expert] / count[expert]
            for gained in range(num_experts):
                if stays_until[gained] > step or state.share[gained, rank] > 0:
                    continue
                cost = base + (held_alone[gained] + state.alone[gained, rank]) / (count[gained] + 1)
                cost -= held_alone[gained] / count[gained]
                if cost - weight * total_over >= lowest:
                    continue  # not even if no rank were above its cap
                cost += weight * _growth_of_replacement(state, count, load, rank_load, cap, over, gained, expert, rank)
                if cost < lowest:
                    kind, slot, other_slot, lowest = REPLACE, i, gained, cost
        if kind < 0:
            continue
        expert, rank = phy2log[slot], rank_of_slot[slot]
        if kind == SWAP:
            other, other_rank = phy2log[other_slot], rank_of_slot[other_slot]
            visits += _set_count(tokens, state, expert, count[expert], rank, other_rank)
            visits += _set_count(tokens, state, other, count[other], other_rank, rank)
            phy2log[slot], phy2log[other_slot] = other, expert
        else:
            other = other_slot
            visits += _set_count(tokens, state, expert, count[expert] - 1, rank, -1)
            visits += _set_count(tokens, state, other, count[other] + 1, -1, rank)
            count[expert] -= 1
            count[other] += 1
            phy2log[slot] = other
        if step % STEPS_TO_RECOUNT == STEPS_TO_RECOUNT - 1:
            visits = _count_visits(tokens, state)
        total_over = _sum_loads(state, load, cap, rank_load, over)
        for moved_expert in (np.int64(expert), np.int64(other)):
            random = next_random(random)
            tenure = SHORTEST_TENURE + np.int64((random >> np.uint64(4)) % np.uint64(TENURES))
            stays_until[moved_expert] = step + 1 + tenure
        streak = max(streak, 0) + 1 if total_over > 0 else min(streak, 0) - 1
        if abs(streak) >= STEPS_TO_ADAPT:
            penalty = penalty * ADAPTATION if streak > 0 else penalty / ADAPTATION
            penalty = min(MOST_PENALTY, max(LEAST_PENALTY, penalty))
            streak = 0
        if total_over < best_over or (total_over == best_over and visits < best_visits):
            best_visits, best_over = visits, total_over
            best[:] = phy2log
    phy2log[:] = best
    return best_visits, best_over
