"""Drift and sampling noise are told apart, and noise is believed less."""

import numpy as np
import pytest

from eplb.core.migration import Migration
from eplb.core.placement import Placement
from eplb.core.problem import Problem
from eplb.core.topology import Topology
from eplb.strategies.incremental.incremental_scenario import IncrementalScenario
from eplb.strategies.incremental.window_noise import shrunk, signal_share
from eplb_traces import ExpertLoad

EXPERTS, TOKENS, STEPS = 48, 3000, 64
MACHINE = Topology(2, 4, 7)
LIVE = Placement([np.arange(56) % EXPERTS] * 2, EXPERTS, MACHINE)


def stationary(seed=0):
    """[W, 2, E] draws around the same rates."""
    rng = np.random.default_rng(seed)
    rates = rng.dirichlet(np.ones(EXPERTS), 2)
    return np.stack([[rng.multinomial(TOKENS, rate) for rate in rates] for _ in range(STEPS)]).astype(float)


def drifting(seed=0):
    """[W, 2, E] draws around rates that go from one vector to another."""
    rng = np.random.default_rng(seed)
    first, last = rng.dirichlet(np.ones(EXPERTS), (2, 2))
    part = np.linspace(0, 1, STEPS)
    return np.stack([[rng.multinomial(TOKENS, (1 - p) * a + p * b) for a, b in zip(first, last, strict=True)]
                     for p in part]).astype(float)  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_draws_around_fixed_rates_are_noise_and_drift_is_certain(seed):
    assert signal_share(ExpertLoad(stationary(seed))).max() < 0.1
    assert signal_share(ExpertLoad(drifting(seed))).tolist() == [1.0, 1.0]


def test_the_order_of_steps_is_what_shows_drift():
    shuffled = np.random.default_rng(1).permutation(drifting())
    assert signal_share(ExpertLoad(shuffled)).max() < 0.5


def test_layers_are_judged_one_by_one():
    mixed = np.stack([stationary()[:, 0], drifting()[:, 1]], axis=1)
    noise, drift = signal_share(ExpertLoad(mixed))
    assert noise < 0.1
    assert drift == 1.0


def test_signal_share_is_the_formula_worked_by_hand():
    # Shares of expert 0: 0.4, 0.5, 0.6, mean 0.5; both experts alike, so every square counts twice over 0.5.
    load = ExpertLoad([[[40.0, 60.0]], [[50.0, 50.0]], [[60.0, 40.0]]])
    total = 2 * (0.01 + 0.0 + 0.01) / 3 / (2 / 3) / 0.5  # weighted variance over 1 - sum of squared weights
    noise = 2 * 0.01 / 2 / 0.5
    assert 1 - noise / total == pytest.approx(0.5)  # above 0.3: certain
    assert signal_share(load).tolist() == [1.0]
    zigzag = ExpertLoad([[[40.0, 60.0]], [[60.0, 40.0]]] * 3)  # neighbours differ more than the rest: noise
    assert signal_share(zigzag).tolist() == [0.0]


@pytest.mark.parametrize("tokens", [stationary()[:1], np.ones((9, 2, EXPERTS))])
def test_where_nothing_speaks_against_them_steps_are_taken_as_they_are(tokens):
    load = ExpertLoad(tokens)
    assert signal_share(load).tolist() == [1.0, 1.0]


def test_shrunk_steps_keep_their_mean_and_lose_a_third_of_their_noise():
    tokens = stationary()
    tokens[5, 1] = 0  # an idle layer stays idle
    load = ExpertLoad(tokens)
    share = tokens[:, 0] / TOKENS
    calm = shrunk(load, np.array([0.0, 1.0])).tokens
    assert calm[:, 0].mean(axis=0) == pytest.approx(share.mean(axis=0))
    assert calm[:, 0] - share.mean(axis=0) == pytest.approx(2 / 3 * (share - share.mean(axis=0)), abs=1e-12)
    assert calm[6, 1] == pytest.approx(tokens[6, 1] / TOKENS)
    assert not calm[5, 1].any()


def moved(tokens, **words):
    made = IncrementalScenario(previous=LIVE, **words)(Problem(ExpertLoad(tokens), MACHINE))
    return Migration.between(LIVE, made.placement).moved_copies


def test_a_copy_costs_more_where_steps_are_noise_and_no_more_where_they_drift():
    assert moved(stationary(), noise_price=8.0) < moved(stationary(), noise_price=1.0)
    assert moved(drifting(), noise_price=8.0) == moved(drifting(), noise_price=1.0)
