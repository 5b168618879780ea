"""The contiguous layout, by hand."""

import pytest

import eplb
from tests.oracles import hands_of


@pytest.mark.parametrize(
    ("num_experts", "ranks", "slots", "expected"),
    [
        # Ids rank by rank, then again from 0.
        (4, 2, 3, [[0, 1, 2], [3, 0, 1]]),
        (6, 4, 2, [[0, 1], [2, 3], [4, 5], [0, 1]]),
        (5, 2, [2, 4], [[0, 1], [2, 3, 4, 0]]),
        (1, 3, 1, [[0], [0], [0]]),
    ],
)
def test_ids_go_rank_by_rank_and_start_again_at_zero(num_experts, ranks, slots, expected):
    load = eplb.ExpertLoad([[float(e + 1) for e in range(num_experts)]] * 2)
    placement = eplb.plan(load, eplb.Topology(1, ranks, slots), "linear").placement
    assert [hands_of(placement, layer) for layer in range(2)] == [expected] * 2


def test_the_certificate_is_of_the_load_though_the_layout_is_not():
    # Ranks {0, 1, 2} and {3, 0, 1}: 6 / 2 + 4 / 2 + 1 = 6 and 1 + 6 / 2 + 4 / 2 = 6; mean 6.
    made = eplb.plan(eplb.ExpertLoad([[6.0, 4, 1, 1]]), eplb.Topology(1, 2, 3), "linear")
    assert [(layer.objective, layer.lower_bound) for layer in made.layers] == [(6, 6)]
    assert made.status is eplb.SolveStatus.OPTIMAL
