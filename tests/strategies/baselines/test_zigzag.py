"""The group-aware layout: by hand, and every rank's share of every group."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eplb
from tests.oracles import hands_of


def hands(num_experts, ranks, slots, groups):
    load = eplb.ExpertLoad([[1.0] * num_experts])
    return hands_of(eplb.plan(load, eplb.Topology(1, ranks, slots), "zigzag", groups=groups).placement, 0)


def group_counts(dealt, num_experts, groups):
    """[R, G] experts of each group on each rank."""
    return np.array([np.bincount(np.array(h) // (num_experts // groups), minlength=groups) for h in dealt])


@pytest.mark.parametrize(
    ("num_experts", "ranks", "slots", "groups", "expected"),
    [
        # Group 0 starts at rank 0: 0 -> 0, 1 -> 1, turn: 2 -> 1, 3 -> 0. Group 1 starts at rank 1: 4 -> 1, 5 -> 0,
        # turn: 6 -> 0, 7 -> 1.
        (8, 2, 4, 2, [[0, 3, 5, 6], [1, 2, 4, 7]]),
        # And copies of experts 0 and 1: rank 0 has 0, so 0 -> rank 1; rank 1 has 1, so 1 -> rank 0.
        (8, 2, 5, 2, [[0, 3, 5, 6, 1], [1, 2, 4, 7, 0]]),
        # One group: out and back.
        (8, 4, 2, 1, [[0, 7], [1, 6], [2, 5], [3, 4]]),
        # Groups of 6: 0-3 out, 4 and 5 back on ranks 3 and 2. Group 1 starts at rank 2: 6 -> 2, 7 -> 3, 8 -> 0, 9 -> 1;
        # the last two go to the ranks that hold least, ranks 1 and 0 in the order of the way back.
        (12, 4, 3, 2, [[0, 8, 11], [1, 9, 10], [2, 5, 6], [3, 4, 7]]),
    ],
)
def test_rounds_turn_and_start_shifted_by_group(num_experts, ranks, slots, groups, expected):
    assert hands(num_experts, ranks, slots, groups) == expected


@settings(max_examples=settings.default.max_examples)
@given(data=st.data(), ranks=st.integers(1, 8), slots=st.integers(1, 9))
def test_without_redundancy_any_two_ranks_differ_by_at_most_one_expert_of_a_group(data, ranks, slots):
    num_experts = ranks * slots
    groups = data.draw(st.sampled_from([g for g in range(1, num_experts + 1) if num_experts % g == 0]))
    counts = group_counts(hands(num_experts, ranks, slots, groups), num_experts, groups)
    assert np.ptp(counts, axis=0).max() <= 1


def test_every_rank_of_32_gets_one_expert_of_each_of_8_groups_and_copies_go_round():
    assert (group_counts(hands(256, 32, 8, 8), 256, 8) == 1).all()
    # 32 redundant copies: one more round of the first 32 experts, one more on each rank.
    dealt = hands(256, 32, 9, 8)
    counts = group_counts(dealt, 256, 8)
    assert counts.sum(axis=1).tolist() == [9] * 32
    assert counts[:, 0].tolist() == [2] * 32
    assert [e for e in range(256) if sum(e in hand for hand in dealt) == 2] == list(range(32))


def test_the_place_in_a_group_gives_no_rank_an_advantage_where_loads_fall_with_it():
    # Loads 32, 31, ..., 1 in each of 8 groups. Contiguous ranks hold 8 neighbours of one group; here every rank holds
    # one of each, far apart.
    load = eplb.ExpertLoad([np.tile(np.arange(32.0, 0, -1), 8)])
    topology = eplb.Topology(1, 32, 8)
    ratio = {
        name: eplb.evaluate(eplb.plan(load, topology, name, groups=8).placement, load).max_over_mean[0]
        for name in ("linear", "round_robin", "zigzag")
    }
    # The mean is 16.5 * 8 = 132. Contiguous: the first 8 of a group: (32 + 25) / 2 * 8 = 228. Strided: 8 * 32 = 256.
    assert ratio["linear"] == pytest.approx(228 / 132)
    assert ratio["round_robin"] == pytest.approx(256 / 132)
    # One round a group, there and back: who has place i in one group has 31 - i in the next. Four pairs of groups give
    # every rank loads of 4 * (32 + 1) = 132.
    assert ratio["zigzag"] == pytest.approx(1)
