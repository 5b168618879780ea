"""Shares a budget of fetched replicas out over layers."""

import numpy as np

from eplb.core.arrays import Floats, Ints


def choose_within(fetched: Ints, gain: Floats, budget: int) -> Ints:
    """[L] which of its tries each layer takes, -1 for none.

    Greedy over layers and tries by gain per fetched replica, ties to the lowest, until nothing more fits.

    Parameters
    ----------
    fetched, gain
        [L, K] replicas that a try fetches, and what it gains.
    budget
        Most fetched replicas, over all layers.
    """
    layers = np.arange(fetched.shape[0])
    chosen = np.full(fetched.shape[0], -1)
    have_fetched, have_gain = np.zeros_like(fetched[:, 0]), np.zeros_like(gain[:, 0])
    while True:
        extra, better = fetched - have_fetched[:, None], gain - have_gain[:, None]
        fits = (extra <= budget) & (better > 0)
        rate = np.where(fits, better / np.maximum(extra, 0.5), 0.0)
        layer, one = np.unravel_index(int(np.argmax(rate)), rate.shape)
        if rate[layer, one] <= 0:
            return chosen
        budget -= int(extra[layer, one])
        chosen[layers[layer]] = one
        have_fetched[layer], have_gain[layer] = fetched[layer, one], gain[layer, one]
