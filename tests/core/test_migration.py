"""What must move between two placements: counted again by plain code, replayed, and tampered with."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb.core.expert_bytes import DEEPSEEK_V3_EXPERT_BYTES
from eplb.core.migration import Hop, Migration, rename_ranks
from eplb.core.migration_simulation import simulate
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import PlacementError, VerificationError
from tests.generators import placements
from tests.oracles import hands_of


@st.composite
def pairs(draw, holes=True):
    """Two placements of the same model on the same machine."""
    before = draw(placements(holes=holes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = np.stack([rng.permutation(row) for row in before.physical_to_logical_map])
    some = rng.random(len(rows)) < draw(st.sampled_from([0.5, 1.0]))
    return before, Placement(
        np.where(some[:, None], rows, before.physical_to_logical_map), before.num_experts, before.topology
    )


def fetched_pairs(before, after):
    """(layer, rank, expert) that a rank must get from another rank, from the ranks' hands."""
    return {
        (layer, rank, expert)
        for layer in range(before.num_layers)
        for rank, (old, new) in enumerate(zip(hands_of(before, layer), hands_of(after, layer), strict=True))
        for expert in set(new) - set(old) - {-1}
    }


@given(pair=pairs())
def test_moved_copies_are_the_experts_that_ranks_did_not_hold(pair):
    migration = Migration.between(*pair)
    crossing = migration.hop != Hop.SAME_RANK
    found = list(zip(*(getattr(migration, n)[crossing].tolist() for n in ("layer", "rank", "expert")), strict=True))
    assert len(found) == len(set(found)) == migration.moved_copies
    assert set(found) == fetched_pairs(*pair)
    assert migration.moved_copies_by_layer.tolist() == [
        sum(layer == wanted for layer, _, _ in found) for wanted in range(pair[0].num_layers)
    ]
    assert migration.moved_fraction == len(found) / pair[0].physical_to_logical_map.size


@given(pair=pairs())
def test_a_replay_ends_at_the_new_placement_and_no_expert_is_ever_without_a_copy(pair):
    assert simulate(Migration.between(*pair)) >= 1


@given(pair=pairs(), expert_bytes=st.sampled_from([1.0, DEEPSEEK_V3_EXPERT_BYTES]))
def test_link_bytes_are_the_copies_between_ranks(pair, expert_bytes):
    migration = Migration.between(*pair, expert_bytes)
    num_ranks = migration.topology.num_ranks
    expected = np.zeros((num_ranks, num_ranks))
    for source, rank in zip(migration.source_rank, migration.rank, strict=True):
        if source != rank:
            expected[source, rank] += expert_bytes
    assert migration.link_bytes.tolist() == expected.tolist()
    assert migration.moved_bytes == migration.moved_copies * expert_bytes
    per_hop = [migration.copies_of_hop(hop) for hop in Hop]
    assert sum(per_hop) == migration.layer.size
    assert per_hop[Hop.SAME_NODE] + per_hop[Hop.OTHER_NODE] == migration.moved_copies


@given(pair=pairs())
def test_seconds_are_the_slowest_copy_of_each_batch(pair):
    migration = Migration.between(*pair, DEEPSEEK_V3_EXPERT_BYTES)
    topology = migration.topology
    gbps = {Hop.SAME_NODE: topology.intra_node_gbps, Hop.OTHER_NODE: topology.inter_node_gbps}
    slowest = {}
    for layer, batch, hop in zip(migration.layer, migration.batch, migration.hop, strict=True):
        if batch >= 0:
            seconds = DEEPSEEK_V3_EXPERT_BYTES / (gbps[Hop(hop)] * 1e9)
            slowest[layer, batch] = max(seconds, slowest.get((layer, batch), 0.0))
    assert len(slowest) == migration.num_batches
    assert math.isclose(migration.transfer_s, math.fsum(slowest.values()), rel_tol=1e-9, abs_tol=0)


@given(placement=placements(holes=True))
def test_nothing_moves_between_equal_placements(placement):
    migration = Migration.between(placement, placement, 1.0)
    assert migration.layer.size == migration.moved_copies == migration.num_batches == migration.staging_copies == 0
    assert migration.transfer_s == 0
    assert simulate(migration) == placement.num_slots  # nothing was replayed


@given(pair=pairs())
def test_without_the_bytes_of_an_expert_there_are_copies_and_no_bytes(pair):
    unknown, known = Migration.between(*pair), Migration.between(*pair, 10.0)
    assert unknown.moved_bytes is unknown.transfer_s is None
    assert unknown.summary() == {
        name: value for name, value in known.summary().items() if name not in ("moved_bytes", "transfer_s")
    }
    assert (10.0 * unknown.link_copies).tolist() == known.link_bytes.tolist()
    assert "GB" not in repr(unknown)
    for figure in ("link_bytes", "transfer_s_by_layer"):
        with pytest.raises(PlacementError, match="the bytes of an expert are unknown: give expert_bytes"):
            getattr(unknown, figure)


def test_an_exchange_runs_in_one_batch_and_stays_inside_the_node():
    # Two nodes of two ranks; ranks 0 and 1 exchange experts 1 and 2, on ranks 2 and 3 nothing happens.
    topology = Topology(2, 2, 2)
    before = Placement([[0, 1, 2, 3, 1, 2, 0, 3]], 4, topology)
    after = Placement([[0, 2, 1, 3, 1, 2, 0, 3]], 4, topology)
    migration = Migration.between(before, after, 1e9)
    assert migration.slot.tolist() == [1, 2]
    assert migration.source_slot.tolist() == [2, 1]
    assert migration.hop.tolist() == [Hop.SAME_NODE] * 2
    assert migration.batch.tolist() == [0, 0]
    assert migration.staging_copies == 1
    assert migration.summary() == {
        "moved_copies": 2,
        "moved_fraction": 0.25,
        "moved_bytes": 2e9,
        "moved_between_nodes": 0,
        "copied_inside_ranks": 0,
        "num_batches": 1,
        "staging_copies": 1,
        "transfer_s": 1 / 370,
    }


def test_an_expert_wanted_twice_by_a_rank_is_fetched_once():
    topology = Topology(1, 2, 3)
    before = Placement([[0, 1, 1, 2, 0, 1]], 3, topology)
    after = Placement([[0, 2, 2, 2, 0, 1]], 3, topology)
    migration = Migration.between(before, after)
    assert migration.source_slot.tolist() == [3, 1]
    assert migration.hop.tolist() == [Hop.SAME_NODE, Hop.SAME_RANK]
    assert simulate(migration) == 1


def test_a_change_of_slots_inside_a_rank_moves_nothing():
    topology = Topology(1, 2, 2)
    migration = Migration.between(Placement([[0, 1, 2, 3]], 4, topology), Placement([[1, 0, 2, 3]], 4, topology))
    assert migration.moved_copies == 0
    assert migration.copies_of_hop(Hop.SAME_RANK) == 2
    assert simulate(migration) == 1


@pytest.fixture
def exchange():
    """Rank 0 gives expert 0 to rank 1 and 1 to rank 2, and gets 2 and 4."""
    topology = Topology(1, 3, 2)
    before = Placement([[0, 1, 2, 3, 4, 5]], 6, topology)
    return Migration.between(before, Placement([[2, 4, 0, 3, 1, 5]], 6, topology))


def test_a_rank_that_sends_twice_in_a_batch_is_caught(exchange):
    assert exchange.batch.max() == 1
    tampered = dataclasses.replace(exchange, batch=np.zeros_like(exchange.batch))
    with pytest.raises(VerificationError, match="a rank sends more than one"):
        simulate(tampered)


def test_a_batch_left_out_is_caught(exchange):
    late = dataclasses.replace(exchange, batch=exchange.batch.copy())
    vars(late)["num_batches_by_layer"] = np.array([1])
    with pytest.raises(VerificationError, match="ends with expert"):
        simulate(late)


def test_an_expert_that_is_overwritten_before_its_copy_is_caught(exchange):
    # Batch 1 has the only copies of experts 4 and 0 to their new ranks; batch 0 overwrites where they were.
    batch = np.array([{2: 0, 1: 0, 4: 1, 0: 1}[expert] for expert in exchange.expert.tolist()], exchange.batch.dtype)
    lossy = dataclasses.replace(exchange, batch=batch)
    assert simulate(lossy) == 1
    vars(lossy)["num_batches_by_layer"] = np.array([1])
    with pytest.raises(VerificationError, match="layer 0, commit: expert 0 has no live replica"):
        simulate(lossy)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("source_slot", [3, 3, 3, 3], "expected a slot that holds expert 2"),
        ("hop", [0, 0, 0, 0], "its distance"),
        ("batch", [-1, -1, -1, -1], "a batch if it is on another rank"),
        ("slot", [0, 1, 2, 5], "expected the slots that get another expert"),
        ("batch", [0], "batch has 1 entries: expected 4"),
    ],
)
def test_entries_that_do_not_fit_are_refused(exchange, field, value, message):
    array = np.array(value, dtype=getattr(exchange, field).dtype)
    with pytest.raises(PlacementError, match=message):
        dataclasses.replace(exchange, **{field: array})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Placement([[0, 1, 2, 3], [0, 1, 2, 3]], 4, Topology(1, 2, 2)), "layers = 2 after 1"),
        (Placement([[0, 1, 2, 2]], 3, Topology(1, 2, 2)), "experts = 3 after 4"),
        (Placement([[0, 1, 2, 3]], 4, Topology(1, 1, 4)), "ranks = 1 after 2"),
        (Placement([[0, 1, 2, 3]], 4, Topology(2, 1, 2)), "nodes = 2 after 1"),
        (Placement([[0, 1, 2, 3]], 4, Topology(1, 2, [1, 3])), "slots_per_rank = "),
    ],
)
def test_placements_that_do_not_fit_are_refused(other, message):
    with pytest.raises(PlacementError, match=message):
        Migration.between(Placement([[0, 1, 2, 3]], 4, Topology(1, 2, 2)), other)


@pytest.mark.parametrize("expert_bytes", [0, -1.0, float("inf"), float("nan")])
def test_expert_bytes_must_be_a_size(expert_bytes):
    placement = Placement([[0, 1]], 2, Topology(1, 2, 1))
    with pytest.raises(PlacementError, match="expert_bytes"):
        Migration.between(placement, placement, expert_bytes)


def test_it_is_frozen_and_survives_pickle(exchange):
    with pytest.raises(ValueError, match="read-only"):
        exchange.batch[0] = 3
    copy = pickle.loads(pickle.dumps(exchange))
    assert copy == exchange
    assert hash(copy) == hash(exchange)
    assert not copy.batch.flags.writeable
    assert exchange != dataclasses.replace(exchange, expert_bytes=1.0)
    assert exchange != dataclasses.replace(exchange, batch=exchange.batch + 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        exchange.expert_bytes = 1.0


@given(pair=pairs(), blocks=st.sampled_from(["one", "node", "all"]))
def test_renamed_ranks_hold_the_same_hands_inside_a_block_and_never_move_more(pair, blocks):
    before, after = pair
    topology = before.topology
    block = {"one": 1, "node": topology.ranks_per_node, "all": topology.num_ranks}[blocks]
    renamed = rename_ranks(before, after, ranks_per_block=block)
    assert Migration.between(before, renamed).moved_copies <= Migration.between(before, after).moved_copies
    sizes = [block] * (topology.num_ranks // block) if isinstance(block, int) else block
    for layer in range(before.num_layers):
        for end, size in zip(np.cumsum(sizes).tolist(), sizes, strict=True):
            hands = [
                sorted((sorted(hand), speed) for hand, speed in zip(hands_of(p, layer), _speeds(topology), strict=True))
                if size == topology.num_ranks
                else sorted(sorted(hand) for hand in hands_of(p, layer)[end - size : end])
                for p in (after, renamed)
            ]
            assert hands[0] == hands[1]


def _speeds(topology):
    return topology.relative_speed.tolist()


def test_a_placement_with_its_ranks_exchanged_needs_no_move():
    topology = Topology(2, 2, 2)
    before = Placement([[0, 1, 2, 3, 4, 5, 6, 7]], 8, topology)
    inside = Placement([[2, 3, 1, 0, 6, 7, 4, 5]], 8, topology)
    assert rename_ranks(before, inside, ranks_per_block=2) == before
    across = Placement([[4, 5, 6, 7, 0, 1, 2, 3]], 8, topology)
    assert rename_ranks(before, across, ranks_per_block=4) == before
    assert Migration.between(before, rename_ranks(before, across, ranks_per_block=2)).moved_copies == 8


def test_blocks_and_weights_that_cannot_be_renamed_are_refused():
    topology = Topology(1, 2, 2)
    before = Placement([[0, 1, 0, 1]], 2, topology)
    weighted = Placement([[0, 1, 0, 1]], 2, topology, [[0.5, 0.5, 0.5, 0.5]])
    with pytest.raises(PlacementError, match="ranks_per_block = 3: expected a divisor of 2 ranks"):
        rename_ranks(before, before, ranks_per_block=3)
    with pytest.raises(PlacementError, match=r"ranks_per_block = \[1, 2\]: expected counts >= 1 with sum 2"):
        rename_ranks(before, before, ranks_per_block=[1, 2])
    with pytest.raises(PlacementError, match="replica_weights"):
        rename_ranks(before, weighted, ranks_per_block=2)
