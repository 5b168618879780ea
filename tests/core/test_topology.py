"""Topology: numbering of ranks and slots, what is refused, what survives a pickle."""

import pickle

import numpy as np
import pytest

from eplb.core.topology import Topology
from eplb.errors import PlacementError

DERIVED = (
    *("rank_num_slots", "rank_first_slot", "rank_of_slot", "node_of_rank", "relative_speed"),
    *("node_num_ranks", "node_first_rank", "node_num_slots", "node_speed"),
)


def test_ranks_are_numbered_node_by_node_and_slots_rank_by_rank():
    topology = Topology(2, 2, [1, 3, 2, 2])
    assert topology.num_ranks == 4
    assert topology.num_slots == 8
    assert topology.rank_num_slots.tolist() == [1, 3, 2, 2]
    assert topology.rank_first_slot.tolist() == [0, 1, 4, 6, 8]
    assert topology.rank_of_slot.tolist() == [0, 1, 1, 1, 2, 2, 3, 3]
    assert topology.node_of_rank.tolist() == [0, 0, 1, 1]
    assert not topology.has_equal_slots


def test_nodes_may_have_unequally_many_ranks():
    topology = Topology(3, (2, 1, 3), [1, 3, 2, 2, 4, 1], [1, 1, 2, 1, 1, 0.5])
    assert (topology.num_ranks, topology.num_slots) == (6, 13)
    assert topology.node_num_ranks.tolist() == [2, 1, 3]
    assert topology.node_first_rank.tolist() == [0, 2, 3, 6]
    assert topology.node_of_rank.tolist() == [0, 0, 1, 2, 2, 2]
    assert topology.node_num_slots.tolist() == [4, 2, 7]
    # The mean speed is 6.5 / 6.
    assert (topology.node_speed * 6.5 / 6).tolist() == pytest.approx([2, 2, 2.5])
    assert not topology.has_equal_nodes
    assert topology.nodes == (2, 1, 3)


@pytest.mark.parametrize("ranks", [2, [2, 2, 2], (2, 2, 2), np.array([2, 2, 2])], ids=repr)
def test_equal_nodes_are_one_number_however_they_are_written(ranks):
    topology = Topology(3, ranks, 4)
    assert type(topology.ranks_per_node) is int
    assert topology == Topology(3, 2, 4)
    assert topology.has_equal_nodes
    assert topology.nodes == 3


def test_speeds_are_scaled_to_mean_one():
    assert Topology(1, 4, 1).relative_speed.tolist() == [1, 1, 1, 1]
    # Mean of 1, 2, 2, 3 is 2.
    assert Topology(1, 4, 1, rank_speed=[1, 2, 2, 3]).relative_speed.tolist() == [0.5, 1, 1, 1.5]


@pytest.mark.parametrize("slots", [3, np.int64(3), [3, 3], (3, 3), np.array([3, 3]), range(3, 4)])
def test_equal_slots_are_one_number_however_they_are_written(slots):
    topology = Topology(1, 2 if not isinstance(slots, range) else 1, slots)
    assert topology.has_equal_slots
    assert type(topology.slots_per_rank) is int
    assert topology.slots_per_rank == 3


def test_equal_speeds_are_no_speeds():
    assert Topology(1, 2, 3, rank_speed=[2.0, 2.0]) == Topology(1, 2, 3)


def test_numbers_of_numpy_are_numbers():
    topology = Topology(np.int32(2), np.int64(2), np.int16(2))
    assert topology == Topology(2, 2, 2)
    assert hash(topology) == hash(Topology(2, 2, 2))


@pytest.mark.parametrize(
    "arguments",
    [
        *[(1, 2, 3), (2, 2, [1, 2, 3, 4]), (1, 2, [1, 2], [1.0, 3.0]), (2, (2, 1), 3)],
        *[(1, 2, 3, None, 100.0), (1, 2, 3, None, 370.0, 9.0)],
    ],
)
def test_topologies_are_equal_when_all_their_parts_are(arguments):
    assert Topology(*arguments) == Topology(*arguments)
    assert hash(Topology(*arguments)) == hash(Topology(*arguments))
    assert Topology(*arguments) != Topology(3, 1, 3)
    if len(arguments) > 3:
        assert Topology(*arguments) != Topology(*arguments[:3])


def test_arrays_are_read_only_also_after_a_pickle():
    topology = Topology(2, (1, 3), [1, 2, 3, 4], [1, 1, 2, 2])
    values = {name: getattr(topology, name).tolist() for name in DERIVED}
    copy = pickle.loads(pickle.dumps(topology))
    assert copy == topology
    for name, expected in values.items():
        assert getattr(copy, name).tolist() == expected
        for owner in (topology, copy):
            with pytest.raises(ValueError, match="read-only"):
                getattr(owner, name)[0] = 9


def test_fields_cannot_be_set():
    with pytest.raises(AttributeError):
        Topology(1, 2, 3).num_nodes = 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 1), "num_nodes = 0: expected an integer >= 1"),
        ((1, -2, 1), "ranks_per_node = -2: expected an integer >= 1"),
        ((1, 1.0, 1), "ranks_per_node = 1.0: expected an integer >= 1"),
        ((True, 1, 1), "num_nodes = True: expected an integer >= 1"),
        ((2, (1, 0), 1), r"ranks_per_node\[1\] = 0: expected an integer >= 1"),
        ((2, (1, 2, 3), 1), "ranks_per_node has 3 entries: expected one for each of 2 nodes"),
        ((2, (1, 2), [1, 2]), "slots_per_rank has 2 entries: expected one for each of 3 ranks"),
        ((1, 1, 0), "slots_per_rank = 0: expected an integer >= 1"),
        ((1, 2, [2, 0]), r"slots_per_rank\[1\] = 0: expected an integer >= 1"),
        ((1, 2, [1.5, 2]), r"slots_per_rank\[0\] = 1.5: expected an integer >= 1"),
        ((1, 2, [2, True]), r"slots_per_rank\[1\] = True: expected an integer >= 1"),
        ((1, 2, np.array([2.0, 2.0])), r"slots_per_rank\[0\] = .*2.0.*: expected an integer >= 1"),
        ((1, 2, [2]), "slots_per_rank has 1 entries: expected one for each of 2 ranks"),
        ((1, 2, 2, [1.0]), "rank_speed has 1 entries: expected one for each of 2 ranks"),
        ((1, 2, 2, [1.0, 0.0]), r"rank_speed = \(1.0, 0.0\): expected finite speeds > 0"),
        ((1, 2, 2, [1.0, float("nan")]), "expected finite speeds > 0"),
        ((1, 2, 2, [1.0, float("inf")]), "expected finite speeds > 0"),
        ((1, 2, 2, None, 0.0), "intra_node_gbps = 0.0: expected > 0"),
        ((1, 2, 2, None, 1.0, float("nan")), "inter_node_gbps = nan: expected > 0"),
    ],
)
def test_what_cannot_be_a_machine_is_refused_with_value_place_and_expectation(arguments, message):
    with pytest.raises(PlacementError, match=message):
        Topology(*arguments)


def test_for_experts_fills_the_ranks_exactly():
    # (256 + 32) / 32 = 9 slots; 32 / 4 = 8 ranks a node.
    topology = Topology.for_experts(256, num_ranks=32, num_nodes=4, num_redundant=32)
    assert topology == Topology(4, 8, 9)
    assert Topology.for_experts(256, num_ranks=32, num_nodes=(8, 8, 8, 8), num_redundant=32) == topology
    # (256 + 20) / 23 = 12 slots.
    uneven = Topology.for_experts(256, num_ranks=23, num_nodes=(8, 8, 7), num_redundant=20)
    assert uneven == Topology(3, (8, 8, 7), 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_ranks": 0}, "ranks = 0: expected an integer >= 1"),
        ({"num_ranks": 4, "num_nodes": 0}, "nodes = 0: expected an integer >= 1"),
        ({"num_ranks": 4, "num_redundant": -4}, "redundant = -4: expected >= 0"),
        ({"num_ranks": 4, "num_nodes": 3}, "ranks = 4: expected a multiple of nodes = 3"),
        ({"num_ranks": 4, "num_nodes": (3, 2)}, "ranks = 4: expected 5, the sum of nodes = 3,2"),
        ({"num_ranks": 4, "num_nodes": (4, 0)}, r"nodes\[1\] = 0: expected an integer >= 1"),
        # 10 + 3 = 13 slots; the next multiple of 4 is 16 = 10 + 6.
        (
            {"num_ranks": 4, "num_redundant": 3},
            r"= 13 slots: expected a multiple of 4 ranks \(redundant = 6 would do\)",
        ),
    ],
)
def test_for_experts_refuses_what_does_not_divide(arguments, message):
    with pytest.raises(PlacementError, match=message):
        Topology.for_experts(10, **arguments)


@pytest.mark.parametrize(
    ("speeds", "message"),
    [
        ((1e-300, 1.0), "the fastest at most 1e\\+06 times the slowest"),
        ((1e-7, 1.0), "the fastest at most 1e\\+06 times the slowest"),
        ((1e200, 1e200), "expected speeds from 1e-100 to 1e\\+100"),
        ((5e-324, 5e-324), "expected speeds from 1e-100 to 1e\\+100"),
        ((True, 1.0), r"rank_speed\[0\] = True: expected a number"),
        ((1.0, "1"), r"rank_speed\[1\] = '1': expected a number"),
    ],
)
def test_speeds_that_are_no_numbers_or_too_far_apart_are_refused(speeds, message):
    with pytest.raises(PlacementError, match=message):
        Topology(1, 2, 2, speeds)
    Topology(1, 2, 2, (1e-6, 1.0))


@pytest.mark.parametrize("sizes", [(1, 10**9, 2), (10**9, 1, 2), (1, 2, 10**9), (1, 2, 1 << 70), (1 << 70, 1 << 70, 1)])
def test_topologies_of_more_ranks_or_slots_than_arrays_hold_are_refused(sizes):
    with pytest.raises(PlacementError, match="expected at most"):
        Topology(*sizes)
