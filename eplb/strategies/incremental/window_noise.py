"""Splits the differences between windows of a load into change over time (signal) and sampling noise.

A window of few sequences differs from the next by chance. A descent on many such windows fits chance: it finds
exchanges that help these windows and no others. The signal: windows far apart differ more than neighbours do.
"""

from itertools import pairwise

import numpy as np

from eplb.core.arrays import Floats
from eplb_traces import ExpertLoad

FULL_SIGNAL = 0.3  # from here on windows are taken as they are; tuned on moe-435m and synthetic switching workloads
NOISE_KEPT = 2 / 3  # of deviations from the mean, where all are noise


def signal_share(load: ExpertLoad) -> Floats:
    """[L] from 0, where windows differ by chance alone, to 1, where they plainly change over time.

    The square of the signal's part in the variance between windows, over FULL_SIGNAL. The noise's part is half the mean
    squared difference of neighbours (von Neumann's ratio). Squares count over their mean share, windows by weight.
    A layer with less than two windows, or none that differ, gets 1.

    Parameters
    ----------
    load
        [W, L, E] windows in order of time.
    """
    weight = load.weights / load.weights.sum()
    freedom = 1 - float(np.square(weight).sum())
    if load.num_windows < 2 or freedom <= 0:
        return np.ones(load.num_layers)
    deviation, mean = _deviations(load)
    deviation *= np.divide(1.0, np.sqrt(mean), out=np.zeros_like(mean), where=mean > 0)
    total = np.einsum("w,wl->l", weight, np.square(deviation).sum(axis=2)) / freedom
    both = np.minimum(weight[1:], weight[:-1])
    between = np.array([np.square(b - a).sum(axis=1) for a, b in pairwise(deviation)])
    noise = np.einsum("w,wl->l", both / both.sum(), between) / 2
    signal = np.ones(load.num_layers)
    np.divide(total - noise, total, out=signal, where=total > 0)
    return np.square(np.clip(signal / FULL_SIGNAL, 0.0, 1.0))


def shrunk(load: ExpertLoad, signal: Floats) -> ExpertLoad:
    """The windows, in shares of their layer, shrunk towards their mean: by a third where they differ by chance alone.

    Parameters
    ----------
    load
        [W, L, E] windows.
    signal
        [L] `signal_share`.
    """
    deviation, mean = _deviations(load)
    deviation *= (NOISE_KEPT + (1 - NOISE_KEPT) * signal)[:, None]
    deviation += mean
    deviation *= load.tokens.any(axis=2, keepdims=True)
    return ExpertLoad(np.maximum(deviation, 0.0), load.weights)


def _deviations(load: ExpertLoad) -> tuple[Floats, Floats]:
    """[W, L, E] shares less their mean, zero where a layer is idle; [L, E] the mean of the other windows."""
    total = load.tokens.sum(axis=2, keepdims=True)
    share = np.divide(load.tokens, total, out=np.zeros_like(load.tokens), where=total > 0)
    seen = (total > 0) * load.weights[:, None, None]
    mean = np.einsum("wl,wle->le", seen[:, :, 0], share)
    mean /= np.maximum(seen.sum(axis=0), np.finfo(np.float64).tiny)
    share -= mean
    share *= total > 0
    return share, mean
