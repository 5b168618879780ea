"""Replica weights for a planned load, and what a runtime reaches that splits every window by its own counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eplb
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.dispatch.optimal_shares import best_split, online_busiest, weighted_placement
from eplb.errors import InputError
from eplb_traces import ExpertLoad
from tests.dispatch.test_optimal_shares_kernel import linear_program
from tests.generators import placements


def loads_for(placement, seed, *, num_windows=2):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 50, (num_windows, placement.num_layers, placement.num_experts)).astype(float)
    tokens[0, 0, 0] += 1
    return ExpertLoad(tokens)


@settings(max_examples=80)
@given(placement=placements(holes=True, weights=True), seed=st.integers(0, 10**6))
def test_the_judge_finds_the_optimum_of_the_linear_program_under_the_weights(placement, seed):
    load = loads_for(placement, seed)
    weighted = weighted_placement(placement, load)
    assert np.array_equal(weighted.physical_to_logical_map, placement.physical_to_logical_map)
    speed, rank_of_slot = placement.topology.relative_speed, placement.topology.rank_of_slot
    judged = eplb.evaluate(weighted, load, dispatch="weighted").rank_load.sum(axis=0) / speed
    for layer, row in enumerate(placement.physical_to_logical_map):
        best = linear_program(row, rank_of_slot, speed, load.total[layer])
        assert judged[layer].max() == pytest.approx(best, rel=1e-7, abs=1e-9)


@settings(max_examples=80)
@given(placement=placements(), seed=st.integers(0, 10**6))
def test_no_split_is_better_than_the_windows_own(placement, seed):
    load = loads_for(placement, seed, num_windows=3)
    online = online_busiest(placement, load)
    speed = placement.topology.relative_speed
    weighted = eplb.evaluate(weighted_placement(placement, load), load, dispatch="weighted")
    even = eplb.evaluate(placement, load)
    for judged in (weighted, even):
        assert (online <= (judged.rank_load / speed).max(axis=2) * (1 + 1e-9) + 1e-9).all()
    assert online[0] == pytest.approx(best_split(placement, load.tokens[0]).busiest, rel=1e-12)


def test_shares_stay_even_where_nothing_is_gained():
    # Loads 4 and 4 on two ranks that hold both: even is perfect already. Expert 2 has no load: even too.
    placement = Placement([[0, 1, 2, 0, 1, 2]], 3, Topology(1, 2, 3))
    weights = weighted_placement(placement, ExpertLoad([[4.0, 4, 0]])).replica_weights
    assert weights is not None
    assert weights.tolist() == [[0.5] * 6]


def test_a_single_copy_beside_a_shared_expert_is_relieved():
    # Rank 0: expert 0 (6 tokens, here only) and expert 1; rank 1: expert 1 and expert 2 (0 tokens). 6 + x = 4 - x < 0:
    # expert 1 goes to rank 1 entirely, and rank 0 keeps the 6.
    placement = Placement([[0, 1, 1, 2]], 3, Topology(1, 2, 2))
    load = ExpertLoad([[6.0, 4, 0]])
    weights = weighted_placement(placement, load).replica_weights
    assert weights is not None
    assert weights[0] == pytest.approx([1, 0, 1, 1], abs=1e-9)
    assert best_split(placement, load.total).busiest.tolist() == [6]


def test_a_load_of_another_model_is_refused():
    placement = Placement([[0, 1]], 2, Topology(1, 2, 1))
    for load in (ExpertLoad([[1.0, 2, 3]]), ExpertLoad([[1.0, 2], [1, 2]])):
        with pytest.raises(InputError, match="another model"):
            weighted_placement(placement, load)
        with pytest.raises(InputError, match="another model"):
            online_busiest(placement, load)
