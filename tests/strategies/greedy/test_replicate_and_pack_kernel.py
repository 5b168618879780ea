"""Replica counts and packing: the compiled loops against plain ones, ties included."""

from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eplb.strategies.greedy.replicate_and_pack_kernel import count_replicas, place_layers
from tests import oracles
from tests.generators import layer_loads

more_cases = settings(max_examples=settings.default.max_examples * 3)


def descending(load):
    return np.argsort(-load, kind="stable")


def counted(load, num_redundant, max_replicas, *, least=1, room=None, offset=0.0):
    count = np.empty(load.size, np.int64)
    together = np.empty(0, np.int64) if room is None else most_together(room, load.size)
    num_split = count_replicas(load, descending(load), num_redundant, least, max_replicas, offset, together, count)
    return count.tolist(), num_split


def most_together(room, num_experts):
    """Most copies of 0, 1, 2, ... experts with at most one of each on a rank."""
    return np.array([sum(min(slots, k) for slots in room) for k in range(num_experts + 1)])


def placed(load, room, *, scale=None, least=1):
    """Counts, hands, slot loads, rank times and success of one layer."""
    first_slot = np.concatenate([[0], np.cumsum(room)])
    count = np.empty((1, load.size), np.int64)
    phy2log, slot_load = np.empty((1, first_slot[-1]), np.int32), np.empty((1, first_slot[-1]))
    rank_time, equal = np.empty((1, len(room))), len(set(room)) == 1
    together = np.empty(0, np.int64) if equal else most_together(room, load.size)
    scale = np.ones(len(room)) if scale is None else np.array(scale)
    done = place_layers(
        load[None], descending(load)[None], first_slot, scale, together, least, len(room), 0.0,
        count, phy2log, slot_load, rank_time,
    )  # fmt: skip
    hands = [phy2log[0, a:b].tolist() for a, b in pairwise(first_slot)]
    return count[0].tolist(), hands, slot_load[0], rank_time[0], done


def can_be_kept_apart(counts, room):
    """Whether ranks of `room` slots can be filled with so many copies of each expert, by trying all ways."""
    if not counts:
        return not any(room)
    return any(
        can_be_kept_apart(counts[1:], [slots - (rank in ranks) for rank, slots in enumerate(room)])
        for ranks in combinations(range(len(room)), counts[0])
        if all(room[rank] for rank in ranks)
    )


@st.composite
def equal_ranks(draw):
    num_ranks, slots = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    num_experts = draw(st.integers(slots, slots * num_ranks))
    return draw(layer_loads(num_experts)), [slots] * num_ranks


def test_copies_go_one_by_one_to_the_most_loaded_copy():
    # 12, 9, 4: the 12 (6 a copy), the 9 (4.5), the 12 (4), then 4.5: the 9 (3).
    assert counted(np.array([4.0, 12, 9]), 4, 9) == ([1, 3, 3], 2)


def test_an_offset_keeps_copies_near_their_mean_load():
    # By load / (copies + 0.5): 12 / 1.5 = 8, then 9 / 1.5 = 6 before 12 / 2.5 = 4.8 and 4 / 1.5 = 2.7, then 12 / 2.5.
    assert counted(np.array([4.0, 12, 9]), 3, 9, offset=0.5) == ([1, 3, 2], 2)
    # 5.5 first; then 3 > 5.5 / 2 without an offset, but 3 / 1.5 < 5.5 / 2.5 with one.
    assert counted(np.array([5.5, 3]), 2, 9) == ([2, 2], 2)
    assert counted(np.array([5.5, 3]), 2, 9, offset=0.5) == ([3, 1], 1)


@more_cases
@given(data=st.data(), num_experts=st.integers(1, 12), offset=st.floats(0, 1))
def test_counts_by_any_divisors_are_those_of_a_plain_loop(data, num_experts, offset):
    load, num_ranks = data.draw(layer_loads(num_experts)), data.draw(st.integers(1, 6))
    num_copies = data.draw(st.integers(0, num_experts * (num_ranks - 1)))
    count = [1] * num_experts
    for _ in range(num_copies):
        open_experts = [expert for expert in range(num_experts) if count[expert] < num_ranks]
        count[max(open_experts, key=lambda e: (load[e] / (count[e] + offset), -e))] += 1
    assert counted(load, num_copies, num_ranks, offset=offset)[0] == count


def test_ties_go_to_the_lowest_id_and_nobody_gets_more_than_the_cap():
    assert counted(np.array([5.0, 5, 5]), 2, 9) == ([2, 2, 1], 2)
    # The 100 may have 2 copies; then 3 and 2.
    assert counted(np.array([2.0, 100, 3]), 3, 2) == ([2, 2, 2], 3)
    assert counted(np.zeros(3), 4, 3) == ([3, 3, 1], 2)


@more_cases
@given(problem=equal_ranks())
def test_counts_are_those_of_the_argmax_loop_and_attain_the_smallest_largest_copy(problem):
    load, room = problem
    num_redundant = sum(room) - load.size
    count, num_split = counted(load, num_redundant, len(room))
    assert count == oracles.greedy_counts(load.tolist(), num_redundant, len(room))
    assert num_split == sum(c > 1 for c in count)
    largest = max(tokens / c for tokens, c in zip(load.tolist(), count, strict=True))
    assert largest == pytest.approx(oracles.smallest_largest_copy(load.tolist(), sum(room), len(room)), rel=1e-12)


def test_packing_takes_the_least_loaded_open_rank():
    # 7, 5, 4, 3, no redundancy, 2 ranks of 2: 7 -> rank 0; 5 -> 1; 4 -> 1 (5 < 7), now full; 3 -> 0. 10 and 9.
    _, hands, slot_load, rank_load, done = placed(np.array([7.0, 5, 4, 3]), [2, 2])
    assert done
    assert hands == [[0, 3], [1, 2]]
    assert slot_load.tolist() == [7, 3, 5, 4]
    assert rank_load.tolist() == [10, 9]


def test_copies_that_find_no_rank_are_placed_by_an_exchange():
    # Ranks of 4 and 3 slots, 100 and 8 twice. 50 and 50; 7.9 -> rank 0; 4.1 and 4.1 -> rank 1, now full; 4 -> rank 0,
    # where the other 4 would be a double: rank 1 gives its first expert that rank 0 lacks, a 4.1, for it.
    _, hands, _, rank_load, done = placed(np.array([100.0, 8, 7.9, 4.1, 4.1]), [4, 3])
    assert done
    assert hands == [[0, 2, 1, 3], [0, 1, 4]]
    assert rank_load == pytest.approx([50 + 7.9 + 4 + 4.1, 50 + 4 + 4.1])


@more_cases
@given(problem=equal_ranks())
def test_packing_is_that_of_plain_lists(problem):
    load, room = problem
    count, hands, slot_load, rank_load, done = placed(load, room)
    assert done
    expected = oracles.pack_largest_first(load.tolist(), count, room)
    assert [sorted(hand) for hand in hands] == [sorted(hand) for hand in expected]
    assert not oracles.has_doubles(hands)
    assert rank_load == pytest.approx(oracles.rank_loads(hands, load.tolist()), rel=1e-12, abs=1e-12)
    flat = [expert for hand in hands for expert in hand]
    assert slot_load.tolist() == [load[expert] / count[expert] for expert in flat]


@st.composite
def unequal_ranks(draw, max_experts=9):
    """Loads and ranks of any slots that hold every expert once or more, none twice on a rank."""
    num_experts, num_ranks = draw(st.integers(1, max_experts)), draw(st.integers(1, 6))
    room = draw(st.lists(st.integers(1, num_experts), min_size=num_ranks, max_size=num_ranks))
    assume(sum(room) >= num_experts)
    return draw(layer_loads(num_experts)), room


@more_cases
@given(problem=unequal_ranks(), data=st.data())
def test_unequal_ranks_are_always_filled_without_doubles(problem, data):
    load, room = problem
    scale = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=len(room), max_size=len(room)))
    least = data.draw(st.integers(1, 2 if sum(room) >= 2 * load.size else 1))
    count, hands, _, rank_time, done = placed(load, room, scale=scale, least=least)
    assert done
    assert not oracles.has_doubles(hands)
    flat = [expert for hand in hands for expert in hand]
    assert count == [flat.count(expert) for expert in range(load.size)]
    assert min(count) >= least
    expected = [s * tokens for s, tokens in zip(scale, oracles.rank_loads(hands, load.tolist()), strict=True)]
    assert rank_time == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(problem=unequal_ranks(max_experts=4).filter(lambda problem: sum(problem[1]) <= 10))
def test_counts_on_unequal_ranks_attain_the_smallest_largest_copy_of_all_that_can_be_kept_apart(problem):
    load, room = problem
    copies = range(1, len(room) + 1)
    feasible = [
        counts
        for counts in product(copies, repeat=load.size)
        if sum(counts) == sum(room) and can_be_kept_apart(counts, room)
    ]
    count, _ = counted(load, sum(room) - load.size, len(room), room=room)
    assert tuple(count) in feasible
    least = min(max(tokens / c for tokens, c in zip(load, counts, strict=True)) for counts in feasible)
    assert max(tokens / c for tokens, c in zip(load, count, strict=True)) == pytest.approx(least)


def test_wide_ranks_among_narrow_ones():
    # Ranks of 1, 3, 1, 1, 1, 3 slots and 3 experts: the wide ranks hold all three, so 2 copies each, 4 more to give.
    # All to the first: 100 / 6 is still the most, but 6 copies are the cap.
    count, hands, *_, done = placed(np.array([100.0, 2, 1]), [1, 3, 1, 1, 1, 3])
    assert done
    assert count == [6, 2, 2]
    assert [sorted(hand) for hand in hands] == [[0], [0, 1, 2], [0], [0], [0], [0, 1, 2]]


def test_every_expert_starts_with_the_least_copies():
    # 2 each, then the 90 (45 a copy) and the 90 (30) before the 10 (5).
    assert counted(np.array([90.0, 10]), 2, 9, least=2) == ([4, 2], 2)


def test_slow_ranks_fill_up_in_time():
    # 6, 4, 3, 2, 1, 1 on ranks of 3 slots, the second half as fast. 6 -> rank 0: 6; 4 -> rank 1: 8; 3 -> rank 0: 9;
    # 2 -> rank 1: 12; 1 -> rank 0: 10, full; 1 -> rank 1: 14.
    _, hands, _, rank_time, done = placed(np.array([6.0, 4, 3, 2, 1, 1]), [3, 3], scale=[1.0, 2.0])
    assert done
    assert hands == [[0, 2, 4], [1, 3, 5]]
    assert rank_time.tolist() == [10, 14]


def test_ranks_that_can_never_keep_the_copies_apart_are_refused():
    # Three ranks of 1, 1, 2 slots and one expert: the last rank would hold it twice.
    *_, done = placed(np.array([1.0]), [1, 1, 2])
    assert not done
