import numpy as np
import pytest

from eplb.core import kernel_helpers as helpers


def test_holds_looks_at_the_given_slots_only():
    phy2log = np.array([3, 1, 2, 3], np.int32)
    assert helpers.holds(phy2log, 1, 4, 3)
    assert not helpers.holds(phy2log, 1, 3, 3)
    assert not helpers.holds(phy2log, 2, 2, 2)


def test_slots_of_an_expert_are_chained_in_ascending_order_and_empty_slots_in_no_chain():
    phy2log = np.array([1, -1, 0, 1, 1], np.int32)
    head, following = np.empty(3, np.int32), np.full(5, 9, np.int32)
    helpers.link_slots(phy2log, head, following)
    assert head.tolist() == [2, 0, -1]
    assert following.tolist() == [3, 9, -1, 4, -1]


def test_rank_time_is_load_of_the_slots_times_the_scale():
    rank_time = np.full(2, 7.0)
    phy2log, rank_of_slot = np.array([0, 1, 1], np.int32), np.array([0, 0, 1])
    helpers.sum_rank_time(np.array([2.0, 3.0]), phy2log, rank_of_slot, np.array([1.0, 0.5]), rank_time)
    assert rank_time.tolist() == [2.0 + 3.0, 0.5 * 3.0]


def test_random_states_are_those_of_xorshift64_and_differ_by_seed_and_layer():
    state, expected = np.uint64(helpers.first_random(np.uint64(5), 2)), []
    mask = (1 << 64) - 1
    value = (5 * 2654435761 + 3 * 0x9E3779B97F4A7C15) & mask | 1
    assert int(state) == value
    for _ in range(5):
        for shift in (13, -7, 17):
            value ^= (value << shift) & mask if shift > 0 else value >> -shift
        expected.append(value)
    found = []
    for _ in range(5):
        state = np.uint64(helpers.next_random(state))
        found.append(int(state))
    assert found == expected
    starts = {int(helpers.first_random(np.uint64(seed), layer)) for seed in range(4) for layer in range(4)}
    assert len(starts) == 16


@pytest.mark.parametrize("doublings", [2, 3, 4, 5])
def test_sum_of_powers(doublings):
    row = np.array([0.5, 1.0, 2.0, 0.0, 1.5, 1.0, 0.25, 3.0])
    assert helpers.sum_of_powers(row, doublings) == pytest.approx((row ** (2**doublings)).sum(), rel=1e-14)
