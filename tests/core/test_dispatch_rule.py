"""How an expert's tokens are split over its slots."""

import numpy as np
import pytest
from hypothesis import given

from eplb.core.dispatch_rule import DispatchRule, slot_shares
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import InputError, UnknownNameError
from tests.generators import placements


def test_even_shares_are_one_over_the_copies_and_nothing_for_an_empty_slot():
    placement = Placement([[0, 1, 0, -1], [1, 1, 0, 1]], 2, Topology(1, 2, 2))
    # Layer 0: expert 0 twice, expert 1 once; layer 1: expert 1 three times.
    expected = [[1 / 2, 1, 1 / 2, 0], [1 / 3, 1 / 3, 1, 1 / 3]]
    assert slot_shares(placement, DispatchRule.EVEN).tolist() == expected


@given(placement=placements(holes=True))
def test_even_shares_of_an_expert_are_equal_and_sum_to_one(placement):
    shares = slot_shares(placement, DispatchRule.EVEN)
    for row, ids in zip(shares, placement.physical_to_logical_map, strict=True):
        assert not row[ids == -1].any()
        for expert in range(placement.num_experts):
            mine = row[ids == expert]
            assert mine.sum() == pytest.approx(1)
            assert np.ptp(mine) == 0


def test_weighted_shares_are_those_of_the_placement():
    weights = [[0.25, 1.0, 0.75, 0.0]]
    placement = Placement([[0, 1, 0, -1]], 2, Topology(1, 2, 2), weights)
    assert slot_shares(placement, DispatchRule.WEIGHTED).tolist() == weights


def test_weighted_dispatch_of_a_placement_without_weights_is_refused():
    with pytest.raises(InputError, match="dispatch = weighted: the placement carries no replica_weights"):
        slot_shares(Placement([[0, 1]], 2, Topology(1, 2, 1)), DispatchRule.WEIGHTED)


def test_a_rule_is_found_by_name_and_an_unknown_one_refused_with_the_list():
    assert DispatchRule.named("weighted") is DispatchRule.WEIGHTED
    with pytest.raises(UnknownNameError, match=r"dispatch rule 'odd': expected one of ascend, even, .*weighted"):
        DispatchRule.named("odd")
