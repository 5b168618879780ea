"""Lowers the busiest rank of a layer under a dispatch rule: exchanges of two slots, and replaced replicas.

As in `greedy.local_search_kernel`, the busiest rank looks for partners among the ranks with the least time, and the
first exchange is made that brings every rank it changes to a level some way down to the mean. Here an exchange changes
the shares of all replicas of both experts. Where no exchange helps, a replica is replaced by one of another expert:
the step that leaves the ranks of both lowest. Where that does not help either, exchanges between other ranks that stay
below the busiest one change what it can be offered.
"""

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import MIN_RELATIVE_GAIN, READ_FLOATS_2D, first_random, next_random
from eplb.dispatch.replica_shares_kernel import SHARE_RULE, share_rule
from eplb.strategies.under_rule.layer_state_kernel import (
    FREEDOM,
    NONE,
    RANKS,
    Flags,
    Freedom,
    LayerState,
    Ranks,
    blank_state,
    examine,
    exchange,
    highest_after,
    may_move,
    replace,
    start,
)
from eplb_traces.jit import helper, njit

LEVELS = (0.5, 0.75, 0.9, 0.98)  # shares of the way from the mean to the busiest rank: levels of an exchange
MOST_PARTNERS = 8  # ranks of least time that are tried at each level
COARSE = 1.002  # busiest over mean rank below which the slow steps are not tried: any gain, replacing a replica
KICKS = 4  # random exchanges between other ranks before the busiest one is tried again
TRIES_PER_KICK = 50


@helper
def _exchange_singles(state: LayerState, rank: int, partner: int, level: float) -> bool:
    """Make the first exchange of two experts with one replica each that brings both ranks to the level."""
    first_slot, count, allowed = state.ranks.first_slot, state.count, state.freedom.allowed
    least = (state.rank_time[rank] - level) / state.ranks.scale[rank]
    most = (level - state.rank_time[partner]) / state.ranks.scale[partner]
    if least > most:
        return False
    for slot in range(first_slot[rank], first_slot[rank + 1]):
        expert = state.phy2log[slot]
        own = state.load[expert]
        if own < least or count[expert] != 1 or state.fixed[slot] or not allowed[expert, partner]:
            continue
        for other_slot in range(first_slot[partner], first_slot[partner + 1]):
            other = state.phy2log[other_slot]
            moved = own - state.load[other]
            if moved == 0 or not least <= moved <= most or count[other] != 1 or state.fixed[other_slot]:
                continue
            if allowed[other, rank]:
                state.num_examined[0] += 1
                exchange(state, slot, other_slot)
                return True
    return False


@helper
def _exchange_any(state: LayerState, rank: int, partner: int, level: float, skip_singles: bool) -> bool:
    """Make the first exchange that brings the rank, and all that get more, to the level; False if none does."""
    first_slot, count, load, share = state.ranks.first_slot, state.count, state.load, state.share
    least = (state.rank_time[rank] - level) / state.ranks.scale[rank]
    most = (level - state.rank_time[partner]) / state.ranks.scale[partner]
    for slot in range(first_slot[rank], first_slot[rank + 1]):
        expert = state.phy2log[slot]
        own = load[expert] * share[slot]
        if own < least or state.fixed[slot] or not may_move(state, expert, slot, first_slot[partner]):
            continue
        for other_slot in range(first_slot[partner], first_slot[partner + 1]):
            other = state.phy2log[other_slot]
            if other == expert or state.fixed[other_slot] or (skip_singles and count[expert] == count[other] == 1):
                continue
            if count[other] == 1 and own - load[other] < least:  # its new share is 1
                continue
            if count[expert] == 1 and own - load[other] * share[other_slot] > most:
                continue
            if not may_move(state, other, other_slot, slot):
                continue
            examine(state, expert, slot, other_slot)
            examine(state, other, other_slot, slot)
            if highest_after(state, rank) <= level:
                exchange(state, slot, other_slot)
                return True
    return False


@helper
def _lower_busiest(state: LayerState, by_time: Ints, mean: float) -> bool:
    """Make the exchange with a rank of little time that reaches the lowest level; False if there is none."""
    num_ranks = by_time.size
    busiest, num_partners = by_time[num_ranks - 1], min(MOST_PARTNERS, by_time.size - 1)
    top = state.rank_time[busiest]
    for part in LEVELS:
        level = mean + part * (top - mean)
        for i in range(num_partners):
            if _exchange_singles(state, busiest, by_time[i], level):
                return True
        for i in range(num_partners):
            if _exchange_any(state, busiest, by_time[i], level, True):
                return True
    if top < mean * COARSE:
        return False
    level = top * (1 - MIN_RELATIVE_GAIN)
    for i in range(num_ranks - 1):  # noqa: SIM110  # numba compiles the loop, not any()
        if _exchange_any(state, busiest, by_time[i], level, False):
            return True
    return False


@helper
def _replace_best(state: LayerState, busiest: int) -> bool:
    """Replace the replica that leaves the ranks of both experts lowest; False if none lowers the busiest rank.

    Either a replica on the busiest rank gives way to any other expert, or one on another rank to an expert of the
    busiest rank. Ties to the lowest slots.
    """
    phy2log, first_slot = state.phy2log, state.ranks.first_slot
    lowest, best_slot, best_receiver = state.rank_time[busiest] * (1 - MIN_RELATIVE_GAIN), NONE, NONE
    empty = state.load.size - 1
    for slot in range(phy2log.size):
        donor, rank = phy2log[slot], state.ranks.rank_of_slot[slot]
        if state.fixed[slot] or not may_move(state, donor, slot, NONE):
            continue
        num_receivers = empty if rank == busiest else first_slot[busiest + 1] - first_slot[busiest]
        for i in range(num_receivers):
            receiver = i if rank == busiest else np.int64(phy2log[first_slot[busiest] + i])
            if receiver in (np.int64(donor), empty) or not may_move(state, receiver, NONE, slot):
                continue
            if rank != busiest and state.load[receiver] == 0:
                continue
            examine(state, donor, slot, NONE)
            examine(state, receiver, NONE, slot)
            highest = highest_after(state, busiest)
            if highest < lowest:
                lowest, best_slot, best_receiver = highest, slot, receiver
    if best_slot < 0:
        return False
    replace(state, best_slot, best_receiver)
    return True


@helper
def _kick(state: LayerState, busiest: int, random: np.uint64) -> np.uint64:
    """Exchange at random between ranks other than the busiest, all that get more staying below it."""
    phy2log, rank_of_slot, left = state.phy2log, state.ranks.rank_of_slot, KICKS
    level = state.rank_time[busiest] * (1 - MIN_RELATIVE_GAIN)
    for _ in range(TRIES_PER_KICK):
        random = next_random(random)
        slot = np.int64((random >> np.uint64(4)) % np.uint64(phy2log.size))
        other_slot = np.int64((random >> np.uint64(36)) % np.uint64(phy2log.size))
        rank, partner = rank_of_slot[slot], rank_of_slot[other_slot]
        expert, other = phy2log[slot], phy2log[other_slot]
        if busiest in (rank, partner) or rank == partner or expert == other:
            continue
        if state.fixed[slot] or state.fixed[other_slot]:
            continue
        if not may_move(state, expert, slot, other_slot) or not may_move(state, other, other_slot, slot):
            continue
        examine(state, expert, slot, other_slot)
        examine(state, other, other_slot, slot)
        if highest_after(state, busiest) <= level:
            exchange(state, slot, other_slot)
            left -= 1
            if left == 0:
                break
    return random


@njit(
    f"void({READ_FLOATS_2D}, {SHARE_RULE}, {RANKS}, {FREEDOM}, boolean[:, ::1], float64[::1],"
    " UniTuple(int64, 3), int32[:, ::1], float64[:, ::1])"
)
def descend_layers(
    load: Floats, rule: tuple[int, Floats, Floats, Floats, Ints], ranks: tuple[Ints, Ints, Floats, Ints],
    freedom: tuple[Flags, Ints, Ints, int], fixed: Flags, target: Floats, limits: tuple[int, int, int], phy2log: Map,
    rank_time: Floats,
) -> None:  # fmt: skip
    """Lower the busiest rank of each layer to its target, or until nothing helps; it never gets busier.

    An exchange takes O(S^2) examinations a partner, replacing a replica O(P S) of them, and an examination the replicas
    of two experts.

    Parameters
    ----------
    load
        [L, E + 1] tokens; id E, an empty slot, has none.
    rule, ranks, freedom
        The fields of `ShareRule`, `Ranks` and `Freedom`, whose `allowed` is [L, E + 1, R] or the same for all layers.
    fixed
        [L, P] slots that keep their expert.
    target
        [L] rank time at which a layer is good enough.
    limits
        Most replicas of an expert; of a layer, most kicks and most examinations, after which no further step is begun.
    phy2log, rank_time
        [L, P] in and out; [L, R] out.
    """
    capacity = (1 / ranks[2]).sum()
    for layer in range(load.shape[0]):
        allowed = freedom[0][layer % freedom[0].shape[0]]
        state = blank_state(
            share_rule(rule), Ranks(ranks[0], ranks[1], ranks[2], ranks[3]),
            Freedom(allowed, freedom[1], freedom[2], freedom[3]), limits[0],
        )  # fmt: skip
        start(state, load[layer], fixed[layer], phy2log[layer])
        mean, kicks, random = load[layer].sum() / capacity, limits[1], first_random(0, 0)
        while state.num_examined[0] < limits[2]:
            by_time = np.argsort(state.rank_time, kind="mergesort")
            busiest = by_time[by_time.size - 1]
            if state.rank_time[busiest] <= target[layer]:
                break
            if _lower_busiest(state, by_time, mean):
                continue
            if state.rank_time[busiest] < mean * COARSE:
                break
            if _replace_best(state, busiest):
                continue
            if kicks == 0:
                break
            random = _kick(state, busiest, random)
            kicks -= 1
        phy2log[layer] = state.phy2log
        start(state, load[layer], fixed[layer], phy2log[layer])
        rank_time[layer] = state.rank_time
