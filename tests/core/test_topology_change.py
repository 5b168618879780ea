"""Changes of the ranks: which old rank is which new one, and the topology that holds both."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eplb.core.topology import Topology
from eplb.core.topology_change import TopologyChange, kept_ranks
from eplb.errors import InputError
from tests.generators import topologies


def test_a_hand_worked_union():
    # Old nodes {0, 1}, {2, 3}; rank 1 retires, rank 2 is lost, rank 3 stays. New nodes {0, 1}, {2}: rank 1 is added.
    change = TopologyChange(Topology(2, 2, [1, 2, 3, 2]), Topology(2, (2, 1), [2, 1, 1]), [0, -1, -1, 2], [2])
    assert change.retiring == (1,)
    assert change.added == (1,)
    assert change.old_of_new.tolist() == [0, -1, 3]
    # Node 0: rank 0 of max(1, 2) slots, added rank 1 of 1 slot, retiring rank 1 of 2; node 1: rank 3 of max(2, 1).
    assert change.union == Topology(2, (3, 1), [2, 1, 2, 2])
    # Old slots: 0 | 1 2 | 3 4 5 | 6 7.
    assert change.old_on_union(np.arange(8, dtype=np.int32)[None]).tolist() == [[0, -1, -1, 1, 2, 6, 7]]
    assert change.new_on_union(np.arange(4, dtype=np.int32)[None]).tolist() == [[0, 1, 2, -1, -1, 3, -1]]
    slots, first = change.carried_slots
    assert slots.tolist() == [0, 6, 7]
    assert first.tolist() == [0, 1, 1, 3]


def test_a_node_that_retires_as_a_whole_is_a_node_of_the_union():
    before = Topology(3, 2, 2)
    change = TopologyChange(before, Topology(2, 2, 2), [0, 1, -1, -1, 2, 3])
    assert change.union == Topology(3, 2, 2)
    assert change.old_on_union(np.arange(12, dtype=np.int32)[None]).tolist() == [[0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7]]


@given(before=topologies(), after=topologies(), data=st.data())
def test_the_usual_map_keeps_ranks_that_can_stay_and_nodes_where_they_fit(before, after, data):
    leaving = data.draw(st.lists(st.integers(0, before.num_ranks - 1), unique=True))
    stay = before.num_ranks - len(leaving)
    assume(not leaving or stay <= after.num_ranks)
    rank_map = kept_ranks(before, after, leaving)
    kept = [new for new in rank_map if new >= 0]
    assert sorted(set(kept)) == kept
    assert all(rank_map[rank] == -1 for rank in leaving)
    assert len(kept) == min(stay, after.num_ranks)
    change = TopologyChange(before, after, rank_map, leaving)
    assert len(change.retiring) + len(change.lost) + len(kept) == before.num_ranks
    assert change.union.num_ranks == after.num_ranks + len(change.retiring)


@pytest.mark.parametrize(
    ("before", "after", "leaving", "expected"),
    [
        (Topology(1, 4, 9), Topology(1, 6, 6), (), (0, 1, 2, 3)),
        (Topology(1, 4, 9), Topology(2, 3, 6), (), (0, 1, 2, 3)),  # no node holds four: ids
        (Topology(2, 2, 9), Topology(2, 3, 6), (), (0, 1, 3, 4)),  # both nodes grow
        (Topology(2, 2, 9), Topology(3, 2, 6), (), (0, 1, 2, 3)),
        (Topology(2, 3, 6), Topology(2, 2, 9), (), (0, 1, -1, 2, 3, -1)),  # both nodes shrink
        (Topology(3, 2, 6), Topology(2, 2, 9), (), (0, 1, 2, 3, -1, -1)),
        (Topology(3, 2, 6), Topology(2, 2, 9), (2, 3), (0, 1, -1, -1, 2, 3)),
        (Topology(2, 3, 6), Topology(2, (3, 2), 9), (1,), (0, -1, 1, 2, 3, 4)),  # node 1 has three: in order
        (Topology(2, (2, 3), 6), Topology(2, 3, 6), (), (0, 1, 3, 4, 5)),  # a rank of node 0 comes back
        (Topology(3, 2, 6), Topology(3, 2, 6), (2, 3), (0, 1, -1, -1, 4, 5)),  # a node is replaced
    ],
    ids=str,
)
def test_the_usual_map_by_hand(before, after, leaving, expected):
    assert kept_ranks(before, after, leaving) == expected


@pytest.mark.parametrize(
    ("rank_map", "lost", "message"),
    [
        ([0, 1], [], "rank_map has 2 entries: expected one for each of 3 old ranks"),
        ([0, 1, 2], [], r"rank_map\[2\] = 2: expected 0 <= rank < 2, or -1 for a rank that leaves"),
        ([0, -2, 1], [], r"rank_map\[1\] = -2"),
        ([1, 1, -1], [], r"rank_map\[1\] = 1: new rank 1 is old rank 0 already"),
        ([0, 1, -1], [0], "lost rank 0: rank_map keeps it as rank 0"),
        ([0, 1, -1], [3], "lost rank 3: expected 0 <= rank < 3"),
        ([0, -1, -1], [2, 2], "lost rank 2: named 2 times"),
    ],
    ids=str,
)
def test_what_is_no_change_is_refused(rank_map, lost, message):
    with pytest.raises(InputError, match=message):
        TopologyChange(Topology(1, 3, 2), Topology(1, 2, 3), rank_map, lost)


def test_more_ranks_that_stay_than_there_are_new_ones_are_refused():
    with pytest.raises(InputError, match="3 of 4 ranks stay, for 2 new ranks: name more ranks that leave"):
        kept_ranks(Topology(1, 4, 2), Topology(1, 2, 4), [1])
