"""Pairs without affinity: against proportional fitting, and where one expert is in half of all pairs or in all."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given

from eplb_traces import ModelShape, RoutingTrace, TokenBatch
from eplb_traces.coactivation.layer_coactivation import coactivation
from eplb_traces.coactivation.pair_independence import independent_pairs
from tests.traces.coactivation.cases import tables, trace_of


def _fitted_by_iteration(partners, rounds=20_000):
    """x with x_i * sum of the other x = partners_i, by proportional fitting."""
    x = np.sqrt(partners.astype(float))
    for _ in range(rounds):
        x = np.sqrt(x * partners / np.maximum(x.sum() - x, 1e-300))
    expected = np.outer(x, x)
    np.fill_diagonal(expected, 0)
    return expected


@given(tables())
def test_expected_pairs_keep_every_experts_pairs_and_form_a_product(table):
    expected = table.expected_pairs
    partners = table.pairs.sum(axis=1) - table.expert_tokens
    np.testing.assert_allclose(expected.sum(axis=1), partners, rtol=1e-9, atol=1e-9)
    assert (expected >= 0).all()
    np.testing.assert_array_equal(expected, expected.T)
    assert not expected.diagonal().any()
    for a, b, c, d in combinations(range(min(7, table.num_experts)), 4):  # a product off the diagonal
        assert expected[a, b] * expected[c, d] == pytest.approx(expected[a, c] * expected[b, d], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_expected_pairs_are_those_of_proportional_fitting(seed):
    rng = np.random.default_rng(seed)
    shape = ModelShape(1, 12, 3)
    keys = rng.exponential(size=(400, 1, 12)) * np.exp(rng.normal(0, 2, 12))  # very uneven: often one expert in most
    ids = np.argsort(keys, axis=2)[:, :, :3]
    table = coactivation(RoutingTrace(shape, [TokenBatch(shape, ids, np.zeros(400, int), np.zeros(400, int))]), 0)
    partners = table.pairs.sum(axis=1) - table.expert_tokens
    np.testing.assert_allclose(table.expected_pairs, _fitted_by_iteration(partners), rtol=1e-3, atol=1e-2)


def test_an_expert_of_every_token_leaves_no_choice():
    # Expert 0 is in every top-2 token: its partners' pairs are all with it, whatever the affinity.
    table = coactivation(trace_of([[0, 1]] * 5 + [[0, 2]] * 3 + [[0, 3]], 4), 0)
    np.testing.assert_allclose(table.expected_pairs, table.pairs - np.diag(table.expert_tokens), atol=1e-9)
    assert table.share_inside([0, 0, 1, 1]) == pytest.approx((5 / 9, 5 / 9))


@pytest.mark.parametrize("num_others", range(1, 40))
def test_a_hub_of_all_pairs_keeps_them_whatever_the_rounding(num_others):
    others = np.random.default_rng(num_others).integers(1, 1000, num_others)
    expected = independent_pairs(np.array([others.sum(), *others]))
    np.testing.assert_allclose(expected[0, 1:], others, rtol=1e-6)
    np.testing.assert_allclose(expected[1:, 1:], 0, atol=1e-6)


def test_experts_that_met_nobody_are_expected_to_meet_nobody():
    assert not independent_pairs(np.zeros(3, dtype=np.int64)).any()
    expected = independent_pairs(np.array([4, 0, 4]))
    np.testing.assert_allclose(expected, [[0, 0, 4], [0, 0, 0], [4, 0, 0]], atol=1e-9)
