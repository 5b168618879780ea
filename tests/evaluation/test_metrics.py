"""The judge: hand-worked numbers for every metric, and the same from plain loops on generated placements."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb.bounds.lower_bounds import lower_bounds
from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.core.topology import Topology
from eplb.errors import InputError, UnknownNameError
from eplb.evaluation.metrics import busiest_rank_time, evaluate, off_node_replicas, rank_time
from eplb_traces import ExpertLoad, ModelShape, RoutingTrace, TokenBatch
from tests.generators import placements

PLACEMENT = Placement([[0, 1, 0, 2], [1, 2, 0, 1]], 3, Topology(1, 2, 2))
# Window 0 counts once, window 1 three times; layer 1 is idle in window 1.
LOAD = ExpertLoad([[[6, 2, 4], [8, 0, 0]], [[2, 9, 1], [0, 0, 0]]], weights=[1, 3])

# Layer 0 has expert 0 on both ranks: window 0: 6/2 + 2 = 5 and 6/2 + 4 = 7; window 1: 2/2 + 9 = 10 and 2/2 + 1 = 2.
# Layer 1 has expert 0 on rank 1: window 0: 0 and 8; window 1: nothing.
RANK_LOAD = [[[5, 7], [0, 8]], [[10, 2], [0, 0]]]
# Means: 6 and 4; 6 and 0. Largest over mean: 7/6 and 2; 10/6 and, idle, none.
RATIO = [[7 / 6, 2], [5 / 3, np.nan]]


def test_rank_loads_and_ratios_of_every_window():
    evaluation = evaluate(PLACEMENT, LOAD)
    assert evaluation.rank_load.tolist() == RANK_LOAD
    assert evaluation.rank_load.sum(axis=2).tolist() == LOAD.tokens.sum(axis=2).tolist()
    assert evaluation.max_over_mean_by_window == pytest.approx(np.array(RATIO), nan_ok=True)
    # By weight: (7/6 + 3 * 5/3) / 4; layer 1 has one window.
    assert evaluation.max_over_mean == pytest.approx([(7 / 6 + 5) / 4, 2])
    # Summed: layer 0: 5 + 3 * 10 = 35 and 7 + 3 * 2 = 13, mean 24; layer 1: 0 and 8, mean 4.
    assert evaluation.max_over_mean_of_total == pytest.approx([35 / 24, 2])


def test_every_metric_under_its_own_name():
    summary = evaluate(PLACEMENT, LOAD).summary()
    # vLLM: sum over layers of means over sum of maxima: (6 + 4) / (7 + 8) = 2/3 and (6 + 0) / (10 + 0) = 3/5.
    assert summary["balancedness_vllm"] == pytest.approx((2 / 3 + 3 * 3 / 5) / 4)
    # SGLang: mean over layers of mean / max: (6/7 + 4/8) / 2 and (6/10 + 1) / 2.
    assert summary["balancedness_sglang"] == pytest.approx(((6 / 7 + 1 / 2) / 2 + 3 * 0.8) / 4)
    # TensorRT-LLM and Ascend: mean over the layers with load of max / mean: (7/6 + 2) / 2 and 5/3.
    ratio = ((7 / 6 + 2) / 2 + 3 * 5 / 3) / 4
    assert summary["imbalance_ratio_trtllm"] == pytest.approx(ratio - 1)
    assert summary["par_ascend"] == pytest.approx(ratio)
    assert summary["max_over_mean_mean"] == pytest.approx(((7 / 6 + 5) / 4 + 2) / 2)
    assert summary["max_over_mean_worst"] == pytest.approx(2)
    # The three ratios are 7/6, 5/3, 2; the 95 % place is 0.95 * 2 = 1.9, 0.9 of the way from 5/3 to 2.
    assert summary["max_over_mean_p95"] == pytest.approx(5 / 3 + 0.9 / 3)
    assert summary["max_over_mean_mean_of_total"] == pytest.approx((35 / 24 + 2) / 2)
    assert summary["max_over_mean_worst_of_total"] == pytest.approx(2)
    # Summed load of layer 1: 8, 0, 0: a copy of the 8 on each rank reaches the mean 4, and so does every good bound.
    bound = lower_bounds(LOAD.total, PLACEMENT.topology).value
    assert bound[1] == pytest.approx(4)
    assert summary["gap_mean"] == pytest.approx(((35 / bound[0] - 1) + (8 / 4 - 1)) / 2)
    assert summary["gap_worst"] == pytest.approx(1)
    assert summary["duplicate_slots"] == 0
    sizes = ("num_windows", "num_empty_windows", "num_layers", "num_empty_layers", "num_ranks", "num_slots")
    assert [summary[name] for name in sizes] == [2, 0, 2, 0, 2, 4]


def test_every_ratio_is_the_same_in_another_unit_of_load():
    whole, parts = (evaluate(PLACEMENT, ExpertLoad(LOAD.tokens / unit, LOAD.weights)) for unit in (1, 2**20))
    assert parts.summary() == pytest.approx(whole.summary())
    assert parts.gap == pytest.approx(whole.gap)


@pytest.mark.parametrize(
    ("row", "busiest"),
    [
        ([0, -1, -1, 0, 1, -1], 18.5),  # three slots are empty: 29/2 + 4
        ([0, -1, -1, 0, 1, 1], 18.5),  # and one expert twice on a rank
    ],
)
def test_bounds_for_full_slots_are_not_used_where_slots_are_empty(row, busiest):
    """With every slot full of distinct experts no placement of these loads is below 31."""
    topology, load = Topology(1, 2, 3), ExpertLoad([[29.0, 4.0]])
    full = lower_bounds(load.total, topology, full_and_distinct=True, reached=np.array([busiest])).value
    evaluation = evaluate(Placement([row], 2, topology), load)
    assert evaluation.total_rank_time.max() == pytest.approx(busiest)
    assert full[0] > busiest >= evaluation.bound.value[0]
    assert evaluation.gap[0] >= 0


def test_what_has_no_load_is_left_out_of_every_mean_and_counted():
    tokens = np.zeros((11, 2, 3))
    tokens[3, 0] = [6, 2, 4]  # ranks 5 and 7, ratio 7/6; the other ten windows, and layer 1, have no token
    evaluation = evaluate(PLACEMENT, ExpertLoad(tokens))
    summary = evaluation.summary()
    for name in ("max_over_mean_mean", "max_over_mean_worst", "max_over_mean_p95", "max_over_mean_mean_of_total"):
        assert summary[name] == pytest.approx(7 / 6), name
    assert (summary["num_empty_windows"], summary["num_empty_layers"]) == (10, 1)
    assert summary["gap_mean"] == summary["gap_worst"] == pytest.approx(7 / 6 - 1)
    assert np.isnan(evaluation.max_over_mean[1])
    assert np.isnan(evaluation.gap[1])
    # vLLM logs 0 for a step without tokens, SGLang (0 + 1e-5) / (0 + 1e-5) = 1; TensorRT-LLM's nan is left out.
    assert summary["balancedness_vllm"] == pytest.approx(6 / 7 / 11)
    assert summary["balancedness_sglang"] == pytest.approx((6 / 7 + 21) / 22)
    assert summary["imbalance_ratio_trtllm"] == pytest.approx(1 / 6)


def test_a_load_without_a_token_has_no_balance():
    nothing = evaluate(PLACEMENT, ExpertLoad(np.zeros((2, 3))))
    assert np.isnan(nothing.summary()["max_over_mean_mean"])
    assert np.isnan(nothing.gap).all()


def test_weighted_dispatch_follows_the_weights_of_the_placement():
    placement = Placement([[0, 1, 0, 2]], 3, Topology(1, 2, 2), [[0.75, 1, 0.25, 1]])
    evaluation = evaluate(placement, ExpertLoad([[8.0, 2, 2]]), "weighted")
    # 0.75 * 8 + 2 = 8 and 0.25 * 8 + 2 = 4; mean 6.
    assert evaluation.rank_load.tolist() == [[[8, 4]]]
    assert evaluation.max_over_mean == pytest.approx([8 / 6])
    assert evaluation.gap == pytest.approx([8 / 6 - 1])


def test_weighted_dispatch_is_held_only_against_bounds_that_hold_for_it():
    # Ranks {0, 1}, {0, 2}, {3, 4}: 5 + 1, 5 + 1 and 2 tokens. Mean 14 / 3, largest copy 10 / 2 = 5,
    # full slot 5 + 1 / min(3, 6 - 5 + 1) = 5.5. Weighted dispatch may send a copy nothing: no full slot there.
    placement = Placement([[0, 1, 0, 2, 3, 4]], 5, Topology(1, 3, 2), [[0.5, 1, 0.5, 1, 1, 1]])
    load = ExpertLoad([[10.0, 1, 1, 1, 1]])
    assert evaluate(placement, load, "weighted").gap == pytest.approx([6 / 5 - 1])
    assert 0 <= evaluate(placement, load, "even").gap[0] <= 6 / 5.5 - 1


def test_ranks_of_different_speed_are_compared_by_time():
    # Speeds 1 and 3 have mean 2: relative 0.5 and 1.5. Loads 4, 1, 1, 2: tokens 5 and 3, times 10 and 2, mean time 6.
    placement = Placement([[0, 1, 2, 3]], 4, Topology(1, 2, 2, rank_speed=[1, 3]))
    evaluation = evaluate(placement, ExpertLoad([[4.0, 1, 1, 2]]))
    assert evaluation.rank_load.tolist() == [[[5, 3]]]
    assert evaluation.max_over_mean == pytest.approx([10 / 6])
    # Bounds: mean 8 / 2 = 4; largest copy 4 / 1.5; full slot 5 / 1.5.
    assert evaluation.gap == pytest.approx([10 / 4 - 1])


def test_doubled_experts_and_empty_slots_are_counted_and_never_judged_below_their_bound():
    # Expert 0 twice on rank 0 and slot 3 empty: 6 and 2 tokens; mean 4, largest copy 6 / 2 = 3.
    placement = Placement([[0, 0, 1, -1]], 2, Topology(1, 2, 2))
    evaluation = evaluate(placement, ExpertLoad([[6.0, 2]]))
    assert evaluation.rank_load.tolist() == [[[6, 2]]]
    assert evaluation.summary()["duplicate_slots"] == 1
    both = Placement([[0, 0, 1, 1], [1, 1, 0, 0]], 2, Topology(1, 2, 2))  # two in each of two layers
    assert evaluate(both, ExpertLoad([[6.0, 2]] * 2)).summary()["duplicate_slots"] == 4
    assert evaluation.gap == pytest.approx([6 / 4 - 1])


@pytest.mark.parametrize("shape", [(1, 3), (2, 4)])
def test_a_load_of_another_model_is_refused(shape):
    expected = f"load of {shape[0]} layers x {shape[1]} experts: the placement is for 2 layers x 3 experts"
    with pytest.raises(InputError, match=expected):
        evaluate(PLACEMENT, ExpertLoad(np.ones(shape)))


def test_an_unknown_dispatch_rule_is_refused_with_the_list():
    with pytest.raises(UnknownNameError, match=r"dispatch rule 'random': expected one of ascend, even, .*weighted"):
        evaluate(PLACEMENT, LOAD, "random")


def test_a_pickled_evaluation_says_the_same_and_is_read_only():
    evaluation = evaluate(PLACEMENT, LOAD)
    copy = pickle.loads(pickle.dumps(evaluation))
    assert copy.summary() == evaluation.summary()
    for owner in (evaluation, copy):
        with pytest.raises(ValueError, match="read-only"):
            owner.rank_load[0, 0, 0] = 1


@given(data=st.data(), placement=placements(holes=True, weights=True), num_windows=st.integers(1, 3))
def test_rank_loads_and_ratios_are_what_plain_loops_find(data, placement, num_windows):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    tokens = rng.integers(0, 50, (num_windows, placement.num_layers, placement.num_experts)).astype(np.float64)
    weights = data.draw(st.none() | st.just(np.arange(1.0, num_windows + 1)))
    weighted = placement.replica_weights is not None
    evaluation = evaluate(placement, ExpertLoad(tokens, weights), "weighted" if weighted else "even")
    rank_of_slot, speed = placement.topology.rank_of_slot, placement.topology.relative_speed
    for window in range(num_windows):
        for layer in range(placement.num_layers):
            expected = [0.0] * placement.topology.num_ranks
            for slot, expert in enumerate(placement.physical_to_logical_map[layer].tolist()):
                if expert < 0:
                    continue
                count = placement.logical_replica_count[layer, expert]
                share = placement.replica_weights[layer, slot] if weighted else 1 / count
                expected[rank_of_slot[slot]] += tokens[window, layer, expert] * share
            assert evaluation.rank_load[window, layer] == pytest.approx(expected)
            assert sum(expected) == pytest.approx(tokens[window, layer].sum())
            times = [load / v for load, v in zip(expected, speed, strict=True)]
            ratio = max(times) * len(times) / sum(times) if sum(times) else 1.0
            assert evaluation.max_over_mean_by_window[window, layer] == pytest.approx(ratio)
    by_layer = np.average(evaluation.max_over_mean_by_window, axis=0, weights=weights)
    assert evaluation.max_over_mean == pytest.approx(by_layer)
    assert (evaluation.gap >= -1e-9).all()


def test_with_a_trace_the_ranks_and_nodes_of_a_token_are_judged_too():
    # Layer 0: rank 0 holds 0 and 1, rank 1 holds 0 and 2. A token of 1 and 2 visits both; one of 0 and 1 visits rank 0,
    # and rank 1 in half of the cases: 1.5. Layer 1: rank 0 holds 1 and 2, rank 1 holds 0 and 1. A token of 1 and 2
    # visits rank 0, and rank 1 half of the time; one of 0 and 1 visits rank 1, and rank 0 half of the time.
    shape = ModelShape(2, 3, 2)
    batch = TokenBatch(shape, np.array([[[1, 2], [1, 2]], [[0, 1], [0, 1]]]), np.zeros(2, int), np.arange(2))
    evaluation = evaluate(PLACEMENT, LOAD, trace=RoutingTrace(shape, [batch]))
    assert evaluation.spread.ranks_per_token == pytest.approx([(2 + 1.5) / 2, (1.5 + 1.5) / 2])
    summary = evaluation.summary()
    assert (summary["ranks_per_token"], summary["nodes_per_token"]) == pytest.approx((1.625, 1.0))
    assert "ranks_per_token" not in evaluate(PLACEMENT, LOAD).summary()
    assert pickle.loads(pickle.dumps(evaluation)).summary() == summary


@given(placements(holes=True), st.integers(0, 2**32 - 1))
def test_rank_time_is_the_sum_over_the_slots_of_a_rank(placement, seed):
    rng, topology = np.random.default_rng(seed), placement.topology
    load = rng.integers(0, 50, (placement.num_layers, placement.num_experts)).astype(np.float64)
    whole = rank_time(load, placement.physical_to_logical_map, topology)
    np.testing.assert_allclose(evaluate(placement, ExpertLoad(load)).rank_time[0], whole, rtol=1e-12, atol=1e-9)
    phy2log = placement.physical_to_logical_map.copy()
    phy2log[:, rng.integers(placement.num_slots)] = EMPTY_SLOT  # an expert may be left without a slot
    times = rank_time(load, phy2log, topology)
    for layer, row in enumerate(phy2log.tolist()):
        expected = np.zeros(topology.num_ranks)
        for rank, expert in zip(topology.rank_of_slot, row, strict=True):
            if expert != EMPTY_SLOT:
                expected[rank] += load[layer, expert] / row.count(expert)
        np.testing.assert_allclose(times[layer], expected / topology.relative_speed, rtol=1e-12)
    np.testing.assert_array_equal(busiest_rank_time(load, phy2log, topology), times.max(axis=1))


def test_replicas_off_the_node_of_their_group():
    topology = Topology(2, 1, 4)
    placement = Placement([[0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 0, 3, 4, 5, 3]], 6, topology)
    # Groups of 3: layer 0 has 0 and 1 twice, three of five on node 0; of 3, 4, 5 two of three on node 1.
    assert off_node_replicas(placement, 2).tolist() == [3, 0]
    # One group: each node holds 4 of 8 replicas.
    assert off_node_replicas(placement, 1).tolist() == [4, 4]
    # Groups of one expert: 0 and 1 are on both nodes in layer 0.
    assert off_node_replicas(placement, 6).tolist() == [2, 0]
    for wrong in (0, -1, 4):
        with pytest.raises(InputError, match=f"groups = {wrong}: expected a divisor of 6 experts"):
            off_node_replicas(placement, wrong)


def test_a_frame_has_a_row_a_layer_with_the_busiest_rank():
    pytest.importorskip("pandas")
    frame = evaluate(PLACEMENT, LOAD).to_frame()
    assert frame["layer"].tolist() == [0, 1]
    assert frame["busiest_rank"].tolist() == [0, 1]  # summed: 35 and 13; 0 and 8
