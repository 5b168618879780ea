"""Pairs counted by the plainest loops, what is read off them; batches, passes and threads change nothing."""

import os
import pickle
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eplb_traces import InputError, ModelShape, RoutingTrace, read_trace
from eplb_traces.coactivation import pair_counts, pair_counts_kernel
from eplb_traces.coactivation.layer_coactivation import (
    CoActivation,
    PairShare,
    coactivation,
    coactivations,
    generalising_pairs,
    split,
    transitions,
)
from tests.traces.coactivation.cases import tables, trace_of
from tests.traces.examples import RECORDINGS, joined, needs_recordings, random_batch, random_ids, traces


def oracle_pairs(trace, layer):
    """[E, E] by a loop over tokens and choices."""
    pairs = np.zeros((trace.shape.num_experts,) * 2, dtype=np.int64)
    for chosen in joined(trace)["expert_ids"][:, layer]:
        for expert in chosen:
            for other in chosen:
                pairs[expert, other] += 1
    return pairs


@given(traces())
def test_pairs_are_counted_as_by_hand(trace):
    found = list(coactivations(trace))
    assert [table.layer for table in found] == list(range(trace.shape.num_layers))
    for table in found:
        np.testing.assert_array_equal(table.pairs, oracle_pairs(trace, table.layer))
        assert table.num_tokens == trace.num_tokens
        np.testing.assert_array_equal(table.expert_tokens, trace.load().total[table.layer])
        # Each token has K (K - 1) / 2 pairs.
        assert table.num_pairs == trace.num_tokens * trace.shape.top_k * (trace.shape.top_k - 1) // 2


@given(traces())
def test_transitions_are_counted_as_by_hand(trace):
    ids = joined(trace)["expert_ids"]
    for layer in range(trace.shape.num_layers - 1):
        expected = np.zeros((trace.shape.num_experts,) * 2, dtype=np.int64)
        for chosen in ids:
            np.add.at(expected, (chosen[layer][:, None], chosen[layer + 1][None, :]), 1)
        np.testing.assert_array_equal(transitions(trace, layer), expected)


@given(traces(), st.integers(0, 20), st.integers(0, 4000))
def test_cuts_of_batches_and_of_layers_change_nothing(trace, cut, max_bytes):
    batches = [part for batch in trace for part in (batch.select(slice(0, cut)), batch.select(slice(cut, None)))]
    recut = RoutingTrace(trace.shape, batches)
    assert list(coactivations(recut, max_bytes=max_bytes)) == list(coactivations(trace))


def test_as_many_layers_a_pass_as_fit_and_at_least_one():
    shape = ModelShape(5, 8, 2)
    batch = random_batch(np.random.default_rng(0), 9, shape)
    walks = []

    class Source:
        def __iter__(self):
            walks.append(1)
            yield batch

    trace = RoutingTrace(shape, Source())
    # 12 * 8^2 = 768 bytes a layer: 5 layers in passes of 1, of 2 (1536 bytes) and of 5.
    for max_bytes, passes in ((0, 5), (1600, 3), (1 << 20, 1)):
        walks.clear()
        assert len(list(coactivations(trace, max_bytes=max_bytes))) == 5
        assert len(walks) == passes


@pytest.mark.parametrize("num_cores", [1, 2, 7])
def test_the_number_of_threads_changes_nothing(monkeypatch, num_cores):
    shape = ModelShape(6, 16, 4)
    trace = RoutingTrace(shape, [random_batch(np.random.default_rng(seed), 40, shape) for seed in range(3)])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_cores)))
    for table in coactivations(trace, [5, 0, 3]):
        np.testing.assert_array_equal(table.pairs, oracle_pairs(trace, table.layer))


def test_more_tokens_than_a_narrow_table_can_count(monkeypatch):
    shape = ModelShape(2, 6, 3)
    trace = RoutingTrace(shape, [random_batch(np.random.default_rng(seed), 7, shape) for seed in range(5)])
    monkeypatch.setattr(pair_counts, "_MOST_TOKENS", 15)  # two batches of seven
    for table in coactivations(trace):
        np.testing.assert_array_equal(table.pairs, oracle_pairs(trace, table.layer))


def test_the_kernel_does_what_its_python_text_says():
    shape = ModelShape(3, 8, 3)
    ids = random_ids(np.random.default_rng(3), pair_counts_kernel.TOKENS_AT_ONCE + 5, shape)
    layers = np.array([1, 0])
    for distance in (0, 1):
        compiled, plain = np.zeros((2, 2, 8, 8), dtype=np.uint32)
        pair_counts_kernel.count_pairs(ids, layers, distance, compiled)
        pair_counts_kernel.count_pairs.py_func(ids, layers, distance, plain)
        np.testing.assert_array_equal(compiled, plain)


@pytest.mark.parametrize("num_tokens", [1, 127, 128, 129, 300])
def test_every_number_of_tokens_and_512_experts(num_tokens):
    shape = ModelShape(2, 512, 10)
    trace = RoutingTrace(shape, [random_batch(np.random.default_rng(num_tokens), num_tokens, shape)])
    np.testing.assert_array_equal(coactivation(trace, 1).pairs, oracle_pairs(trace, 1))


def test_tokens_that_all_choose_the_same():
    table = coactivation(trace_of([[2, 0]] * 500, 4), 0)
    assert table.pairs.tolist() == [[500, 0, 500, 0], [0, 0, 0, 0], [500, 0, 500, 0], [0, 0, 0, 0]]
    assert table.top_pairs(5) == []  # both are in every token: together as often as P(i) P(j) says
    # With the only two experts that are ever chosen nothing else could have happened.
    assert table.adjusted_lift()[0, 2] == pytest.approx(1)
    assert table.share_inside([0, 1, 0, 1]) == pytest.approx((1, 1))
    assert sorted(table.order()) == [0, 1, 2, 3]
    assert table.order()[2:].tolist() == [1, 3]


def test_one_choice_a_token_makes_no_pairs():
    table = coactivation(trace_of([[0], [1], [1]], 3), 0)
    assert table.pairs.tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 0]]
    assert table.num_pairs == 0
    assert table.lift()[0, 1] == 0
    assert np.isnan(table.share_inside([0, 0, 0])).all()
    assert np.isnan(table.share_inside([0, 0, 0]).ratio)
    assert np.isnan(table.adjusted_lift()).all()
    assert sorted(table.order()) == [0, 1, 2]
    assert table.top_pairs(3) == []


def test_a_trace_without_tokens_has_empty_tables():
    shape = ModelShape(2, 4, 2)
    empty = random_batch(np.random.default_rng(0), 0, shape)
    for batches in ([], [empty]):
        table = coactivation(RoutingTrace(shape, batches), 1)
        assert (table.num_tokens, table.pairs.sum()) == (0, 0)
        assert np.isnan(table.lift()).all()
        assert table.order().tolist() == [0, 1, 2, 3]
        assert table.clusters(2).tolist() == [0, 0, 0, 0]


def test_lift_by_hand():
    # Tokens 01, 01, 02, 23: P(0) = 3/4, P(1) = 2/4, P(0, 1) = 2/4: lift (2/4) / (3/4 * 2/4) = 4/3.
    # P(2) = 2/4, P(3) = 1/4: (0, 2): (1/4) / (3/8) = 2/3; (2, 3): (1/4) / (1/8) = 2; the others never met.
    table = coactivation(trace_of([[0, 1], [1, 0], [0, 2], [2, 3]], 5), 0)
    nan = np.nan
    expected = [
        [nan, 4 / 3, 2 / 3, 0, nan],
        [4 / 3, nan, 0, 0, nan],
        [2 / 3, 0, nan, 2, nan],
        [0, 0, 2, nan, nan],
        [nan] * 5,
    ]
    np.testing.assert_allclose(table.lift(), expected)
    # Above expectation: (0, 1): 2 - 3 * 2 / 4 = 1/2; (2, 3): 1 - 2 * 1 / 4 = 1/2: a tie, lowest ids first.
    assert table.top_pairs(9) == [(0, 1, 2, pytest.approx(4 / 3)), (2, 3, 1, pytest.approx(2))]
    assert table.top_pairs(1)[0][:2] == (0, 1)


def _without_affinity(num_experts, top_k):
    """Every set of K experts once."""
    return coactivation(trace_of(list(combinations(range(num_experts), top_k)), num_experts), 0)


@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 2), (6, 3), (8, 2)])
def test_without_affinity_the_adjusted_lift_is_1_and_the_plain_one_is_below(num_experts, top_k):
    table = _without_affinity(num_experts, top_k)
    off_diagonal = ~np.eye(num_experts, dtype=bool)
    np.testing.assert_allclose(table.adjusted_lift()[off_diagonal], 1)
    # P(i, j) = K (K - 1) / (E (E - 1)) over (K / E)^2.
    biased = (top_k - 1) * num_experts / (top_k * (num_experts - 1))
    np.testing.assert_allclose(table.lift()[off_diagonal], biased)
    assert biased < 1


@given(tables(), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_share_inside_is_what_a_walk_over_all_pairs_finds(table, num_groups, seed):
    group = np.random.default_rng(seed).integers(0, num_groups, table.num_experts)
    sums = {"observed": [0, 0], "expected": [0.0, 0.0]}
    for i, j in combinations(range(table.num_experts), 2):
        for name, pairs in (("observed", table.pairs), ("expected", table.expected_pairs)):
            sums[name][0] += pairs[i, j] * (group[i] == group[j])
            sums[name][1] += pairs[i, j]
    found = table.share_inside(group)
    if table.num_pairs == 0:
        assert np.isnan(found).all()
    else:
        assert found == pytest.approx(tuple(inside / whole for inside, whole in sums.values()))
        if found.expected > 0:
            assert found.ratio == found.observed / found.expected


def two_circles(rng, num_tokens, num_experts=12, top_k=3):
    """Tokens that choose either even experts or odd ones."""
    odd = rng.integers(0, 2, num_tokens)
    own = np.argsort(rng.random((num_tokens, num_experts // 2)), axis=1)[:, :top_k]
    return 2 * own + odd[:, None]


def test_seriation_and_clusters_find_circles_of_friends():
    rng = np.random.default_rng(5)
    table = coactivation(trace_of(two_circles(rng, 400), 13), 0)  # expert 12 has no token
    order = table.order()
    assert sorted(order) == list(range(13))
    assert order[12] == 12
    assert len(set(order[:6] % 2)) == len(set(order[6:12] % 2)) == 1
    group = table.clusters(2)
    assert (group[order] == np.sort(group)).all()
    assert group.tolist() == [group[0], group[1]] * 6 + [1]
    assert {group[0], group[1]} == {0, 1}
    assert table.share_inside(group).observed == 1
    # Six of twelve equal experts: a partner among 5 of 11.
    assert table.share_inside(group).expected == pytest.approx(5 / 11, abs=0.02)
    assert table.clusters(1).tolist() == [0] * 13
    assert table.order().tolist() == order.tolist()


@given(tables())
@example(CoActivation(0, np.eye(2, dtype=np.int64), 2))
def test_order_and_clusters_are_total(table):
    assert sorted(table.order()) == list(range(table.num_experts))
    for count in sorted({1, min(2, table.num_experts), table.num_experts}):
        group = table.clusters(count)
        assert (np.diff(group[table.order()]) >= 0).all()
        assert group.shape == (table.num_experts,)
        assert set(group) == set(range(group.max() + 1))
        assert group.max() < count


def test_an_affinity_that_does_not_last_shows_it():
    # Step 0: 0 with 1 and 2 with 3, step 1: 0 with 2 and 1 with 3 except once; pairs 45 always.
    first = [[0, 1], [2, 3], [4, 5]] * 4
    second = [[0, 2], [1, 3], [4, 5]] * 3 + [[0, 1], [2, 3], [4, 5]]
    trace = trace_of(first + second, 6, step=[0] * 12 + [1] * 12)
    found = {(pair.expert, pair.other): pair for pair in generalising_pairs(trace, 0, 3)}
    assert set(found) == {(0, 1), (2, 3), (4, 5)}
    # In each half every expert is in 4 of 12 tokens: 4 shared tokens are (4/12) / (4/12)^2 = 3, one is 3/4.
    assert found[4, 5][2:] == pytest.approx((4, 3, 4, 3))
    assert found[0, 1][2:] == pytest.approx((4, 3, 1, 3 / 4))


def test_tables_compare_and_pickle_by_value_and_are_read_only():
    table = coactivation(trace_of([[0, 1], [1, 2]], 3), 0)
    copy = pickle.loads(pickle.dumps(table))
    assert copy == table
    assert not copy.pairs.flags.writeable
    assert table != CoActivation(1, table.pairs, 2)
    assert table != "a table"
    assert repr(table) == "CoActivation(layer 0, 3 experts, 2 tokens)"


@pytest.mark.parametrize(
    ("pairs", "num_tokens", "message"),
    [
        (np.ones((2, 3), int), 1, r"pairs is int64 of shape \(2, 3\): expected integers \[experts, experts\]"),
        (np.ones((2, 2)), 1, "pairs is float64"),
        ([[2, 1], [0, 2]], 2, r"pairs\[0, 1\] = 1: expected >= 0, equal to pairs\[1, 0\]"),
        ([[2, -1], [-1, 2]], 2, r"pairs\[0, 1\] = -1"),
        ([[2, 2], [2, 1]], 2, r"pairs\[0, 1\] = 2: expected .* at most either expert's tokens"),
        ([[1, 0], [0, 3]], 2, r"pairs\[1, 1\] = 3: expected at most 2 tokens"),
    ],
)
def test_wrong_tables_are_refused(pairs, num_tokens, message):
    with pytest.raises(InputError, match=message):
        CoActivation(0, pairs, num_tokens)


def test_wrong_arguments_are_named():
    trace = trace_of([[0, 1]], 3)
    with pytest.raises(InputError, match="layer = 1: expected 0 <= layer < 1"):
        coactivations(trace, [0, 1])
    with pytest.raises(InputError, match="layer = -1"):
        coactivation(trace, -1)
    with pytest.raises(InputError, match="one layer: expected a layer that another one follows"):
        transitions(trace, 0)
    with pytest.raises(InputError, match="layer = 1: expected 0 <= layer < 1"):
        transitions(RoutingTrace(ModelShape(2, 3, 2), []), 1)
    table = coactivation(trace, 0)
    with pytest.raises(InputError, match="count = 0: expected at least one pair"):
        table.top_pairs(0)
    with pytest.raises(InputError, match="count = 4: expected 1 to 3 clusters"):
        table.clusters(4)
    with pytest.raises(InputError, match=r"group_of_expert is int64 of shape \(2,\): expected 3 integers"):
        table.share_inside([0, 1])


@needs_recordings
def test_the_groups_of_a_grouped_model_show_and_the_eighths_of_an_ungrouped_one_do_not():
    # Top-4-of-8 groups alone raise the share inside a group about 1.6 times; without groups it stays near 1.
    grouped = read_trace(RECORDINGS / "moe-435m" / "tokens.npz", 256)
    plain = read_trace(RECORDINGS / "deepseek-v2-lite" / "tokens.npz", 64)
    shares = [table.share_inside(np.arange(256) // 32) for table in coactivations(grouped)]
    assert all(1.5 < share.ratio < 1.8 for share in shares)
    ratios = [table.share_inside(np.arange(64) // 8).ratio for table in coactivations(plain)]
    assert 0.95 < np.mean(ratios) < 1.05
    assert isinstance(shares[0], PairShare)


@needs_recordings
def test_clusters_of_real_experts_hold_on_held_out_requests():
    earlier, later = (
        coactivation(half, 3) for half in split(read_trace(RECORDINGS / "deepseek-v2-lite" / "tokens.npz", 64))
    )
    found, held_out = (table.share_inside(earlier.clusters(8)) for table in (earlier, later))
    assert found.ratio > 2
    assert held_out.ratio > 0.9 * found.ratio
