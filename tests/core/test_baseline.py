"""The baseline: experts in order, and the commands that compare with it."""

import pytest

import eplb
from eplb.core.baseline import experts_in_order


@pytest.mark.parametrize(
    ("experts", "ranks", "slots", "expected"),
    [
        (4, 2, 2, [0, 1, 2, 3]),
        (4, 2, 3, [0, 1, -1, 2, 3, -1]),
        (4, 3, 2, [0, 1, 2, 3, 0, 1]),  # 4 experts do not divide by 3 ranks
        (4, 2, (1, 3), [0, 1, 2, 3]),  # rank 0 has no room for two
        (4, 1, 4, [0, 1, 2, 3]),
    ],
)
def test_experts_in_order(experts, ranks, slots, expected):
    found = experts_in_order(1, experts, eplb.Topology(1, ranks, slots))
    assert found.physical_to_logical_map.tolist() == [expected]
