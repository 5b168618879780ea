"""The strided layout: by hand, and vLLM's."""

import pytest

import eplb
from tests.oracles import hands_of


def hands(num_experts, ranks, slots):
    load = eplb.ExpertLoad([[1.0] * num_experts])
    return hands_of(eplb.plan(load, eplb.Topology(1, ranks, slots), "round_robin").placement, 0)


@pytest.mark.parametrize(
    ("num_experts", "ranks", "slots", "expected"),
    [
        # 0 -> 0, 1 -> 1, 2 -> 0, 3 -> 1; the second 0 would fall to rank 0, which has it: rank 1, now full; the second
        # 1 to rank 0.
        (4, 2, 3, [[0, 2, 1], [1, 3, 0]]),
        # Position 6 is expert 0 on rank 2, position 7 expert 1 on rank 3.
        (6, 4, 2, [[0, 4], [1, 5], [2, 0], [3, 1]]),
        # Rank 0 is full after its first expert: 2 goes on to rank 1, and so does everything else.
        (4, 2, [1, 3], [[0], [1, 2, 3]]),
    ],
)
def test_experts_are_dealt_in_turn_and_skip_ranks_that_are_full_or_have_them(num_experts, ranks, slots, expected):
    assert hands(num_experts, ranks, slots) == expected


@pytest.mark.parametrize(("num_experts", "ranks"), [(8, 2), (12, 4), (16, 16), (5, 1)])
def test_without_redundancy_expert_e_is_on_rank_e_mod_r_as_in_vllm(num_experts, ranks):
    assert hands(num_experts, ranks, num_experts // ranks) == [list(range(r, num_experts, ranks)) for r in range(ranks)]
