"""Carrying a live placement over: what stays, what fills the slots, and that evening out pays within its allowance."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from eplb.core.topology import Topology
from eplb.strategies.incremental.carry_over import carried_over, evened, num_fetched
from eplb.strategies.incremental.incremental import Held, busiest_rank
from tests.generators import placements

FOUR = Topology(1, 2, 2)


def held_by(*ranks):
    """One layer: the experts of each rank."""
    return Held(np.array([[e for rank in ranks for e in rank]], np.int32), np.cumsum([0, *map(len, ranks)]))


def test_the_hottest_missing_expert_goes_to_the_rank_that_ends_lowest():
    # Rank 0 has expert 0 of 5 tokens, rank 1 expert 1 of 3. Experts 2 (4 tokens) and 3 (1) have no replica:
    # 2 goes to rank 1, 3 + 4 = 7 against 9, then 3 to rank 0, 6 against 8.
    load = np.array([[5.0, 3, 4, 1]])
    assert carried_over(load, held_by([0], [1]), FOUR).tolist() == [[0, 3, 1, 2]]


def test_a_rank_with_too_many_gives_up_replicas_evenly_spaced_in_order_of_load():
    # Of 8, 4, 2, 1 tokens on rank 0 every second one stays, counted from the heaviest: 4 and 1. The others move.
    load = np.array([[8.0, 4, 2, 1]])
    new = carried_over(load, held_by([0, 1, 2, 3], []), FOUR)
    assert sorted(new[0, :2].tolist()) == [1, 3]
    assert sorted(new[0, 2:].tolist()) == [0, 2]


def test_a_redundant_replica_is_given_up_for_an_expert_that_would_have_none():
    # Three slots for experts 0, 1, 2: rank 0 of one slot keeps 1 or 2, rank 1 of two slots 0 and one more.
    topology = Topology(1, 2, (1, 2))
    new = carried_over(np.array([[9.0, 2, 1]]), held_by([0, 1], [0, 2]), topology)
    assert set(new[0].tolist()) == {0, 1, 2}


def test_where_experts_outnumber_the_slots_that_can_be_freed_some_are_left_out():
    new = carried_over(np.array([[1.0, 1, 1]]), held_by([0], [0], []), Topology(1, 3, 1))
    assert set(new[0].tolist()) == {0, 1}
    assert -1 not in new


@given(placement=placements(duplicates=False, holes=True), seed=st.integers(0, 10**6), extra=st.sampled_from([0, 0.5]))
def test_evening_out_lowers_the_busiest_rank_within_its_allowance(placement, seed, extra):
    topology = placement.topology
    assume(topology.rank_num_slots.max() <= placement.num_experts)
    load = np.random.default_rng(seed).lognormal(0, 1, (placement.num_layers, placement.num_experts))
    held = Held(placement.physical_to_logical_map, topology.rank_first_slot)
    start = carried_over(load, held, topology)
    assert (start[held.phy2log >= 0] == held.phy2log[held.phy2log >= 0]).all()
    new = evened(load, start, held, topology, extra=extra)
    before, after = (num_fetched(phy2log, held, topology, placement.num_experts) for phy2log in (start, new))
    assert (after <= np.floor(before * (1 + extra) + 1e-9)).all()
    assert (busiest_rank(load, new, topology) <= busiest_rank(load, start, topology) * (1 + 1e-12)).all()


def test_fetches_are_counted_by_rank():
    held = held_by([0, 1], [2])
    assert num_fetched(np.array([[1, 2, 2, 0]], np.int32), held, FOUR, 3).tolist() == [2]
    assert num_fetched(np.array([[1, 2, 2, 0]], np.int32), held_by([0, 1, 2], [2]), FOUR, 3).tolist() == [1]
