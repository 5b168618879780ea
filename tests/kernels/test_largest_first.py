"""Replica counts and packing: the compiled loops against plain ones, ties included."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb.kernels.largest_first import count_replicas, place_layers
from tests import oracles
from tests.strategies import layer_loads

more_cases = settings(max_examples=settings.default.max_examples * 3)


def descending(load):
    return np.argsort(-load, kind="stable")


def counted(load, num_redundant, max_copies):
    count, key, item = np.empty(load.size, np.int64), np.empty(load.size), np.empty(load.size, np.int64)
    num_split = count_replicas(load, descending(load), num_redundant, max_copies, count, key, item)
    return count.tolist(), num_split


def placed(load, room):
    """Counts, hands, slot loads, rank loads and success of one layer."""
    first_slot = np.concatenate([[0], np.cumsum(room)])
    count = np.empty((1, load.size), np.int64)
    phy2log, slot_load = np.empty((1, first_slot[-1]), np.int32), np.empty((1, first_slot[-1]))
    rank_load = np.empty((1, len(room)))
    done = place_layers(load[None], descending(load)[None], first_slot, len(room), count, phy2log, slot_load, rank_load)
    hands = [phy2log[0, a:b].tolist() for a, b in pairwise(first_slot)]
    return count[0].tolist(), hands, slot_load[0], rank_load[0], done


@st.composite
def equal_ranks(draw):
    num_ranks, slots = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    num_experts = draw(st.integers(slots, slots * num_ranks))
    return draw(layer_loads(num_experts)), [slots] * num_ranks


def test_copies_go_one_by_one_to_the_most_loaded_copy():
    # 12, 9, 4: the 12 (6 a copy), the 9 (4.5), the 12 (4), then 4.5: the 9 (3).
    assert counted(np.array([4.0, 12, 9]), 4, 9) == ([1, 3, 3], 2)


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


@given(problem=equal_ranks(), extra=st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_unequal_ranks_are_filled_without_doubles_or_refused(problem, extra):
    load, room = problem
    room = [min(load.size, size + more) for size, more in zip(room, extra, strict=False)]
    _, hands, _, rank_load, done = placed(load, room)
    if done:
        assert not oracles.has_doubles(hands)
        assert {expert for hand in hands for expert in hand} == set(range(load.size))
        assert rank_load == pytest.approx(oracles.rank_loads(hands, load.tolist()), rel=1e-12, abs=1e-12)


def test_ranks_that_can_never_keep_the_copies_apart_are_refused():
    # Three ranks of 1, 1, 2 slots and one expert: the last rank would hold it twice.
    *_, done = placed(np.array([1.0]), [1, 1, 2])
    assert not done
