"""Replans for other ranks: valid, judged, no expert ever without a replica, and few copies moved."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import eplb
from eplb.core.migration_simulation import simulate
from eplb.core.placement import EMPTY_SLOT
from eplb.core.topology import Topology
from eplb.core.topology_change import TopologyChange, kept_ranks
from eplb.errors import InfeasibleError, InputError
from eplb.planning.rebalance import rebalance
from eplb.planning.replan_on import migration_between, replan_on
from tests.generators import layer_loads, placements, topologies
from tests.oracles import busiest_time, hands_of, has_doubles


def change_of(before, after, retiring=(), lost=()):
    return TopologyChange(before, after, kept_ranks(before, after, (*retiring, *lost)), lost)


@st.composite
def cases(draw):
    """A live placement, a load, a new topology and a map of the ranks, in any way odd."""
    previous = draw(placements(holes=True))
    num_experts = previous.num_experts
    after = draw(topologies(min_slots=num_experts))
    assume(after.rank_num_slots.max() <= num_experts)
    new = draw(st.permutations([*range(after.num_ranks), *[-1] * previous.topology.num_ranks]))
    rank_map = new[: previous.topology.num_ranks]
    gone = [rank for rank, to in enumerate(rank_map) if to < 0]
    lost = draw(st.lists(st.sampled_from(gone), unique=True)) if gone else []
    load = np.array([draw(layer_loads(num_experts)) for _ in range(previous.num_layers)])
    assume(load.max() > 0)
    return previous, eplb.ExpertLoad(load), TopologyChange(previous.topology, after, rank_map, lost)


@given(case=cases(), target=st.sampled_from([1.0, 1.2, 1e9]), moves=st.none() | st.integers(0, 3))
def test_the_plan_is_valid_judged_and_reached_with_every_expert_alive(case, target, moves):
    previous, load, change = case
    made = replan_on(previous, load, change, target=target, max_moves=moves)
    assert made.placement.topology == change.after
    judged = eplb.evaluate(made.placement, load).rank_load[0]
    for layer in range(load.num_layers):
        hands = hands_of(made.placement, layer)
        assert EMPTY_SLOT not in [expert for hand in hands for expert in hand]
        if not previous.duplicate_slots[layer].any():
            assert not has_doubles(hands)
        found = busiest_time(hands, load.total[layer], change.after.rank_speed)
        assert made.layers[layer].objective == pytest.approx(found, rel=1e-9)
        assert (judged[layer] / change.after.relative_speed).max() == pytest.approx(found, rel=1e-9)
    check_migration(previous, made, change)
    assert replan_on(previous, load, change, target=target, max_moves=moves) == made


def check_migration(previous, made, change):
    """By old and new ranks: what each rank must fetch, from ranks that live, and nothing else."""
    migration = made.migration
    assert migration.topology == change.union
    if migration.layer.size:
        assert simulate(migration) >= 1
    num_loaded = 0
    for layer in range(previous.num_layers):
        old, new = hands_of(previous, layer), hands_of(made.placement, layer)
        alive = {e for rank, hand in enumerate(old) if rank not in change.lost for e in hand} - {EMPTY_SLOT}
        num_loaded += previous.num_experts - len(alive)
        had = {(change.rank_map[rank], e) for rank, hand in enumerate(old) for e in hand}
        lacking = {(rank, e) for rank, hand in enumerate(new) for e in hand} - had
        # An expert that only lost ranks held is loaded once, for a rank that lacks it or beside the others.
        least = len(lacking) - (previous.num_experts - len(alive))
        assert least <= migration.moved_copies_by_layer[layer] <= len(lacking)
        held = [set(hand) for hand in hands_of(migration.before, layer)]
        after = [set(hand) for hand in hands_of(migration.after, layer)]
        assert sorted(sorted(hand - {-1}) for hand in after if hand - {-1}) == sorted(sorted(set(hand)) for hand in new)
        assert set().union(*held) - {-1} == set(range(previous.num_experts))
    assert migration_between(previous, made.placement, change, 1.0).num_loaded == num_loaded


def test_the_check_of_the_migration_catches_a_rank_that_is_no_source():
    previous = eplb.Placement([[0, 1, 2, 0]], 3, Topology(1, 2, 2))
    change = TopologyChange(previous.topology, Topology(1, 1, 3), [0, -1])
    made = replan_on(previous, eplb.ExpertLoad([[3.0, 2, 1]]), change)
    check_migration(previous, made, change)
    assert made.migration.moved_copies == 1
    with pytest.raises(AssertionError):
        check_migration(previous, made, TopologyChange(previous.topology, change.after, [0, -1], [1]))


@given(case=cases())
def test_without_need_for_balance_what_fits_stays_in_its_slot(case):
    previous, _, change = case
    assume(not previous.duplicate_slots.any())
    even = eplb.ExpertLoad(np.ones((previous.num_layers, previous.num_experts)))
    made = replan_on(previous, even, change, target=1e9, max_moves=0)
    kept = [(old, new) for old, new in enumerate(change.rank_map) if new >= 0]
    for layer in range(previous.num_layers):
        old, new = hands_of(previous, layer), hands_of(made.placement, layer)
        for from_rank, to_rank in kept:
            for place, expert in enumerate(new[to_rank]):
                if expert in old[from_rank][: len(new[to_rank])]:
                    assert old[from_rank][place] == expert


def model_load(drift=0.0, num_layers=12):
    rng = np.random.default_rng(0)
    load = rng.lognormal(0, 1, (num_layers, 256)) * 1000
    return eplb.ExpertLoad(load), eplb.ExpertLoad(load * rng.lognormal(0, drift, load.shape))


@pytest.mark.parametrize("slots", [48, 60, 72])
@pytest.mark.parametrize("drift", [0.0, 0.2])
def test_growing_from_4_to_6_ranks_costs_the_new_slots_and_5_percent(slots, drift):
    load, later = model_load(drift)
    live = eplb.plan(load, Topology(1, 4, 72), "greedy").placement
    after = Topology(1, 6, slots)
    made = replan_on(live, later, change_of(live.topology, after))
    assert made.migration.moved_copies <= 1.05 * 12 * 2 * slots
    fresh = eplb.evaluate(eplb.plan(later, after, "greedy").placement, later).max_over_mean
    assert (eplb.evaluate(made.placement, later).max_over_mean <= 1.02 * fresh).all()


@pytest.mark.parametrize("slots", [11, 12])
def test_shrinking_from_32_to_24_ranks_moves_every_dead_end_once(slots):
    load, _ = model_load()
    live = eplb.plan(load, Topology(4, 8, 9), "greedy").placement
    after = Topology(3, 8, slots)
    made = replan_on(live, load, change_of(live.topology, after, retiring=range(8, 16)))
    assert "retiring ranks: 8-15" in made.notes
    assert made.migration.topology == Topology(4, 8, [slots] * 24 + [9] * 8)
    retiring, needed = set(range(24, 32)), 0
    assert retiring & set(made.migration.source_rank.tolist())
    for layer, old in enumerate(live.physical_to_logical_map):
        rank = live.topology.rank_of_slot
        dead_ends = set(range(256)) - set(old[(rank < 8) | (rank >= 16)].tolist())
        from_retiring = np.isin(made.migration.source_rank, [*retiring]) & (made.migration.layer == layer)
        assert dead_ends <= set(made.migration.expert[from_retiring].tolist())
        needed += max(len(dead_ends), 24 * (slots - 9))
    assert made.migration.moved_copies <= 1.1 * needed  # 11 slots leave 8 redundant ones to even out 24 ranks
    assert eplb.evaluate(made.placement, load).max_over_mean.mean() <= 1.02


def test_lost_ranks_are_no_sources_and_their_experts_are_loaded_once():
    load, _ = model_load()
    live = eplb.plan(load, Topology(3, 8, 12), "greedy").placement
    change = change_of(live.topology, Topology(3, (8, 8, 7), 12), lost=[23])
    made = replan_on(live, load, change)
    assert change.union == change.after
    left = live.physical_to_logical_map[:, : 23 * 12]
    num_lost = sum(256 - len(set(row)) for row in left.tolist())
    assert num_lost > 0
    assert any(note.startswith(f"{num_lost} lost experts loaded from the checkpoint") for note in made.notes)
    assert made.placement.topology.nodes == (8, 8, 7)


def test_a_rank_that_comes_back_is_filled_with_few_copies():
    load, _ = model_load()
    live = eplb.plan(load, Topology(4, 8, 9), "greedy").placement
    without = replan_on(live, load, change_of(live.topology, Topology(4, (8, 7, 8, 8), 9), lost=[11])).placement
    made = replan_on(without, load, change_of(without.topology, live.topology))
    assert "ranks, old -> new: 0-14 -> 0-14, 15-30 -> 16-31" in made.notes
    assert "added ranks: 15" in made.notes
    assert made.migration.moved_copies <= 1.05 * 12 * 9 + 12


def test_more_slots_a_rank_are_filled_and_fewer_are_given_up():
    load, _ = model_load()
    live = eplb.plan(load, Topology(4, 8, 9), "greedy").placement
    more = replan_on(live, load, change_of(live.topology, Topology(4, 8, 10)))
    assert more.migration.moved_copies <= 1.05 * 12 * 32
    fewer = replan_on(more.placement, load, change_of(more.placement.topology, live.topology))
    assert fewer.migration.moved_copies <= 0.1 * 12 * 288
    assert eplb.evaluate(fewer.placement, load).max_over_mean.mean() <= 1.05


def test_the_same_topology_is_an_ordinary_replan():
    load, later = model_load(0.3)
    live = eplb.plan(load, Topology(4, 8, 9), "greedy").placement
    made = replan_on(live, later, change_of(live.topology, live.topology))
    assert made.migration.before == live
    expected = rebalance(live, later)
    assert made.placement == expected.placement
    assert made.migration == expected.migration


def test_what_does_not_fit_is_refused():
    placement = eplb.Placement([[0, 1, 2, 3]], 4, Topology(1, 2, 2))
    load = eplb.ExpertLoad([[1.0, 1, 1, 1]])
    with pytest.raises(InfeasibleError, match=r"1 ranks have 3 slots: .* 4 experts \(4 slots a rank\)"):
        replan_on(placement, load, change_of(placement.topology, Topology(1, 1, 3)))
    with pytest.raises(InputError, match="expected the ranks and slots of the previous placement"):
        replan_on(placement, load, change_of(Topology(1, 4, 1), Topology(1, 2, 2)))
    with pytest.raises(InputError, match="another model"):
        replan_on(placement, eplb.ExpertLoad([[1.0, 1]]), change_of(placement.topology, Topology(1, 2, 2)))
    with pytest.raises(InputError, match="slots_per_rank = 5"):
        replan_on(placement, load, change_of(placement.topology, Topology(1, 2, 5)))
