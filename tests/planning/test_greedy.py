"""Greedy: by hand, on idle layers, with pinned groups, and how near the bound it comes on whole models."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eplb
from eplb.errors import InfeasibleError
from eplb.plan import BindingBound, GroupMode
from eplb.strategies import STRATEGIES
from eplb.strategies.greedy import descending_order
from tests.oracles import hands_of
from tests.strategies import layer_loads, problems

# 256 experts, 58 layers: ranks, slots a rank, largest mean gap.
SHAPES = [(32, 9, 3e-4), (8, 36, 3e-4), (16, 18, 3e-4), (64, 5, 1e-3)]
V3_FILES = [
    "decode_in1800out100",
    "decode_in500out1500",
    "prefill_in1000out1000",
    "prefill_in1800out100",
    "prefill_in2000out100",
    "prefill_in2048",
    "prefill_in500out1500",
    "prefill_in512",
]


def greedy(rows, topology, **options):
    return eplb.plan(eplb.ExpertLoad(rows), topology, "greedy", **options)


def model_load(name):
    """58 layers of 256 experts, seed fixed; zipf ranks are shuffled layer by layer."""
    rng = np.random.default_rng(0)
    if name == "lognormal(1)":
        return rng.lognormal(0, 1, (58, 256)) * 1000
    if name == "uniform":
        return rng.random((58, 256)) * 1000
    zipf = 1e6 / np.arange(1, 257) ** 0.8
    return np.stack([rng.permutation(zipf) for _ in range(58)])


def test_a_hand_worked_layer():
    # Three times 9 on 2 ranks of 2: the copy goes to expert 0, 4.5 each; 9 -> rank 0, 9 -> rank 1, 4.5 on both: 13.5.
    made = greedy([[9.0, 9, 9]], eplb.Topology(1, 2, 2))
    assert hands_of(made.placement, 0) == [[1, 0], [2, 0]]
    (layer,) = made.layers
    assert (layer.objective, layer.lower_bound, layer.binding_bound) == (13.5, 13.5, BindingBound.MEAN)
    assert made.status is eplb.SolveStatus.OPTIMAL


def test_the_descent_improves_on_largest_first():
    # 7, 6, 5, 5, 4, 3 on 2 ranks of 3, sum 30. Largest first: 7 | 6, 6 + 5, 7 + 5, 4 -> 11 + 4 = 15 (full), 3 -> 15.
    assert greedy([[7.0, 6, 5, 5, 4, 3]], eplb.Topology(1, 2, 3)).layers[0].objective == 15
    # 10, 9, 8, 6, 5, 2, sum 40. Largest first: 10 | 9, 9 + 8 = 17, 10 + 6 = 16, 16 + 5 = 21, 17 + 2 = 19.
    # Exchanging 6 and 5 for ... : 21 - 19 = 2, wanted 1: 10 for 9 moves 1: 20 and 20.
    made = greedy([[10.0, 9, 8, 6, 5, 2]], eplb.Topology(1, 2, 3))
    assert sorted(sorted(hand) for hand in hands_of(made.placement, 0)) == [[0, 2, 5], [1, 3, 4]]
    assert made.layers[0].objective == 20


@pytest.mark.parametrize(("num_experts", "ranks", "slots"), [(5, 3, 3), (256, 32, 9), (8, 8, 8), (4, 2, 2)])
def test_an_idle_layer_gets_an_even_layout(num_experts, ranks, slots):
    rng = np.random.default_rng(0)
    rows = np.stack([np.zeros(num_experts), rng.random(num_experts)])
    made = greedy(rows, eplb.Topology(1, ranks, slots))
    count = made.placement.logical_replica_count[0]
    assert count.max() - count.min() <= 1
    idle = made.layers[0]
    assert (idle.objective, idle.lower_bound, idle.gap, idle.status) == (0, 0, 0, eplb.SolveStatus.OPTIMAL)


def test_idle_layers_change_nothing_for_their_neighbours():
    rng = np.random.default_rng(1)
    rows, topology = rng.lognormal(0, 1, (4, 24)), eplb.Topology(1, 4, 8)
    among = rows.copy()
    among[[0, 2]] = 0
    alone = greedy(rows, topology).placement.physical_to_logical_map
    assert np.array_equal(greedy(among, topology).placement.physical_to_logical_map[[1, 3]], alone[[1, 3]])


def test_zeros_of_either_sign_are_the_same_load():
    topology = eplb.Topology(1, 2, 3)
    assert greedy([[-0.0, 5, 3, 1]], topology) != greedy([[1.0, 5, 3, 1]], topology)
    plus, minus = greedy([[0.0, 5, 3, 1]], topology), greedy([[-0.0, 5, 3, 1]], topology)
    assert plus.placement == minus.placement
    assert plus.load_digest == minus.load_digest


def test_a_node_without_load_gets_an_even_layout_too():
    # Groups 0-3 and 4-7 on nodes of 6 slots; the second group is idle.
    made = greedy([[4.0, 3, 2, 1, 0, 0, 0, 0]], eplb.Topology(2, 2, 3), groups=2, group_mode="pinned")
    assert made.placement.logical_replica_count[0, 4:].tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize("name", ["greedy", "deepseek"])
@given(problem=problems(equal=True).filter(lambda problem: problem.group_mode is GroupMode.PINNED))
def test_pinned_groups_stay_on_one_node(name, problem):
    placement = STRATEGIES[name](problem).placement
    group_size = problem.load.num_experts // problem.num_groups
    node_of_slot = problem.topology.node_of_rank[problem.topology.rank_of_slot]
    for row in placement.physical_to_logical_map:
        for group in range(problem.num_groups):
            assert len(set(node_of_slot[row // group_size == group].tolist())) == 1


def test_pinned_groups_are_shared_out_by_load():
    # Groups of 2 experts: 10 + 9, 8 + 7, 2 + 1, 1 + 1. Nodes get {19, 2} and {15, 3}, not {19, 15} and {3, 2}.
    rows = [[10.0, 9, 8, 7, 2, 1, 1, 1]]
    placement = greedy(rows, eplb.Topology(2, 2, 2), groups=4, group_mode="pinned").placement
    assert {expert // 2 for expert in placement.physical_to_logical_map[0, :4].tolist()} in ({0, 3}, {1, 2})


@pytest.mark.parametrize(
    ("slots", "groups", "num_experts"),
    [
        # Nodes of 2 experts and ranks of 3 slots; a node of 2 slots for 3 experts.
        (3, 4, 4),
        ([1, 1, 3, 3], 2, 6),
    ],
)
def test_pinned_groups_that_do_not_fit_their_nodes_are_infeasible(slots, groups, num_experts):
    with pytest.raises(InfeasibleError):
        greedy([np.arange(1.0, num_experts + 1)], eplb.Topology(2, 2, slots), groups=groups, group_mode="pinned")


@given(data=st.data(), num_experts=st.integers(1, 300))
def test_experts_are_ordered_by_falling_load_and_ties_by_id(data, num_experts):
    load = data.draw(layer_loads(num_experts))
    order = descending_order(load[None])[0].tolist()
    # Loads that agree in 43 bits may count as ties, so the order is only as fine as that.
    assert sorted(order) == list(range(num_experts))
    for first, second in pairwise(order):
        assert load[first] >= load[second] * (1 - 2.0**-42)
        assert load[first] != load[second] or first < second


@pytest.mark.parametrize(("ranks", "slots", "most"), SHAPES)
@pytest.mark.parametrize("name", ["lognormal(1)", "zipf(0.8)", "uniform"])
def test_the_mean_gap_to_the_bound_on_synthetic_models(name, ranks, slots, most):
    assert greedy(model_load(name), eplb.Topology(1, ranks, slots)).gap_mean <= most


@pytest.mark.parametrize(("ranks", "slots", "most"), SHAPES)
@pytest.mark.parametrize("name", V3_FILES)
def test_the_mean_gap_to_the_bound_on_deepseek_v3(shared_traces, name, ranks, slots, most):
    from eplb_traces import read_load

    load = read_load(shared_traces / "deepseek-v3" / f"{name}.json")
    assert (load.num_layers, load.num_experts) == (58, 256)
    assert eplb.plan(load, eplb.Topology(1, ranks, slots), "greedy").gap_mean <= most
