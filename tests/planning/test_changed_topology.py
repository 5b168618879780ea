"""Topologies after a change: what follows from the one before, and what has to be given."""

import pytest

from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.planning.changed_topology import NumberedRanks, changed_topology, ranks_with_ids

UNEQUAL = Topology(2, 2, (3, 3, 3, 4))
FAST = Topology(2, 2, 3, (1.0, 1.0, 1.0, 2.0))


def test_slots_and_speeds_of_the_ranks_that_stay_are_kept():
    left = changed_topology(UNEQUAL, leaving=[1])
    assert (left.node_num_ranks.tolist(), left.rank_num_slots.tolist()) == ([1, 2], [3, 3, 4])
    assert changed_topology(FAST, leaving=[0, 1]).relative_speed.tolist() == pytest.approx([2 / 3, 4 / 3])
    assert changed_topology(UNEQUAL, num_ranks=6, slots_per_rank=2).node_num_ranks.tolist() == [2, 2, 2]
    assert changed_topology(Topology(1, 4, 3), num_ranks=3) == Topology(1, 3, 3)


@pytest.mark.parametrize(
    ("before", "change", "message"),
    [
        (UNEQUAL, {"leaving": [0, 1, 2, 3]}, "all 4 ranks leave: none is left to plan for"),
        (UNEQUAL, {"leaving": [4]}, "leaving rank 4: expected 0 <= rank < 4"),
        (UNEQUAL, {"num_ranks": 2}, "slots_per_rank: expected with 2 ranks, as the ranks so far have unequal slots"),
        (FAST, {"num_ranks": 2}, "rank_speed: the speeds of 2 ranks do not follow from those of 4"),
        (Topology(2, 2, 3), {"num_ranks": 3}, "nodes: expected with 3 ranks, as nodes = 2 of 4 do not tell"),
    ],
)
def test_what_does_not_follow_has_to_be_given(before, change, message):
    with pytest.raises(InputError, match=message):
        changed_topology(before, **change)


def test_an_id_that_no_rank_has_is_refused():
    ranks = NumberedRanks(Topology(1, 3, 2), (0, 2, 3))
    assert ranks_with_ids(ranks, [3, 0], "lost rank") == (2, 0)
    with pytest.raises(InputError, match="lost rank 1: expected an id of 0, 2-3"):
        ranks_with_ids(ranks, [0, 1], "lost rank")
