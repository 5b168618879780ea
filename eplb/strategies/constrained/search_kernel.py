"""Lowers the busiest ranks of layers under hard constraints: random moves between two ranks, kept if they help.

A move exchanges a block of one rank for a block, or several, of as many slots on another rank, or replaces a replica by
one more of another block. Every move keeps the constraints. The cost is the sum over ranks and windows of time to the
power 2 ** d, a soft maximum; shares of replicas are those of the dispatch rule and are computed anew for the blocks of
a move.
"""

from typing import NamedTuple

import numpy as np

from eplb.core.arrays import Floats, Ints
from eplb.core.kernel_helpers import MIN_RELATIVE_GAIN, READ_FLOATS, first_random, next_random, power, random_below
from eplb.dispatch.replica_shares_kernel import BY_COUNT, SHARE_RULE, ShareRule, replica_shares, share_rule
from eplb.strategies.constrained.layer_state_kernel import (
    BLOCKS,
    RANKS,
    Blocks,
    Flags,
    LayerState,
    empty_state,
    may_enter,
    name_blocks,
    put,
    take,
)
from eplb_traces.jit import helper, njit

REPLACE_EVERY = 8  # one try in so many replaces a replica, the others exchange


class Times(NamedTuple):
    """What the ranks take, and how a move would change it."""

    load: Floats
    """[B, W] tokens of each block."""
    scale: Floats
    """[R] time of one token."""
    share: Floats
    """[B, R] share of the block's tokens that the rank gets."""
    time: Floats
    """[R, W]"""
    cost: Floats
    """[R] sum of powers of `time`."""
    change: Floats
    """[R, W] of the move; 0 for ranks that it does not touch."""
    new_cost: Floats
    """[R] of the ranks that the move touches."""
    touched: Ints
    """[R] the first entries: ranks that the move touches."""
    is_touched: Flags
    """[R]"""
    shares: Floats
    """[R] a buffer."""


@helper
def _cost(row: Floats, change: Floats, doublings: int) -> float:
    total = 0.0
    for w in range(row.size):
        total += power(max(row[w] + change[w], 0.0), doublings)
    return total


@helper
def _touch(times: Times, num_touched: int, block: int, rank: int, share: float) -> int:
    """Add to a rank's change what another share of the block brings; the number of touched ranks."""
    if not times.is_touched[rank]:
        times.is_touched[rank] = True
        times.touched[num_touched] = rank
        num_touched += 1
    factor = (share - times.share[block, rank]) * times.scale[rank]
    for w in range(times.change.shape[1]):
        times.change[rank, w] += factor * times.load[block, w]
    return num_touched


@helper
def _change_block(times: Times, state: LayerState, rule: ShareRule, block: int, lost: int, num_touched: int) -> int:
    """Add the changes that the block's present ranks bring; it has lost the replica on rank `lost`, -1 for none."""
    count = state.num_replicas[block]
    replica_shares(rule, state.ranks[block, :count], times.shares[:count])
    for i in range(count):
        rank = state.ranks[block, i]
        if times.shares[i] != times.share[block, rank]:
            num_touched = _touch(times, num_touched, block, rank, times.shares[i])
    if lost >= 0:
        num_touched = _touch(times, num_touched, block, lost, 0.0)
    return num_touched


@helper
def _is_better(times: Times, num_touched: int, doublings: int) -> bool:
    """Whether the touched ranks cost less after the move; fills `new_cost`."""
    before, after = 0.0, 0.0
    for i in range(num_touched):
        rank = times.touched[i]
        times.new_cost[rank] = _cost(times.time[rank], times.change[rank], doublings)
        before += times.cost[rank]
        after += times.new_cost[rank]
    return after < before * (1 - MIN_RELATIVE_GAIN)


@helper
def _settle(times: Times, num_touched: int, accept: bool) -> None:
    """Apply or drop the changes of the touched ranks."""
    for i in range(num_touched):
        rank = times.touched[i]
        for w in range(times.change.shape[1]):
            if accept:
                times.time[rank, w] = max(times.time[rank, w] + times.change[rank, w], 0.0)
            times.change[rank, w] = 0.0
        if accept:
            times.cost[rank] = times.new_cost[rank]
        times.is_touched[rank] = False


@helper
def _set_shares(times: Times, state: LayerState, rule: ShareRule, block: int, lost: int) -> None:
    """Store the shares of the block's present ranks."""
    count = state.num_replicas[block]
    replica_shares(rule, state.ranks[block, :count], times.shares[:count])
    for i in range(count):
        times.share[block, state.ranks[block, i]] = times.shares[i]
    if lost >= 0:
        times.share[block, lost] = 0.0


@helper
def _put_all(blocks: Blocks, state: LayerState, group: Ints, size: int, target: int) -> int:
    """Put blocks on a rank, up to the first that may not enter; how many were put."""
    for i in range(size):
        if not may_enter(blocks, state, group[i], target, -1):
            return i
        put(blocks, state, group[i], target)
    return size


@helper
def _cost_after(
    load: Floats, time: Floats, change: tuple[int, float, int, float], rank: int, scale: float, doublings: int
) -> float:
    """Cost of a rank that gives a share of one block for a share of another; few arguments, since it is called most."""
    block, share, other, other_share = change
    total = 0.0
    for w in range(time.shape[1]):
        after = time[rank, w] + (other_share * load[other, w] - share * load[block, w]) * scale
        total += power(max(after, 0.0), doublings)
    return total


@helper
def _exchange_alone(
    blocks: Blocks, state: LayerState, times: Times, rank: int, block: int, partner: int, other: int
) -> bool:
    """Exchange two blocks whose shares stay as they are, so that only the two ranks change; the costs are not kept."""
    if not may_enter(blocks, state, block, partner, other) or not may_enter(blocks, state, other, rank, block):
        return False
    share, other_share = times.share[block, rank], times.share[other, partner]
    for w in range(times.time.shape[1]):
        moved = share * times.load[block, w] - other_share * times.load[other, w]
        times.time[rank, w] = max(times.time[rank, w] - moved * times.scale[rank], 0.0)
        times.time[partner, w] = max(times.time[partner, w] + moved * times.scale[partner], 0.0)
    take(blocks, state, block, rank)
    take(blocks, state, other, partner)
    put(blocks, state, block, partner)
    put(blocks, state, other, rank)
    times.share[block, rank], times.share[block, partner] = 0.0, share
    times.share[other, partner], times.share[other, rank] = 0.0, other_share
    return True


@helper
def _exchange(
    blocks: Blocks, state: LayerState, times: Times, rule: ShareRule, doublings: int, rank: int, block: int,
    partner: int, group: Ints, size: int,
) -> bool:  # fmt: skip
    """Exchange a block of a rank for blocks of the partner if that helps; False, and nothing changed, if not."""
    take(blocks, state, block, rank)
    for i in range(size):
        take(blocks, state, group[i], partner)
    entered = may_enter(blocks, state, block, partner, -1)
    moved = 0
    if entered:
        put(blocks, state, block, partner)
        moved = _put_all(blocks, state, group, size, rank)
    better = False
    if entered and moved == size:
        touched = _change_block(times, state, rule, block, rank, 0)
        for i in range(size):
            touched = _change_block(times, state, rule, group[i], partner, touched)
        better = _is_better(times, touched, doublings)
        _settle(times, touched, better)
    if better:
        _set_shares(times, state, rule, block, rank)
        for i in range(size):
            _set_shares(times, state, rule, group[i], partner)
        return True
    for i in range(moved):
        take(blocks, state, group[i], rank)
    if entered:
        take(blocks, state, block, partner)
    for i in range(size):
        put(blocks, state, group[i], partner)
    put(blocks, state, block, rank)
    return False


@helper
def _replace(
    blocks: Blocks, state: LayerState, times: Times, rule: ShareRule, doublings: int, rank: int, block: int,
    other: int,
) -> bool:  # fmt: skip
    """Replace the block's replica on the rank by one more of another block if that helps."""
    if (
        blocks.pinned[block, rank]
        or state.num_replicas[block] <= blocks.least[block]
        or state.num_replicas[other] >= blocks.most[other]
        or blocks.size[block] != blocks.size[other]
        or not may_enter(blocks, state, other, rank, block)
    ):
        return False
    take(blocks, state, block, rank)
    put(blocks, state, other, rank)
    touched = _change_block(times, state, rule, block, rank, 0)
    touched = _change_block(times, state, rule, other, -1, touched)
    better = _is_better(times, touched, doublings)
    _settle(times, touched, better)
    if better:
        _set_shares(times, state, rule, block, rank)
        _set_shares(times, state, rule, other, -1)
        return True
    take(blocks, state, other, rank)
    put(blocks, state, block, rank)
    return False


@helper
def _partners(blocks: Blocks, state: LayerState, block: int, partner: int, start: int, group: Ints) -> int:
    """Choose blocks of the partner that take as many slots as the block, from the one at `start` on; 0 if none do."""
    size, wanted = 0, blocks.size[block]
    for i in range(state.num_held[partner]):
        other = state.held[partner, (start + i) % state.num_held[partner]]
        if blocks.pinned[other, partner] or blocks.size[other] > wanted:
            if i == 0:
                return 0
            continue
        group[size] = other
        size += 1
        wanted -= blocks.size[other]
        if wanted == 0:
            return size
    return 0


@helper
def _is_even(rule: ShareRule) -> bool:
    """Whether all replicas of a block get the same share, wherever they are."""
    if rule.kind != BY_COUNT:
        return False
    for count in range(1, rule.by_count.shape[0]):
        for i in range(1, count):
            if rule.by_count[count, i] != rule.by_count[count, 0]:
                return False
    return True


@helper
def _try_replace(
    blocks: Blocks, state: LayerState, times: Times, rule: ShareRule, doublings: int, rank: int, block: int,
    random: np.uint64,
) -> bool:  # fmt: skip
    """Replace the block's replica by any other block, or any replica elsewhere by the block, if that helps."""
    if random & np.uint64(1) == np.uint64(0):
        return _replace(blocks, state, times, rule, doublings, rank, block, random_below(random, blocks.size.size))
    partner = random_below(random, times.scale.size)
    given = state.held[partner, random_below(next_random(random), state.num_held[partner])]
    return _replace(blocks, state, times, rule, doublings, partner, given, block)


@helper
def _search(
    blocks: Blocks, state: LayerState, times: Times, rule: ShareRule, doublings: int, num_tries: int, target: float,
    random: np.uint64,
) -> np.uint64:  # fmt: skip
    """Try moves, every second one at the costliest rank; the random numbers' state after them."""
    held, num_held, count, on = state.held, state.num_held, state.num_replicas, state.on
    load, time, cost, scale, share = times.load, times.time, times.cost, times.scale, times.share
    allowed, pinned, size, even = blocks.allowed, blocks.pinned, blocks.size, _is_even(rule)
    for rank in range(scale.size):
        cost[rank] = _cost_after(load, time, (0, 0.0, 0, 0.0), rank, scale[rank], doublings)
    costliest, group = int(np.argmax(cost)), np.empty(held.shape[1], dtype=np.int64)
    if time[costliest].max() <= target:
        return random
    for turn in range(num_tries):
        random = next_random(random)
        rank = costliest if turn & 1 == 0 else random_below(random, scale.size)
        random = next_random(random)
        block = held[rank, random_below(random, num_held[rank])]
        random = next_random(random)
        if turn % REPLACE_EVERY < 2:
            done = _try_replace(blocks, state, times, rule, doublings, rank, block, random)
        else:
            partner = random_below(random, scale.size)
            if partner == rank or pinned[block, rank] or not allowed[block, partner] or on[block, partner]:
                continue
            random = next_random(random)
            start = random_below(random, num_held[partner])
            other = held[partner, start]
            if size[block] == size[other] and (even or count[block] == count[other] == 1):
                if pinned[other, partner] or on[other, rank]:
                    continue
                change = block, share[block, rank], other, share[other, partner]
                back = change[2], change[3], change[0], change[1]
                after = _cost_after(load, time, change, rank, scale[rank], doublings)
                partner_after = _cost_after(load, time, back, partner, scale[partner], doublings)
                if after + partner_after >= (cost[rank] + cost[partner]) * (1 - MIN_RELATIVE_GAIN):
                    continue
                done = _exchange_alone(blocks, state, times, rank, block, partner, other)
                if done:
                    cost[rank], cost[partner] = after, partner_after
            else:
                num = _partners(blocks, state, block, partner, start, group)
                done = num > 0 and _exchange(blocks, state, times, rule, doublings, rank, block, partner, group, num)
        if done:
            costliest = int(np.argmax(cost))
            if time[costliest].max() <= target:
                break
    return random


@helper
def _first_times(state: LayerState, load: Floats, rank_scale: Floats, rule: ShareRule) -> Times:
    num_blocks, num_ranks, num_windows = load.shape[0], rank_scale.size, load.shape[1]
    times = Times(
        load, rank_scale, np.zeros((num_blocks, num_ranks)), np.zeros((num_ranks, num_windows)), np.zeros(num_ranks),
        np.zeros((num_ranks, num_windows)), np.zeros(num_ranks), np.zeros(num_ranks, dtype=np.int64),
        np.zeros(num_ranks, dtype=np.bool_), np.zeros(num_ranks),
    )  # fmt: skip
    for block in range(num_blocks):
        _set_shares(times, state, rule, block, -1)
        for rank in state.ranks[block, : state.num_replicas[block]]:
            for w in range(num_windows):
                times.time[rank, w] += times.share[block, rank] * load[block, w] * rank_scale[rank]
    return times


@njit(
    f"void(float64[:, :, ::1], {BLOCKS}, {RANKS}, {READ_FLOATS}, {SHARE_RULE}, UniTuple(int64, 2), int64, float64,"
    " uint64, int64, boolean[:, :, ::1])"
)
def search_layers(
    load: Floats,
    block_fields: tuple[Ints, Flags, Flags, Ints, Ints, Flags, Ints],
    ranks: tuple[Ints, Ints],
    rank_scale: Floats,
    rule_fields: tuple[int, Floats, Floats, Floats, Ints],
    descents: tuple[int, int],
    num_tries: int,
    target: float,
    seed: int,
    first_layer: int,
    on: Flags,
) -> None:
    """Improve a feasible placement of each layer.

    Parameters
    ----------
    load
        [L, B, W] tokens, scaled so that the mean rank time of a window is 1.
    block_fields, rule_fields
        The fields of `Blocks` and of `ShareRule`.
    ranks, rank_scale
        [R] slots and [R] units of memory; [R] time of one token.
    descents, num_tries
        Doublings of the powers of the two descents, and the moves tried in each.
    target
        Time of the busiest rank in any window at which a layer is good enough.
    seed, first_layer
        Layer l draws its random numbers from seed and first_layer + l.
    on
        [L, B, R] in and out: which ranks hold the block.
    """
    blocks, rule = name_blocks(block_fields), share_rule(rule_fields)
    slots, room = ranks
    for layer in range(load.shape[0]):
        state = empty_state(blocks.size.size, slots, room)
        for block in range(blocks.size.size):
            for rank in range(slots.size):
                if on[layer, block, rank]:
                    put(blocks, state, block, rank)
        times = _first_times(state, load[layer], rank_scale, rule)
        random = first_random(seed, first_layer + layer)
        for doublings in descents:
            random = _search(blocks, state, times, rule, doublings, num_tries, target, random)
        on[layer] = state.on
