"""Keeps the loads of the last steps with their weights, and measures how much the load has changed."""

from collections import deque
from typing import final

import numpy as np

from eplb.core.arrays import Floats
from eplb_traces import ExpertLoad


@final
class LoadWindow:
    """The loads of the last steps.

    Parameters
    ----------
    num_steps
        Steps kept.
    half_life
        Steps after which one counts half.
    """

    def __init__(self, num_steps: int, half_life: float) -> None:
        self._steps: deque[Floats] = deque(maxlen=num_steps)
        self._half_life = half_life

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, tokens: Floats) -> None:
        """Keep one step's tokens [L, E]; steps without any token are not kept."""
        if tokens.any():
            self._steps.append(tokens)

    def load(self) -> ExpertLoad:
        """All kept steps, oldest first, the newest with weight 1."""
        age = np.arange(len(self._steps))[::-1]
        return ExpertLoad(np.stack(self._steps), np.maximum(0.5 ** (age / self._half_life), 1e-12))

    def recent(self, num_steps: int) -> Floats:
        """[W, L, E] the last steps, as many as there are up to `num_steps`."""
        return np.stack([*self._steps][-num_steps:])


def change_against_chance(planned_for: Floats, recent: Floats) -> float:
    """Distance of two series of steps over the distance that chance gives; 1 is chance.

    The squared difference of the mean shares of the two series, over its expectation where all steps are independent
    draws around the same shares: the variance between steps inside the two series, times 1 / W1 + 1 / W2. Both are
    summed over layers and experts, each over its mean share as in a chi-square test, so that rare experts count as
    much as hot ones. Correlated steps give more than 1.

    Parameters
    ----------
    planned_for, recent
        [W1, L, E], [W2, L, E] tokens, not all zero.
    """
    first, second = shares(planned_for), shares(recent)
    if first.shape[0] + second.shape[0] < 3:
        return float("inf")  # no variance to compare with
    mean = np.concatenate([first, second]).mean(axis=0)
    weight = np.divide(1.0, mean, out=np.zeros_like(mean), where=mean > 0)
    between: Floats = first.mean(axis=0) - second.mean(axis=0)
    spread = sum(float((weight * np.square(part - part.mean(axis=0))).sum()) for part in (first, second))
    variance = spread / (first.shape[0] + second.shape[0] - 2)
    expected = variance * (1 / first.shape[0] + 1 / second.shape[0])
    apart = float((weight * np.square(between)).sum())
    if expected == 0:
        return 0.0 if apart == 0 else float("inf")
    return apart / expected


def shares(tokens: Floats) -> Floats:
    """[W, L, E] each layer's tokens over their sum; 0 where a layer is idle."""
    total = tokens.sum(axis=2, keepdims=True)
    return np.divide(tokens, total, out=np.zeros_like(tokens), where=total > 0)
