"""Searches, sources and batches in their compiled form, against plain recounts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb import ExpertLoad, Placement, Topology, plan
from eplb.core.migration_kernel import NO_COPY, OTHER_NODE, SAME_NODE, SAME_RANK, reorder_slots, schedule_layers
from eplb.strategies.incremental.incremental_kernel import reduce_overloads
from tests.generators import placements
from tests.oracles import hands_of, has_doubles, rank_loads


def reduce_overload(placement, load, limit, prices=(0.05, 0.0), num_always=2):
    """Run the search on scaled loads [L, E]; holes go in and out as -1."""
    topology, nothing = placement.topology, placement.num_experts
    old = np.where(placement.physical_to_logical_map < 0, nothing, placement.physical_to_logical_map).astype(np.int32)
    scaled = np.concatenate([load, np.zeros((len(load), 1))], axis=1)
    new, fetched = np.empty_like(old), np.empty(len(load), np.int64)
    limits = np.full((len(load), topology.num_ranks), limit)
    table = np.tile(np.array(prices), (len(load), 1))
    places = topology.rank_first_slot, topology.rank_of_slot
    reduce_overloads(scaled, old, old, topology.rank_first_slot, *places, limits, table, num_always, new, fetched)
    return type(placement)(np.where(new == nothing, -1, new), nothing, topology), fetched


def scaled_loads(rng, placement):
    load = rng.lognormal(0, 1, (placement.num_layers, placement.num_experts))
    return load * placement.topology.num_ranks / load.sum(axis=1, keepdims=True)


def fetches(before, after, layer):
    hands = zip(hands_of(before, layer), hands_of(after, layer), strict=True)
    return sum(len(set(new) - set(old) - {-1}) for old, new in hands)


@given(placement=placements(duplicates=False, holes=True), seed=st.integers(0, 2**32 - 1))
def test_fetches_are_those_of_a_plain_recount_and_no_rank_gets_an_expert_twice(placement, seed):
    load = scaled_loads(np.random.default_rng(seed), placement)
    after, fetched = reduce_overload(placement, load, 1.05)
    for layer in range(placement.num_layers):
        assert fetched[layer] == fetches(placement, after, layer)
        assert not has_doubles(hands_of(after, layer))


@given(placement=placements(duplicates=False, holes=True), seed=st.integers(0, 2**32 - 1))
def test_the_summed_excess_over_the_limit_never_rises(placement, seed):
    load = scaled_loads(np.random.default_rng(seed), placement)
    after, _ = reduce_overload(placement, load, 1.1, prices=(0.0,), num_always=1)
    for layer in range(placement.num_layers):
        before_load, after_load = (rank_loads(hands_of(p, layer), load[layer]) for p in (placement, after))
        assert sum(max(0, x - 1.1) for x in after_load) <= sum(max(0, x - 1.1) for x in before_load) + 1e-9


@given(placement=placements(duplicates=False), seed=st.integers(0, 2**32 - 1))
def test_layers_under_the_limit_stay_as_they_are(placement, seed):
    load = scaled_loads(np.random.default_rng(seed), placement)
    after, fetched = reduce_overload(placement, load, float(placement.topology.num_ranks))
    assert after == placement
    assert not fetched.any()


def test_a_replacement_that_lowers_two_ranks_beats_two_exchanges():
    topology = Topology(1, 3, 2)
    # rank 0: 0 and 1; rank 1: 0 and 2; rank 2: 3 and a copy of 1. Load 1 of expert 1 splits in halves:
    # 2 + 0.5, 2 + 1, 0 + 0.5. The limit 2.5 leaves only rank 1 over. A third copy of expert 0 in the slot of expert 1's
    # copy: 4/3 + 1, 4/3 + 1, 4/3: one fetch. Any exchange costs two.
    placement = Placement([[0, 1, 0, 2, 3, 1]], 4, topology)
    after, fetched = reduce_overload(placement, np.array([[4.0, 1.0, 1.0, 0.0]]), 2.5)
    assert fetched.tolist() == [1]
    assert hands_of(after, 0) == [[0, 1], [0, 2], [3, 0]]


def schedule(before, after):
    topology, shape = before.topology, before.physical_to_logical_map.shape
    source, batch, hop = np.empty(shape, np.int32), np.empty(shape, np.int32), np.empty(shape, np.int8)
    schedule_layers(
        before.physical_to_logical_map,
        after.physical_to_logical_map,
        before.num_experts,
        topology.rank_first_slot,
        topology.rank_of_slot,
        topology.node_of_rank,
        source,
        hop,
        batch,
    )
    return source, hop, batch


@st.composite
def pairs(draw):
    """Two placements of the same model on the same machine, in any way odd."""
    before = draw(placements(holes=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = np.stack([rng.permutation(row) for row in before.physical_to_logical_map])
    keep = rng.random(rows.shape) < draw(st.sampled_from([0.0, 0.5, 0.9]))
    mixed = np.where(keep, before.physical_to_logical_map, rows)
    whole = np.array([len(set(row) - {-1}) == before.num_experts for row in mixed])
    return before, type(before)(np.where(whole[:, None], mixed, rows), before.num_experts, before.topology)


@given(pair=pairs())
def test_every_batch_has_one_peer_each_way_and_there_are_as_few_as_the_sources_allow(pair):
    before, after = pair
    source, hop, batch = schedule(before, after)
    rank_of_slot = before.topology.rank_of_slot
    for layer in range(before.num_layers):
        crossing = np.nonzero(hop[layer] > SAME_RANK)[0]
        sends = [(int(rank_of_slot[source[layer, s]]), int(batch[layer, s])) for s in crossing]
        receives = [(int(rank_of_slot[s]), int(batch[layer, s])) for s in crossing]
        assert len(set(sends)) == len(sends)
        assert len(set(receives)) == len(receives)
        degrees = [[rank for rank, _ in side].count(r) for side in (sends, receives) for r in range(99)]
        assert {b for _, b in sends} == set(range(max(degrees)))  # König: the largest degree, no batch empty
        assert (batch[layer][hop[layer] <= SAME_RANK] == -1).all()


@given(pair=pairs())
def test_sources_hold_the_expert_and_none_is_nearer(pair):
    before, after = pair
    source, hop, _ = schedule(before, after)
    node = before.topology.node_of_rank[before.topology.rank_of_slot]
    rank = before.topology.rank_of_slot
    for layer, (old, new) in enumerate(zip(before.physical_to_logical_map, after.physical_to_logical_map, strict=True)):
        for slot in range(new.size):
            if new[slot] in (-1, old[slot]):
                assert hop[layer, slot] == NO_COPY
                continue
            holders = np.nonzero(old == new[slot])[0]
            siblings = [s for s in range(slot) if rank[s] == rank[slot] and new[s] == new[slot] != old[s]]
            if (rank[holders] == rank[slot]).any() or siblings:
                assert hop[layer, slot] == SAME_RANK
                assert source[layer, slot] in [*holders, *siblings]
            else:
                near = (node[holders] == node[slot]).any()
                assert hop[layer, slot] == (SAME_NODE if near else OTHER_NODE)
                assert source[layer, slot] in holders
                assert not near or node[source[layer, slot]] == node[slot]


def test_holders_equally_near_share_the_sending():
    # Experts 0, 1, 2 on ranks 0 and 1; ranks 2, 3, 4 each want one: with two holders none sends more than two.
    topology = Topology(1, 5, 3)
    before = Placement([[0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5]], 6, topology)
    after = Placement([[0, 1, 2, 0, 1, 2, 0, 4, 5, 3, 1, 5, 3, 4, 2]], 6, topology)
    source, _, batch = schedule(before, after)
    senders = topology.rank_of_slot[source[0][source[0] >= 0]].tolist()
    assert sorted(senders.count(rank) for rank in (0, 1)) == [1, 2]
    assert batch.max() + 1 == 2


@given(pair=pairs())
def test_kept_experts_stay_in_their_slots_and_ranks_hold_what_they_held(pair):
    before, after = pair
    new = after.physical_to_logical_map.copy()
    reorder_slots(before.physical_to_logical_map, new, before.topology.rank_first_slot)
    kept = type(before)(new, before.num_experts, before.topology)
    for layer in range(before.num_layers):
        for was, asked, got in zip(hands_of(before, layer), hands_of(after, layer), hands_of(kept, layer), strict=True):
            assert sorted(asked) == sorted(got)
            common = sum(min(was.count(e), asked.count(e)) for e in set(was))
            assert sum(a == b for a, b in zip(was, got, strict=True)) == common


def test_a_price_of_being_over_is_what_makes_searches_differ():
    rng = np.random.default_rng(5)
    load = rng.lognormal(0, 1, (6, 64))
    live = plan(ExpertLoad(load), Topology(1, 8, 9), "greedy").placement
    drifted = load * rng.lognormal(0, 0.5, load.shape)
    drifted *= 8 / drifted.sum(axis=1, keepdims=True)
    alone = [reduce_overload(live, drifted, 1.02, prices=(price,), num_always=1)[1] for price in (0.0, 0.02, 0.1)]
    together = reduce_overload(live, drifted, 1.02, prices=(0.0, 0.02, 0.1), num_always=3)[1]
    assert together.tolist() == np.min(alone, axis=0).tolist()
    assert len({tuple(one.tolist()) for one in alone}) > 1
    with pytest.raises(TypeError):
        reduce_overloads(drifted)
