"""What remembered steps are still worth: all of it while traffic wanders, little of it after a switch."""

import numpy as np
import pytest

from eplb.online.staleness import discounted
from eplb_traces import ExpertLoad

LAYERS, EXPERTS, TOKENS = 2, 32, 20_000


def draws(rates, seed=0):
    """[W, L, E] a multinomial draw a step; `rates` [W, E]."""
    rng = np.random.default_rng(seed)
    return np.stack([[rng.multinomial(TOKENS, rate) for _ in range(LAYERS)] for rate in rates]).astype(float)


def rate(seed):
    return np.random.default_rng(seed).dirichlet(np.ones(EXPERTS))


def test_steps_before_a_switch_count_little():
    load = ExpertLoad(draws([rate(1)] * 30 + [rate(2)] * 20))
    weights = discounted(load, 10).weights
    assert (weights[:30] < 0.01).all()
    # Two draws around the same rates lie as far apart as usual, give or take chance.
    assert (weights[30:] > 0.5).all()


def test_traffic_that_wanders_keeps_its_past():
    way = np.cumsum(np.random.default_rng(3).normal(0, 0.02, (60, EXPERTS)), axis=0)
    wandering = np.exp(way) / np.exp(way).sum(axis=1, keepdims=True)
    switched = discounted(ExpertLoad(draws([rate(1)] * 40 + [rate(2)] * 20)), 10).weights
    weights = discounted(ExpertLoad(draws(wandering)), 10).weights
    assert (weights[-20:] > 0.5).all()
    assert weights.min() > 50 * switched.min()


def test_weights_only_fall_and_the_newest_segment_keeps_its_own():
    given = np.linspace(0.1, 1, 50)
    load = ExpertLoad(draws([rate(1)] * 25 + [rate(2)] * 25), given)
    new = discounted(load, 10)
    assert (new.weights <= given).all()
    assert (new.weights[-10:] == given[-10:]).all()
    assert np.array_equal(new.tokens, load.tokens)


def test_the_weight_is_the_formula_worked_by_hand():
    # One layer, two experts, segments of one step. Shares of expert 0: 0.5, 0.5, 0.7; mean 17/30 (expert 1: 13/30).
    load = ExpertLoad([[[50.0, 50.0]], [[50.0, 50.0]], [[70.0, 30.0]]])
    scale = 1 / (17 / 30) + 1 / (13 / 30)
    noise = (0.0 + 0.04 * scale) / 2 / 2  # mean of the neighbours' squared differences, halved
    # Newest to its neighbour: 0.04 scale - 2 noise = 0.02 scale; the two oldest: 0. Median: 0.01 scale.
    usual, far = 0.01 * scale + noise, 0.02 * scale + noise
    expected = (usual / far) ** 1.5
    assert discounted(load, 1).weights == pytest.approx([expected, expected, 1.0])


@pytest.mark.parametrize("num_steps", [1, 5, 20])
def test_few_segments_are_not_discounted(num_steps):
    load = ExpertLoad(draws([rate(step) for step in range(num_steps)]))
    assert discounted(load, 10) is load


def test_the_same_step_again_and_again_keeps_its_weight():
    load = ExpertLoad(np.full((30, LAYERS, EXPERTS), 7.0))
    assert (discounted(load, 5).weights == 1).all()
