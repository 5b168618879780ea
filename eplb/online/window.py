"""Knows the steps that are remembered and how much each counts; knows no placement."""

from collections import deque
from typing import final

import numpy as np

from eplb.core.arrays import Floats
from eplb_traces import ExpertLoad


@final
class LoadWindow:
    """The last steps' counts.

    Parameters
    ----------
    num_steps
        Steps remembered.
    half_life
        Steps after which one counts half.
    """

    def __init__(self, num_steps: int, half_life: float) -> None:
        self._steps: deque[Floats] = deque(maxlen=num_steps)
        self._half_life = half_life

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, tokens: Floats) -> None:
        """Remember one step's tokens [L, E]; steps without any token are not remembered."""
        if tokens.any():
            self._steps.append(tokens)

    def load(self) -> ExpertLoad:
        """All remembered steps, oldest first, the newest with weight 1."""
        age = np.arange(len(self._steps))[::-1]
        return ExpertLoad(np.stack(self._steps), np.maximum(0.5 ** (age / self._half_life), 1e-12))

    def recent(self, num_steps: int) -> Floats:
        """[W, L, E] the last steps, as many as there are up to `num_steps`."""
        return np.stack([*self._steps][-num_steps:])


def drift(planned_for: Floats, recent: Floats) -> float:
    """How much further two stretches of traffic lie apart than steps that differ by chance would put them.

    The squared difference of the stretches' mean shares, over its expectation where all steps are independent draws
    around the same shares: the variance between steps, as seen inside the stretches, times 1 / W1 + 1 / W2. Both are
    summed over layers and experts, each over its mean share as in a chi-square test, so that all experts have a say.
    1 is chance; correlated steps give more.

    Parameters
    ----------
    planned_for, recent
        [W1, L, E], [W2, L, E] tokens, not all zero.
    """
    first, second = shares(planned_for), shares(recent)
    if first.shape[0] + second.shape[0] < 3:
        return float("inf")  # nothing says what chance does
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
