"""Local search: lower the busiest rank of a layer by exchanges of replicas, by other replica counts, by a random walk.

The busiest rank looks for partners among the ranks with the least time, and the first exchange is made that brings both
ranks to a level some way down to the mean. The exchange of one replica for one is as old as local search for
multiprocessor scheduling; two for two makes the differences fine enough to reach the mean. Where no exchange helps, a
replica of some expert is replaced by one more of an expert of the busiest rank. Where that does not help either,
exchanges between other ranks that stay below the busiest one change what it can be offered: a walk over the plateau of
equally good placements.

`rank_scale` [R] is the time of one token on each rank and `rank_time` [R] its load times that; with equal ranks the
scale is 1 and times are loads. Moving d tokens from rank a to rank b changes their times by -d scale_a and d scale_b.
"""

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import (
    MIN_RELATIVE_GAIN,
    READ_FLOATS,
    READ_FLOATS_2D,
    READ_INTS,
    first_random,
    holds,
    link_slots,
    next_random,
)
from eplb_traces.jit import helper, njit

# Shares of the way from the mean to the busiest rank's time: levels at which an exchange is sought, lowest first. At
# the last one any gain counts.
LEVELS = (0.5, 0.75, 0.9, 0.98, 0.998, 1.0)
MOST_PARTNERS = 8  # ranks of least time that are tried at each level
MOST_PARTNERS_LAST = 384  # and from the level LAST_LEVELS on
LAST_LEVELS = 0.998
STEPS_PER_RANK = 20  # exchanges of a descent, over ranks: one that takes more hardly gains
PLATEAU_PAIRS = 7  # pairs of other ranks tried between two offers to the busiest rank


@helper
def _swap(phy2log: Map, slot_load: Floats, slot: int, other: int) -> None:
    phy2log[slot], phy2log[other] = phy2log[other], phy2log[slot]
    slot_load[slot], slot_load[other] = slot_load[other], slot_load[slot]


@helper
def _exchange_one(
    phy2log: Map, slot_load: Floats, first_slot: Ints, rank: int, partner: int, wanted: float, near: float, start: int
) -> float:
    """Make the first exchange of one replica that moves `wanted` load to the partner, up to `near`; 0 if none does.

    Slots of the rank are tried in circular order from the one numbered `start`.
    """
    begin, end = first_slot[rank], first_slot[rank + 1]
    partner_begin, partner_end = first_slot[partner], first_slot[partner + 1]
    own, theirs = slot_load[begin:end], slot_load[partner_begin:partner_end]
    at = start % own.size if start > 0 else 0
    for _ in range(own.size):
        target = own[at] - wanted
        for other in range(theirs.size):
            if abs(target - theirs[other]) <= near:
                moved = own[at] - theirs[other]
                if (
                    moved != 0
                    and not holds(phy2log, partner_begin, partner_end, phy2log[begin + at])
                    and not holds(phy2log, begin, end, phy2log[partner_begin + other])
                ):
                    _swap(phy2log, slot_load, begin + at, partner_begin + other)
                    return moved
        at = at + 1 if at + 1 < own.size else 0
    return 0.0


@helper
def _exchange_two(
    phy2log: Map, slot_load: Floats, first_slot: Ints, rank: int, partner: int, wanted: float, near: float
) -> float:
    """Make the first exchange of two replicas, in slot order, that moves `wanted` load, up to `near`; 0 if none."""
    begin, end = first_slot[rank], first_slot[rank + 1]
    partner_begin, partner_end = first_slot[partner], first_slot[partner + 1]
    own, theirs = slot_load[begin:end], slot_load[partner_begin:partner_end]
    for slot in range(own.size - 1):
        if holds(phy2log, partner_begin, partner_end, phy2log[begin + slot]):
            continue
        for slot2 in range(slot + 1, own.size):
            pair = own[slot] + own[slot2]
            for other in range(theirs.size - 1):
                target = pair - wanted - theirs[other]
                for other2 in range(other + 1, theirs.size):
                    if abs(target - theirs[other2]) <= near:
                        moved = pair - theirs[other] - theirs[other2]
                        if (
                            moved != 0
                            and not holds(phy2log, partner_begin, partner_end, phy2log[begin + slot2])
                            and not holds(phy2log, begin, end, phy2log[partner_begin + other])
                            and not holds(phy2log, begin, end, phy2log[partner_begin + other2])
                        ):
                            _swap(phy2log, slot_load, begin + slot, partner_begin + other)
                            _swap(phy2log, slot_load, begin + slot2, partner_begin + other2)
                            return moved
    return 0.0


@helper
def _exchange(
    phy2log: Map, slot_load: Floats, rank_time: Floats, first_slot: Ints, rank_scale: Floats, rank: int, partner: int,
    level: float, size: int, start: int,
) -> bool:  # fmt: skip
    """Exchange one replica or two so that both ranks end at `level` or below; False if no exchange does."""
    least = (rank_time[rank] - level) / rank_scale[rank]
    most = (level - rank_time[partner]) / rank_scale[partner]
    if least > most:
        return False
    wanted, near = 0.5 * (least + most), 0.5 * (most - least)
    if size == 1:
        moved = _exchange_one(phy2log, slot_load, first_slot, rank, partner, wanted, near, start)
    else:
        moved = _exchange_two(phy2log, slot_load, first_slot, rank, partner, wanted, near)
    rank_time[rank] -= moved * rank_scale[rank]
    rank_time[partner] += moved * rank_scale[partner]
    return moved != 0


@helper
def _sort_in(rank_time: Floats, by_time: Ints, place: Ints, rank: int) -> None:
    """Put a rank whose time has changed back in order: ranks by time, ties by id; `place` is the inverse."""
    at, time = place[rank], rank_time[rank]
    while at + 1 < by_time.size:
        after = by_time[at + 1]
        if rank_time[after] > time or (rank_time[after] == time and after > rank):
            break
        by_time[at], place[after] = after, at
        at += 1
    while at > 0:
        before = by_time[at - 1]
        if rank_time[before] < time or (rank_time[before] == time and before < rank):
            break
        by_time[at], place[before] = before, at
        at -= 1
    by_time[at], place[rank] = rank, at


@helper
def _lower_busiest(
    phy2log: Map,
    slot_load: Floats,
    rank_time: Floats,
    first_slot: Ints,
    rank_scale: Floats,
    by_time: Ints,
    mean: float,
    target: float,
    most_slots_for_pairs: int,
) -> int:
    """Exchange with a rank of little time, at the lowest level that some of them allows; returns it, -1 if none."""
    busiest = by_time[by_time.size - 1]
    top = rank_time[busiest]
    sizes = 2 if first_slot[busiest + 1] - first_slot[busiest] <= most_slots_for_pairs else 1
    for share in LEVELS:
        level = min(max(target, mean + share * (top - mean)), top * (1 - MIN_RELATIVE_GAIN))
        for size in range(1, sizes + 1):
            for i in range(min(MOST_PARTNERS if share < LAST_LEVELS else MOST_PARTNERS_LAST, by_time.size - 1)):
                if _exchange(
                    phy2log, slot_load, rank_time, first_slot, rank_scale, busiest, by_time[i], level, size, 0
                ):
                    return by_time[i]
    return -1


@helper
def _descend(
    phy2log: Map, slot_load: Floats, rank_time: Floats, first_slot: Ints, rank_scale: Floats, target: float,
    most_slots_for_pairs: int, by_time: Ints, place: Ints,
) -> None:  # fmt: skip
    """Exchange replicas of the busiest rank until it meets the target or no exchange helps; sorts `by_time`."""
    num_ranks = rank_time.size
    by_time[:] = np.argsort(rank_time, kind="mergesort")
    for at in range(num_ranks):
        place[by_time[at]] = at
    mean = (rank_time / rank_scale).sum() / (1 / rank_scale).sum()
    for _ in range(STEPS_PER_RANK * num_ranks):
        busiest = by_time[num_ranks - 1]
        if rank_time[busiest] <= target:
            break
        partner = _lower_busiest(
            phy2log, slot_load, rank_time, first_slot, rank_scale, by_time, mean, target, most_slots_for_pairs
        )
        if partner < 0:
            break
        _sort_in(rank_time, by_time, place, busiest)
        _sort_in(rank_time, by_time, place, partner)


@helper
def _replace_replica(
    phy2log: Map,
    slot_load: Floats,
    rank_time: Floats,
    first_slot: Ints,
    rank_scale: Floats,
    load: Floats,
    count: Ints,
    rank_of_slot: Ints,
    busiest: int,
    least_replicas: int,
) -> bool:
    """Replace a replica of the busiest rank, or add one of its experts elsewhere; False if that does not help.

    Either a replica on the busiest rank gives way to any other expert, or one on another rank to an expert of the
    busiest rank. Of all such moves the one is made that leaves the ranks of the two experts lowest; ties to the lowest
    slots. Every expert keeps `least_replicas`.
    """
    head, following = np.empty(load.size, dtype=np.int32), np.empty(rank_of_slot.size, dtype=np.int32)
    link_slots(phy2log, head, following)
    change = np.zeros(rank_time.size, dtype=np.float64)
    reached = rank_time[busiest] * (1 - MIN_RELATIVE_GAIN)
    best_slot, best_recipient = -1, -1
    for slot in range(rank_of_slot.size):
        donor, rank = phy2log[slot], rank_of_slot[slot]
        if count[donor] <= least_replicas:
            continue
        num_recipients = load.size if rank == busiest else first_slot[busiest + 1] - first_slot[busiest]
        for i in range(num_recipients):
            recipient = i if rank == busiest else np.int64(phy2log[first_slot[busiest] + i])
            if recipient == donor or holds(phy2log, first_slot[rank], first_slot[rank + 1], recipient):
                continue
            less, more = load[recipient] / (count[recipient] + 1), load[donor] / (count[donor] - 1)
            change[rank] = (less - more) * rank_scale[rank]
            for expert, each in ((recipient, less), (np.int64(donor), more)):
                at = head[expert]
                while at >= 0:
                    change[rank_of_slot[at]] += (each - slot_load[at]) * rank_scale[rank_of_slot[at]]
                    at = following[at]
            top = rank_time[rank] + change[rank]
            for expert in (recipient, np.int64(donor)):
                at = head[expert]
                while at >= 0:
                    top = max(top, rank_time[rank_of_slot[at]] + change[rank_of_slot[at]])
                    at = following[at]
            for expert in (recipient, np.int64(donor)):
                at = head[expert]
                while at >= 0:
                    change[rank_of_slot[at]] = 0.0
                    at = following[at]
            if top < reached:
                reached, best_slot, best_recipient = top, slot, recipient
    if best_slot < 0:
        return False
    donor = phy2log[best_slot]
    count[donor] -= 1
    count[best_recipient] += 1
    phy2log[best_slot] = best_recipient
    for slot in range(rank_of_slot.size):
        expert, rank = phy2log[slot], rank_of_slot[slot]
        each = load[expert] / count[expert]
        if each != slot_load[slot]:
            rank_time[rank] += (each - slot_load[slot]) * rank_scale[rank]
            slot_load[slot] = each
    return True


@helper
def _walk(
    phy2log: Map,
    slot_load: Floats,
    rank_time: Floats,
    first_slot: Ints,
    rank_scale: Floats,
    target: float,
    most_slots_for_pairs: int,
    iterations: int,
) -> None:
    """Offer the busiest rank one partner at a time and, between offers, exchange between others that stay below it.

    The busiest rank never gets busier. O(iterations (R + S^4)).
    """
    num_ranks, state = rank_time.size, first_random(0, 0)
    for _ in range(iterations):
        busiest = np.argmax(rank_time)
        if rank_time[busiest] <= target or num_ranks < 2:
            break
        level = rank_time[busiest] * (1 - MIN_RELATIVE_GAIN)
        for i in range(PLATEAU_PAIRS + 1):
            state = next_random(state)
            rank = np.int64(state >> np.uint64(33)) % num_ranks if i > 0 else busiest
            start = np.int64(state & np.uint64(0xFFFF))
            state = next_random(state)
            partner = np.int64(state >> np.uint64(33)) % num_ranks
            if rank == partner or partner == busiest or (i > 0 and rank == busiest):
                continue
            pairs = first_slot[rank + 1] - first_slot[rank] <= most_slots_for_pairs
            helped = _exchange(phy2log, slot_load, rank_time, first_slot, rank_scale, rank, partner, level, 1, start)
            helped = helped or (
                pairs and _exchange(phy2log, slot_load, rank_time, first_slot, rank_scale, rank, partner, level, 2, 0)
            )
            if helped and i == 0:
                break


@njit(
    f"void({READ_FLOATS_2D}, {READ_INTS}, {READ_FLOATS}, float64[::1], UniTuple(int64, 4), int64[:, ::1],"
    " int32[:, ::1], float64[:, ::1], float64[:, ::1])"
)
def search_layers(
    load: Floats,
    first_slot: Ints,
    rank_scale: Floats,
    target: Floats,
    limits: tuple[int, int, int, int],
    count: Ints,
    phy2log: Map,
    slot_load: Floats,
    rank_time: Floats,
) -> None:
    """Lower the busiest rank of each layer until it meets the layer's target or no step helps.

    Steps, each tried only when the ones before fail: exchange one replica, exchange two, replace a replica, walk. The
    busiest rank's time falls with every step but those of the walk, or another equally busy rank is left. Ties go to
    the lowest id. A step takes O(S^4) and, to keep the ranks sorted, O(R); replacing a replica O(P S R).

    Parameters
    ----------
    load
        [L, E]
    first_slot, rank_scale
        [R + 1], [R]
    target
        [L] rank time at which a layer is good enough.
    limits
        Replicas that every expert keeps; most slots of a rank for exchanges of two replicas, and for replacing one;
        iterations of the walk. With more slots, exchanges of one are fine enough and the other steps are slow.
    count, phy2log, slot_load, rank_time
        [L, E], [L, P], [L, P], [L, R] in and out; every slot holds an expert, no rank one twice.
    """
    num_ranks = rank_time.shape[1]
    least_replicas, most_slots_for_pairs, most_slots_to_replace, iterations = limits
    rank_of_slot = np.empty(phy2log.shape[1], dtype=np.int64)
    for rank in range(num_ranks):
        rank_of_slot[first_slot[rank] : first_slot[rank + 1]] = rank
    by_time, place = np.arange(num_ranks), np.arange(num_ranks)
    for i in range(load.shape[0]):
        experts, loads, times = phy2log[i], slot_load[i], rank_time[i]
        for left in (iterations, 0):
            replaced = True
            while replaced:
                _descend(experts, loads, times, first_slot, rank_scale, target[i], most_slots_for_pairs, by_time, place)
                busiest = by_time[num_ranks - 1]
                replaced = (
                    times[busiest] > target[i]
                    and first_slot[busiest + 1] - first_slot[busiest] <= most_slots_to_replace
                    and _replace_replica(
                        experts, loads, times, first_slot, rank_scale, load[i], count[i], rank_of_slot, busiest,
                        least_replicas,
                    )
                )  # fmt: skip
            if left == 0 or times[busiest] <= target[i]:
                break
            _walk(experts, loads, times, first_slot, rank_scale, target[i], most_slots_for_pairs, left)
