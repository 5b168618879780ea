"""`rebalance_experts`: equal to the published function slot by slot, refusing what it asserts."""

import numpy as np
import pytest

import eplb
from eplb.errors import InputError, UnknownNameError
from eplb.strategies.baselines.deepseek import deepseek_maps
from tests.oracles import published_rebalance

# The example of the published README: 12 experts in 4 groups, 16 slots, 2 nodes of 4 GPUs.
README_WEIGHT = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
README_PHY2LOG = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]
README_LOGCNT = [[1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1], [1, 2, 1, 1, 1, 2, 2, 1, 2, 1, 1, 1]]


def assert_maps_agree(phy2log, log2phy, logcnt):
    """Every expert's entries are exactly its slots, as many as counted, then -1; X is the largest count."""
    phy2log, log2phy, logcnt = (np.asarray(part) for part in (phy2log, log2phy, logcnt))
    assert log2phy.shape == (*logcnt.shape, logcnt.max())
    for layer, row in enumerate(phy2log.tolist()):
        for expert in range(logcnt.shape[1]):
            count = logcnt[layer, expert]
            slots = [slot for slot in range(len(row)) if row[slot] == expert]
            assert sorted(log2phy[layer, expert, :count].tolist()) == slots
            assert (log2phy[layer, expert, count:] == -1).all()


def assert_all_equal(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        assert np.array_equal(mine, theirs)


def rank_loads(weight, phy2log, logcnt, num_ranks):
    units = np.take_along_axis(np.asarray(weight) / logcnt, phy2log, axis=1)
    return units.reshape(len(phy2log), num_ranks, -1).sum(axis=2)


def random_case(rng):
    """Shapes for both policies, weights without ties."""
    num_nodes, ranks_per_node = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    groups = int(rng.integers(1, 4)) * num_nodes if rng.random() < 0.6 else int(rng.integers(1, 6))
    num_experts = groups * int(rng.integers(1, 9))
    num_experts *= num_nodes if num_experts % num_nodes else 1
    num_ranks = num_nodes * ranks_per_node
    slots = -(-num_experts // num_ranks) + int(rng.integers(0, 4))
    weight = rng.permutation(5000)[: 3 * num_experts].reshape(3, num_experts) + rng.random()
    return weight, num_ranks * slots, groups, num_nodes, num_ranks


def test_the_published_example():
    phy2log, log2phy, logcnt = eplb.rebalance_experts(np.array(README_WEIGHT), 16, 4, 2, 8)
    assert phy2log.tolist() == README_PHY2LOG
    assert logcnt.tolist() == README_LOGCNT
    assert_maps_agree(phy2log, log2phy, logcnt)
    assert {part.dtype for part in (phy2log, log2phy, logcnt)} == {np.dtype(np.int64)}


def test_the_oracle_reproduces_the_published_example():
    phy2log, _, logcnt = published_rebalance(README_WEIGHT, 16, 4, 2, 8)
    assert phy2log.tolist() == README_PHY2LOG
    assert logcnt.tolist() == README_LOGCNT


@pytest.mark.parametrize("seed", range(200))
def test_random_cases_without_ties_are_equal_slot_by_slot(seed):
    case = random_case(np.random.default_rng(seed))
    found = eplb.rebalance_experts(*case)
    assert_all_equal(found, published_rebalance(*case))
    assert_maps_agree(*found)


def test_the_random_cases_contain_both_policies():
    cases = [random_case(np.random.default_rng(seed)) for seed in range(200)]
    hierarchical = [case for case in cases if case[2] % case[3] == 0 and case[3] > 1]
    global_on_nodes = [case for case in cases if case[2] % case[3]]
    assert len(hierarchical) >= 50
    assert len(global_on_nodes) >= 20


@pytest.mark.parametrize("seed", range(50))
def test_with_ties_counts_and_rank_loads_are_equal(seed):
    rng = np.random.default_rng(seed)
    weight, *shape = random_case(rng)
    weight = rng.integers(0, 3, weight.shape).astype(np.float64)
    phy2log, log2phy, logcnt = eplb.rebalance_experts(weight, *shape)
    expected, _, expected_counts = published_rebalance(weight, *shape)
    assert logcnt.tolist() == expected_counts.tolist()
    num_ranks = shape[-1]
    assert np.array_equal(
        rank_loads(weight, phy2log, logcnt, num_ranks), rank_loads(weight, expected, expected_counts, num_ranks)
    )
    assert_maps_agree(phy2log, log2phy, logcnt)


def test_ties_go_to_the_lowest_id():
    # Equal weights on 2 ranks of 3: both copies go to expert 0; then the 1s (experts 1, 2, 3) before the thirds of 0.
    phy2log, log2phy, logcnt = eplb.rebalance_experts(np.ones((1, 4)), 5, 1, 1, 1)
    assert logcnt.tolist() == [[2, 1, 1, 1]]
    # One rank of 5: heaviest first, ties by id; copies of 0 (1/2 each) last.
    assert phy2log.tolist() == [[1, 2, 3, 0, 0]]
    assert log2phy.tolist() == [[[3, 4], [0, -1], [1, -1], [2, -1]]]


def test_a_layer_without_load_gives_every_redundant_slot_to_expert_zero_as_published():
    _, _, logcnt = eplb.rebalance_experts(np.zeros((1, 4)), 8, 1, 1, 4)
    assert logcnt.tolist() == [[5, 1, 1, 1]]


def test_groups_that_do_not_divide_by_nodes_mean_the_global_policy():
    weight = np.random.default_rng(0).random((2, 12))
    hierarchical = eplb.rebalance_experts(weight, 16, 4, 2, 8)
    as_global = eplb.rebalance_experts(weight, 16, 3, 2, 8)
    assert_all_equal(as_global, eplb.rebalance_experts(weight, 16, 1, 1, 8))
    assert not np.array_equal(as_global[0], hierarchical[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "int32"])
def test_tensors_in_tensors_out(dtype):
    torch = pytest.importorskip("torch")
    weight = torch.tensor(README_WEIGHT).to(getattr(torch, dtype))
    found = eplb.rebalance_experts(weight, 16, 4, 2, 8)
    assert all(isinstance(part, torch.Tensor) and part.dtype == torch.int64 for part in found)
    assert found[0].tolist() == README_PHY2LOG
    assert found[2].tolist() == README_LOGCNT
    assert_maps_agree(*found)


def test_tensors_out_of_greedy_too():
    torch = pytest.importorskip("torch")
    weight = torch.tensor(README_WEIGHT)
    found = eplb.rebalance_experts(weight, 16, 4, 2, 8, strategy="greedy")
    assert all(isinstance(part, torch.Tensor) and part.dtype == torch.int64 for part in found)
    assert_maps_agree(*found)


def test_greedy_with_the_same_call_keeps_groups_on_nodes_and_is_not_worse():
    phy2log, log2phy, logcnt = eplb.rebalance_experts(np.array(README_WEIGHT), 16, 4, 2, 8, strategy="greedy")
    assert_maps_agree(phy2log, log2phy, logcnt)
    ours = rank_loads(README_WEIGHT, phy2log, logcnt, 8).max(axis=1)
    theirs = rank_loads(README_WEIGHT, np.array(README_PHY2LOG), np.array(README_LOGCNT), 8).max(axis=1)
    assert (ours <= theirs + 1e-9).all()
    for row in phy2log:
        groups_by_node = [set((row[node * 8 : node * 8 + 8] // 3).tolist()) for node in range(2)]
        assert not groups_by_node[0] & groups_by_node[1]


def test_greedy_is_free_if_the_published_policy_is_global():
    weight = np.array(README_WEIGHT)
    found = eplb.rebalance_experts(weight, 16, 3, 2, 8, strategy="greedy")
    free = eplb.plan(eplb.ExpertLoad(weight), eplb.Topology(2, 4, 2), "greedy").placement.maps()
    assert_all_equal(found, free)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((16, 5, 1, 8), "12 experts: expected a multiple of num_groups = 5"),
        ((16, 3, 3, 8), "num_gpus = 8: expected a multiple of num_nodes = 3"),
        ((16, 4, 3, 8), "num_gpus = 8: expected a multiple of num_nodes = 3"),
        ((15, 4, 2, 8), "num_replicas = 15: expected a multiple of num_gpus = 8"),
        ((8, 4, 2, 8), "num_replicas = 8: expected at least 12 experts"),
        ((16, 0, 2, 8), "num_groups = 0: expected >= 1"),
        ((16, 4, 0, 8), "num_nodes = 0: expected >= 1"),
        ((16, 4, 2, 0), "num_gpus = 0: expected >= 1"),
    ],
)
def test_what_the_published_function_asserts_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        eplb.rebalance_experts(np.array(README_WEIGHT), *arguments)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0, 2.0], r"weight has shape \(2,\): expected \[layers, experts\]"),
        (np.zeros((0, 4)), r"weight has shape \(0, 4\): expected \[layers, experts\]"),
        ([[1.0, np.nan]], "weight: expected finite values >= 0"),
        ([[1.0, np.inf]], "weight: expected finite values >= 0"),
        ([[1.0, -1.0]], "weight: expected finite values >= 0"),
        ([[1.0], [1.0, 2.0]], "weight is not a rectangular array of numbers"),
    ],
)
def test_a_weight_that_is_not_a_load_is_refused(weight, message):
    with pytest.raises(InputError, match=message):
        eplb.rebalance_experts(weight, 2, 1, 1, 1)


def test_an_unknown_strategy_is_refused_with_the_list():
    with pytest.raises(
        UnknownNameError, match="unknown strategy 'best': expected one of auto, biased, deepseek, greedy"
    ):
        eplb.rebalance_experts(np.ones((1, 4)), 4, 1, 1, 2, strategy="best")


def test_the_callers_weight_is_unchanged():
    weight = np.array(README_WEIGHT, dtype=np.float32)
    eplb.rebalance_experts(weight, 16, 4, 2, 8)
    assert weight.tolist() == README_WEIGHT


def test_the_policy_may_duplicate_an_expert_on_a_rank_and_the_placement_shows_it():
    # Global policy: expert 0 of 3 gets 4 of 6 slots on 2 ranks: at least two copies on a rank.
    phy2log, _, logcnt = deepseek_maps(np.array([[90.0, 1, 1]]), 6, num_groups=1, num_nodes=1, num_ranks=2)
    assert logcnt.tolist() == [[4, 1, 1]]
    placement = eplb.Placement(phy2log, 3, eplb.Topology(1, 2, 3))
    assert placement.duplicate_slots.sum() == 2
