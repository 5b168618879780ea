"""Descent by levels, and a walk over plateaus: what large machines and layers that a plain descent leaves above need.

Knows arrays only; no copy changes its expert's count. The busiest rank looks for partners among the idlest ranks, which
have the room, at a level some way down to the mean; so steps do not grow dearer with the ranks. Where nothing lowers
the busiest rank, exchanges between other ranks that stay below it change what it can be offered: a walk over the
plateau of equally good plans. `rank_scale` and `rank_time` are as in `swap_descent`.
"""

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb_traces.jit import njit

MIN_RELATIVE_GAIN = 1e-9  # a step must lower the busiest rank by this much, or rounding could make it circle
LEVELS = (0.5, 0.75, 0.9, 0.98)  # shares of the way above the mean at which an exchange is sought, lowest first
MOST_PARTNERS = 32  # idlest ranks that are asked
STEPS_PER_RANK = 2  # a descent that takes more has come to the end of what it can do
PLATEAU_PAIRS = 7  # pairs of ranks tried between two looks at the busiest rank
FIRST_STATE, FACTOR, ADDEND = (
    0x9E3779B97F4A7C15,
    6364136223846793005,
    1442695040888963407,
)  # a 64-bit congruence (Knuth)


@njit("boolean(int32[::1], int64[::1], int64, int32)")
def _holds(phy2log: Map, first_slot: Ints, rank: int, expert: int) -> bool:
    """Whether a slot of the rank holds the expert."""
    for slot in range(first_slot[rank], first_slot[rank + 1]):  # noqa: SIM110  # numba compiles the loop, not any()
        if phy2log[slot] == expert:
            return True
    return False


@njit("void(int32[::1], float64[::1], int64, int64)")
def _swap(phy2log: Map, slot_load: Floats, slot: int, other: int) -> None:
    phy2log[slot], phy2log[other] = phy2log[other], phy2log[slot]
    slot_load[slot], slot_load[other] = slot_load[other], slot_load[slot]


@njit("float64(int32[::1], float64[::1], int64[::1], int64, int64, float64, float64, int64)")
def _exchange_one(
    phy2log: Map, slot_load: Floats, first_slot: Ints, rank: int, partner: int, least: float, most: float, start: int
) -> float:
    """Make the first exchange of one expert that moves `least` to `most` load to the partner; 0 if none does.

    Slots of the rank are gone through in circular order from the one numbered `start`.
    """
    begin, num_held = first_slot[rank], first_slot[rank + 1] - first_slot[rank]
    for i in range(num_held):
        slot = begin + (start + i) % num_held
        for other in range(first_slot[partner], first_slot[partner + 1]):
            moved = slot_load[slot] - slot_load[other]
            if (
                least <= moved <= most
                and moved != 0
                and not _holds(phy2log, first_slot, partner, phy2log[slot])
                and not _holds(phy2log, first_slot, rank, phy2log[other])
            ):
                _swap(phy2log, slot_load, slot, other)
                return moved
    return 0.0


@njit("float64(int32[::1], float64[::1], int64[::1], int64, int64, float64, float64)")
def _exchange_two(
    phy2log: Map, slot_load: Floats, first_slot: Ints, rank: int, partner: int, least: float, most: float
) -> float:
    """Make the first exchange of two experts, in slot order, that moves `least` to `most` load; 0 if none does."""
    end, partner_end = first_slot[rank + 1], first_slot[partner + 1]
    for slot in range(first_slot[rank], end - 1):
        if _holds(phy2log, first_slot, partner, phy2log[slot]):
            continue
        for slot2 in range(slot + 1, end):
            pair = slot_load[slot] + slot_load[slot2]
            for other in range(first_slot[partner], partner_end - 1):
                rest = pair - slot_load[other]
                for other2 in range(other + 1, partner_end):
                    moved = rest - slot_load[other2]
                    if (
                        least <= moved <= most
                        and moved != 0
                        and not _holds(phy2log, first_slot, partner, phy2log[slot2])
                        and not _holds(phy2log, first_slot, rank, phy2log[other])
                        and not _holds(phy2log, first_slot, rank, phy2log[other2])
                    ):
                        _swap(phy2log, slot_load, slot, other)
                        _swap(phy2log, slot_load, slot2, other2)
                        return moved
    return 0.0


@njit("boolean(int32[::1], float64[::1], float64[::1], float64[::1], int64[::1], int64, int64, int64, float64, int64)")
def _exchange_below(
    phy2log: Map,
    slot_load: Floats,
    rank_time: Floats,
    rank_scale: Floats,
    first_slot: Ints,
    most_slots_for_doubles: int,
    rank: int,
    partner: int,
    level: float,
    start: int,
) -> bool:
    """Exchange one expert, or else two, so that both ranks end at `level` or below; False if none does."""
    least = (rank_time[rank] - level) / rank_scale[rank]
    most = (level - rank_time[partner]) / rank_scale[partner]
    if least > most:
        return False
    moved = _exchange_one(phy2log, slot_load, first_slot, rank, partner, least, most, start)
    if moved == 0 and first_slot[rank + 1] - first_slot[rank] <= most_slots_for_doubles:
        moved = _exchange_two(phy2log, slot_load, first_slot, rank, partner, least, most)
    rank_time[rank] -= moved * rank_scale[rank]
    rank_time[partner] += moved * rank_scale[partner]
    return moved != 0


@njit("void(float64[::1], int64[::1], int64[::1], int64)")
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


@njit("int64(int32[::1], float64[::1], float64[::1], float64[::1], int64[::1], int64, int64[::1], float64, float64)")
def _lower_busiest(
    phy2log: Map,
    slot_load: Floats,
    rank_time: Floats,
    rank_scale: Floats,
    first_slot: Ints,
    most_slots_for_doubles: int,
    by_time: Ints,
    mean: float,
    target: float,
) -> int:
    """Exchange with one of the idlest ranks, at the lowest level that some of them allows; returns it, -1 if none."""
    busiest = by_time[by_time.size - 1]
    top = rank_time[busiest]
    for share in LEVELS:
        level = min(max(target, mean + share * (top - mean)), top * (1 - MIN_RELATIVE_GAIN))
        for i in range(min(MOST_PARTNERS, by_time.size - 1)):
            if _exchange_below(
                phy2log, slot_load, rank_time, rank_scale, first_slot, most_slots_for_doubles, busiest, by_time[i],
                level, 0,
            ):  # fmt: skip
                return by_time[i]
    return -1


@njit(
    "void(int64[::1], float64[::1], float64[::1], float64[::1], int64, int32[:, ::1], float64[:, ::1], float64[:, ::1])"
)
def descend_by_levels(
    first_slot: Ints,
    rank_scale: Floats,
    mean: Floats,
    target: Floats,
    most_slots_for_doubles: int,
    phy2log: Map,
    slot_load: Floats,
    rank_time: Floats,
) -> None:
    """Lower the busiest rank of each layer until it meets the target or the idlest ranks offer nothing that helps.

    At most `STEPS_PER_RANK` R steps, each O(R) only to keep the ranks sorted. Ties go to the lowest id.

    Parameters
    ----------
    first_slot, rank_scale
        [R + 1], [R]
    mean, target
        [L] mean rank time, and the time at which a layer is good enough.
    most_slots_for_doubles
        Two experts are exchanged at once on ranks with at most so many slots.
    phy2log, slot_load, rank_time
        [L, P], [L, P], [L, R] in and out; every slot holds an expert.
    """
    num_ranks = rank_time.shape[1]
    place = np.empty(num_ranks, dtype=np.int64)
    for layer in range(rank_time.shape[0]):
        times = rank_time[layer]
        by_time = np.argsort(times, kind="mergesort")
        for i in range(num_ranks):
            place[by_time[i]] = i
        for _ in range(STEPS_PER_RANK * num_ranks):
            busiest = by_time[num_ranks - 1]
            if times[busiest] <= target[layer]:
                break
            partner = _lower_busiest(
                phy2log[layer], slot_load[layer], times, rank_scale, first_slot, most_slots_for_doubles, by_time,
                mean[layer], target[layer],
            )  # fmt: skip
            if partner < 0:
                break
            _sort_in(times, by_time, place, busiest)
            _sort_in(times, by_time, place, partner)


@njit("void(int64[::1], float64[::1], float64[::1], int64, int64, int32[:, ::1], float64[:, ::1], float64[:, ::1])")
def walk_plateaus(
    first_slot: Ints,
    rank_scale: Floats,
    target: Floats,
    most_slots_for_doubles: int,
    num_looks: int,
    phy2log: Map,
    slot_load: Floats,
    rank_time: Floats,
) -> None:
    """Offer the busiest rank one partner at a time and, between offers, exchange between others that stay below it.

    Partners and pairs are drawn by a congruential generator that starts anew for each layer. The busiest rank never
    gets busier. O(num_looks (R + S^4)).

    Parameters
    ----------
    first_slot, rank_scale, target, most_slots_for_doubles, phy2log, slot_load, rank_time
        As in `descend_by_levels`.
    num_looks
        How often the busiest rank is looked at; each time `PLATEAU_PAIRS` pairs of other ranks follow.
    """
    num_ranks = rank_time.shape[1]
    if num_ranks < 2:
        return
    for layer in range(rank_time.shape[0]):
        times, state = rank_time[layer], np.uint64(FIRST_STATE)
        for _ in range(num_looks):
            busiest = np.argmax(times)
            if times[busiest] <= target[layer]:
                break
            level = times[busiest] * (1 - MIN_RELATIVE_GAIN)
            for i in range(PLATEAU_PAIRS + 1):
                state = state * np.uint64(FACTOR) + np.uint64(ADDEND)
                rank = np.int64(state >> np.uint64(33)) % num_ranks if i > 0 else busiest
                state = state * np.uint64(FACTOR) + np.uint64(ADDEND)
                partner = np.int64(state >> np.uint64(33)) % num_ranks
                if rank == partner or partner == busiest or (i > 0 and rank == busiest):
                    continue
                if _exchange_below(
                    phy2log[layer], slot_load[layer], times, rank_scale, first_slot, most_slots_for_doubles, rank,
                    partner, level, np.int64(state >> np.uint64(20)) & 0xFFFF,
                ) and i == 0:  # fmt: skip
                    break
