"""Placement: the one map, what follows from it, what is refused, what survives a pickle."""

import copy
import pickle
import re

import numpy as np
import pytest
from hypothesis import given

import eplb
from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.core.problem import Problem
from eplb.core.topology import Topology
from eplb.errors import InputError, PlacementError
from eplb.strategies.certify import certified_plan
from eplb_traces import ExpertLoad, ModelShape
from tests.generators import placements
from tests.oracles import hands_of

DERIVED = ("physical_to_logical_map", "logical_to_physical_map", "logical_replica_count", "duplicate_slots")

# Two ranks of three slots. Layer 0: experts 0 and 1 on both ranks, slot 4 empty. Layer 1: expert 1 twice on rank 1.
ROWS = [[0, 1, 2, 0, -1, 1], [2, 0, 1, 1, 2, 1]]


def small(weights=None) -> Placement:
    return Placement(ROWS, 3, Topology(1, 2, 3), weights)


def test_the_other_maps_follow_from_the_one():
    placement = small()
    assert placement.num_layers == 2
    assert placement.num_slots == 6
    assert placement.logical_replica_count.tolist() == [[2, 2, 1], [1, 3, 2]]
    assert placement.logical_to_physical_map.tolist() == [
        [[0, 3, -1], [1, 5, -1], [2, -1, -1]],
        [[1, -1, -1], [2, 3, 5], [0, 4, -1]],
    ]
    assert placement.duplicate_slots.tolist() == [[False] * 6, [False] * 5 + [True]]
    assert placement.local_expert_map(0).tolist() == [[0, 1, 2], [1, 2, 0]]
    assert placement.local_expert_map(1).tolist() == [[0, 2, -1], [-1, 0, 1]]


@given(placement=placements(holes=True))
def test_derived_maps_are_what_plain_loops_find(placement):
    most = placement.logical_replica_count.max()
    assert placement.logical_to_physical_map.shape == (placement.num_layers, placement.num_experts, most)
    for layer in range(placement.num_layers):
        row = placement.physical_to_logical_map[layer].tolist()
        for expert in range(placement.num_experts):
            slots = [slot for slot in range(len(row)) if row[slot] == expert]
            assert placement.logical_replica_count[layer, expert] == len(slots)
            padded = slots + [-1] * (most - len(slots))
            assert placement.logical_to_physical_map[layer, expert].tolist() == padded
        hands = hands_of(placement, layer)
        for rank, hand in enumerate(hands):
            local = [hand.index(expert) if expert in hand else -1 for expert in range(placement.num_experts)]
            assert placement.local_expert_map(rank)[layer].tolist() == local
        doubled = [e != EMPTY_SLOT and e in hand[:i] for hand in hands for i, e in enumerate(hand)]
        assert placement.duplicate_slots[layer].tolist() == doubled


@given(placement=placements(holes=True, weights=True))
def test_maps_are_fresh_writeable_int64(placement):
    maps = placement.maps()
    for mine, theirs in zip(maps, DERIVED, strict=False):
        assert mine.dtype == np.int64
        assert np.array_equal(mine, getattr(placement, theirs))
        mine[...] = 99
        assert not np.array_equal(mine, getattr(placement, theirs))


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_that_does_not_exist_has_no_local_map(rank):
    with pytest.raises(PlacementError, match=f"rank = {rank}: expected 0 <= rank < 2"):
        small().local_expert_map(rank)


@given(placement=placements(holes=True, weights=True))
def test_copies_are_equal_and_read_only(placement):
    for name in DERIVED:
        getattr(placement, name)
    for other in (pickle.loads(pickle.dumps(placement)), copy.copy(placement), copy.deepcopy(placement)):
        assert other == placement
        assert hash(other) == hash(placement)
        for owner in (placement, other):
            for name in (*DERIVED, *(["replica_weights"] if placement.replica_weights is not None else [])):
                with pytest.raises(ValueError, match="read-only"):
                    getattr(owner, name)[0, 0] = 0


def test_the_callers_array_is_neither_kept_nor_frozen():
    rows = np.array(ROWS, dtype=np.int32)
    placement = Placement(rows, 3, Topology(1, 2, 3))
    rows[0, 0] = 2
    assert placement.physical_to_logical_map[0, 0] == 0


def test_fields_cannot_be_set():
    with pytest.raises(AttributeError, match="Placement is frozen: num_experts cannot be set"):
        small().num_experts = 4


def test_placements_differ_when_any_part_does():
    topology, shares = Topology(1, 2, 2), [[0.25, 1, 0.75, 1]]
    base = Placement([[0, 1, 0, 2]], 3, topology, shares)
    assert base == Placement(np.array([[0, 1, 0, 2]], dtype=np.uint8), np.int64(3), topology, shares)
    assert base != Placement([[0, 2, 0, 1]], 3, topology, shares)
    assert base != Placement([[0, 1, 0, 2]], 3, Topology(2, 1, 2), shares)
    assert base != Placement([[0, 1, 0, 2]], 3, topology, [[0.5, 1, 0.5, 1]])
    assert base != Placement([[0, 1, 0, 2]], 3, topology)
    assert base != "a placement"


@pytest.mark.parametrize(
    ("rows", "num_experts", "message"),
    [
        (ROWS, 0, "num_experts = 0: expected an integer >= 1"),
        (ROWS, 3.0, "num_experts = 3.0: expected an integer >= 1"),
        (ROWS, True, "num_experts = True: expected an integer >= 1"),
        ([[0, 1], [1]], 2, "physical_to_logical_map is not rectangular"),
        ([0, 1, 2], 3, r"physical_to_logical_map has shape \(3,\): expected \[layers, slots\]"),
        (np.zeros((0, 6), dtype=int), 3, r"has shape \(0, 6\): expected \[layers, slots\]"),
        (np.zeros((2, 6)), 1, "physical_to_logical_map holds float64: expected integers"),
        (np.zeros((2, 6), dtype=bool), 1, "physical_to_logical_map holds bool: expected integers"),
        ([[0, 1, 2, 0]], 3, "physical_to_logical_map has 4 slots a layer: the topology has 6"),
        ([[0, 1, 2, 0, 1, 3]], 3, r"\[layer 0, slot 5\] = 3: expected 0 <= id < 3, or -1 for an empty slot"),
        ([ROWS[0], [0, -2, 2, 0, 1, 1]], 3, r"\[layer 1, slot 1\] = -2: expected 0 <= id < 3"),
        (np.full((1, 6), 2**64 - 1, dtype=np.uint64), 3, r"\[layer 0, slot 0\] = 18446744073709551615: expected"),
        ([ROWS[0], [0, 1, 1, 0, -1, 1]], 3, r"\[layer 1\]: expert 2 has no slot, expected at least one"),
        ([range(6)], 9, r"\[layer 0\]: expert 6 has no slot, expected at least one"),
        ([[0, 1, 2, 0, -1, 4]], 7, r"\[layer 0\]: expert 3 has no slot, expected at least one"),
    ],
)
def test_what_cannot_be_a_placement_is_refused_with_value_place_and_expectation(rows, num_experts, message):
    with pytest.raises(PlacementError, match=message):
        Placement(rows, num_experts, Topology(1, 2, 3))


GOOD_WEIGHTS = [[0.5, 1, 1, 0.5, 0, 0], [1, 1, 0.2, 0.4, 0, 0.4]]


@pytest.mark.parametrize(
    ("layer", "slot", "value", "message"),
    [
        (0, 0, 1.5, "expected shares from 0 to 1, and 0 in empty slots"),
        (0, 0, -0.5, "expected shares from 0 to 1, and 0 in empty slots"),
        (0, 0, np.nan, "expected shares from 0 to 1, and 0 in empty slots"),
        (0, 4, 0.5, "expected shares from 0 to 1, and 0 in empty slots"),
        (0, 0, 0.25, r"replica_weights\[layer 0\] of expert 0 sum to 0.75: expected 1"),
        (1, 1, 0.0, r"replica_weights\[layer 1\] of expert 0 sum to 0.0: expected 1"),
    ],
)
def test_weights_that_are_no_shares_are_refused(layer, slot, value, message):
    weights = np.array(GOOD_WEIGHTS)
    assert np.array_equal(small(weights).replica_weights, weights)
    weights[layer, slot] = value
    with pytest.raises(PlacementError, match=message):
        small(weights)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([[1.0] * 6], r"replica_weights has shape \(1, 6\): expected \(2, 6\)"),
        ([[1.0], [1.0, 0.0]], "replica_weights is not a rectangular array of numbers"),
        ("even", "replica_weights is not a rectangular array of numbers"),
    ],
)
def test_weights_of_another_shape_are_refused(weights, message):
    with pytest.raises(PlacementError, match=message):
        small(weights)


def test_a_load_of_another_model_is_refused():
    small().check_model(ModelShape(2, 3))
    for shape in (ModelShape(3, 3), ModelShape(2, 4), ModelShape(3, 4)):
        with pytest.raises(InputError, match=f"trace of {shape.num_layers} layers x {shape.num_experts} experts: the"):
            small().check_model(shape, "trace", name="live placement")


def test_repr_says_the_sizes():
    assert repr(small()) == "Placement(2 layers, 3 experts in 6 slots on 2 ranks)"
    facts = re.sub("<[^>]*>", " ", small()._repr_html_())
    assert re.search(r"slots\s+6\s+most replicas\s+3\s+duplicate slots\s+1\s", facts), facts


def test_arrays_in_any_memory_order_make_the_same_placement_and_plan():
    rows = np.array([[0, 1, 2, 0], [2, 1, 0, 1]])
    topology, tokens = Topology(1, 2, 2), np.array([[5.0, 2.0, 1.0], [1.0, 4.0, 1.0]])
    placement = Placement(np.asfortranarray(rows), 3, topology)
    assert placement == Placement(rows, 3, topology)
    assert placement.physical_to_logical_map.flags.c_contiguous
    columns, plain = ExpertLoad(np.asfortranarray(tokens)), ExpertLoad(tokens)
    assert columns.tokens.flags.c_contiguous
    assert eplb.plan(columns, topology).placement == eplb.plan(plain, topology).placement
    certified = certified_plan(Problem(columns, topology), np.asfortranarray(rows), strategy="by hand")
    assert certified == certified_plan(Problem(plain, topology), rows, strategy="by hand")
