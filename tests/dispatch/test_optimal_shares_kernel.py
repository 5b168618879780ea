"""The best split against the linear program and against every set of ranks."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from eplb.dispatch.optimal_shares_kernel import split_windows
from tests.generators import placements


def densest_ranks(row, rank_of_slot, speed, load):
    """max over sets of ranks of (load of the experts that live only there) / (speed of the set)."""
    best = 0.0
    ranks_of = {e: {int(r) for r, held in zip(rank_of_slot, row, strict=True) if held == e} for e in range(load.size)}
    for size in range(1, speed.size + 1):
        for chosen in itertools.combinations(range(speed.size), size):
            inside = sum(load[e] for e, ranks in ranks_of.items() if ranks <= set(chosen))
            best = max(best, inside / speed[list(chosen)].sum())
    return best


def linear_program(row, rank_of_slot, speed, load):
    """min T: flows of slots sum to their experts' loads, and to at most T times its speed on each rank."""
    num_slots, num_ranks = row.size, speed.size
    on_rank = np.zeros((num_ranks, num_slots + 1))
    on_rank[rank_of_slot[row >= 0], np.flatnonzero(row >= 0)] = 1
    on_rank[:, -1] = -speed
    of_expert = np.zeros((load.size, num_slots + 1))
    of_expert[row[row >= 0], np.flatnonzero(row >= 0)] = 1
    cost = np.append(np.zeros(num_slots), 1.0)
    return linprog(cost, A_ub=on_rank, b_ub=np.zeros(num_ranks), A_eq=of_expert, b_eq=load).fun


def split(placement, load):
    topology = placement.topology
    busiest, slot_load = np.empty(placement.num_layers), np.empty(placement.physical_to_logical_map.shape)
    row, speed = placement.physical_to_logical_map, topology.relative_speed
    split_windows(load[None], row, topology.rank_first_slot, topology.rank_of_slot, speed, busiest[None], slot_load)
    return busiest, slot_load


def busiest_by_window(load, row, first_slot, speed):
    busiest, slot_load = np.empty((len(load), 1)), np.empty((1, row.size))
    rank_of_slot = np.repeat(np.arange(speed.size), np.diff(first_slot))
    split_windows(load[:, None], row[None], first_slot, rank_of_slot, speed, busiest, slot_load)
    return busiest[:, 0]


@settings(max_examples=150)
@given(placement=placements(holes=True), seed=st.integers(0, 10**6), top=st.sampled_from([1, 5, 10**6]))
def test_the_optimum_is_the_densest_set_of_ranks_and_the_split_reaches_it(placement, seed, top):
    rng = np.random.default_rng(seed)
    load = rng.integers(0, top + 1, (placement.num_layers, placement.num_experts)).astype(float)
    busiest, slot_load = split(placement, load)
    speed, rank_of_slot = placement.topology.relative_speed, placement.topology.rank_of_slot
    for layer, row in enumerate(placement.physical_to_logical_map):
        assert busiest[layer] == pytest.approx(densest_ranks(row, rank_of_slot, speed, load[layer]), rel=1e-12)
        rank_load = np.bincount(rank_of_slot, weights=slot_load[layer], minlength=speed.size)
        assert (rank_load <= busiest[layer] * speed * (1 + 4e-9)).all()
        assert slot_load[layer].min() >= 0
        of_expert = np.bincount(row[row >= 0], weights=slot_load[layer, row >= 0], minlength=load.shape[1])
        assert of_expert == pytest.approx(load[layer], rel=1e-12, abs=1e-9)


@pytest.mark.parametrize(("num_experts", "num_ranks", "slots"), [(256, 32, 9), (64, 16, 5), (40, 24, 2)])
def test_large_layers_agree_with_the_linear_program(num_experts, num_ranks, slots):
    rng = np.random.default_rng(0)
    first_slot, speed = np.arange(num_ranks + 1) * slots, np.ones(num_ranks)
    rank_of_slot = np.repeat(np.arange(num_ranks), slots)
    extra = rng.integers(0, num_experts, num_ranks * slots - num_experts)
    row = rng.permutation(np.concatenate([np.arange(num_experts), extra])).astype(np.int32)
    loads = rng.lognormal(0, 1, (3, num_experts))
    busiest = busiest_by_window(loads, row, first_slot, speed)
    expected = [linear_program(row, rank_of_slot, speed, load) for load in loads]
    assert busiest == pytest.approx(expected, rel=1e-9)


def test_windows_of_any_strides_and_an_idle_window():
    row, first_slot = np.array([0, 1, 0, 2], dtype=np.int32), np.array([0, 2, 4])
    tokens = np.array([[4.0, 0, 9], [1, 0, 9], [0, 0, 9]]).T.copy()  # [E, W]; expert 0 is on both ranks
    busiest = busiest_by_window(tokens.T, row, first_slot, np.ones(2))
    # 13 tokens: 9 on rank 1 is the densest set. 10: 9. 9: 9.
    assert busiest.tolist() == [9, 9, 9]
    assert busiest_by_window(np.zeros((3, 3)), row, first_slot, np.ones(2)).tolist() == [0, 0, 0]


def test_tokens_travel_over_several_ranks():
    # Experts 0, 1, 2 of 3 tokens each join ranks 0-1, 1-2, 2-3; expert 3 has 9 tokens and only rank 0. Evenly split,
    # rank 0 has 10.5; it cannot go below 9, so that expert 0 moves to rank 1, where there is room for it.
    row = np.array([3, 0, 0, 1, 1, 2, 2, 3], dtype=np.int32)[None]
    row[0, 7] = 4
    load = np.array([[3.0, 3, 3, 9, 0]])
    busiest, slot_load = np.empty((1, 1)), np.empty((1, 8))
    rank_of_slot = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    split_windows(load[None], row, np.array([0, 2, 4, 6, 8]), rank_of_slot, np.ones(4), busiest, slot_load)
    assert busiest[0, 0] == 9
    assert slot_load.reshape(4, 2).sum(axis=1) == pytest.approx([9, 4.5, 3, 1.5])
