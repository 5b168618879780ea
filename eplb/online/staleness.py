"""Knows how much remembered traffic still says about what comes; knows no placement.

Steps fade with age, and more if the traffic has left them behind: after a switch of workloads the steps before it say
little, however recent, while in traffic that wanders all the time the past is worth what it always was.
"""

from itertools import pairwise

import numpy as np

from eplb.online.window import shares
from eplb_traces import ExpertLoad

FADING = 1.5  # exponent; tuned on moe-435m and synthetic switching workloads
LEAST_STRETCHES = 3  # fewer say nothing about how far neighbours usually lie apart


def faded(load: ExpertLoad, stretch: int) -> ExpertLoad:
    """The same steps, with less weight where the traffic has moved away from them.

    The steps are cut into stretches from the newest backwards. With d the squared distance of two stretches' mean
    shares beyond what independent steps would put between them, and u that of one stretch from its own truth, a
    stretch keeps ((u + median d of neighbours) / (u + d to the newest)) ** 1.5 of its weight, at most all of it. As in
    a chi-square test, squares count over their mean share.

    Parameters
    ----------
    load
        [W, L, E] steps, oldest first.
    stretch
        Steps of one stretch.
    """
    ends = range(load.num_windows, 0, -stretch)
    parts = [slice(max(0, end - stretch), end) for end in ends]
    if len(parts) < LEAST_STRETCHES:
        return load
    share = shares(load.tokens)
    mean = share.mean(axis=0)
    scale = np.divide(1.0, np.sqrt(mean), out=np.zeros_like(mean), where=mean > 0)
    noise = float(np.mean([np.square((b - a) * scale).sum() for a, b in pairwise(share)])) / 2
    centre = [share[part].mean(axis=0) * scale for part in parts]
    num_steps = [part.stop - part.start for part in parts]

    def distance(one: int, other: int) -> float:
        apart = float(np.square(centre[one] - centre[other]).sum())
        return max(0.0, apart - noise * (1 / num_steps[one] + 1 / num_steps[other]))

    usual = float(np.median([distance(i, i + 1) for i in range(len(parts) - 1)])) + noise / num_steps[0]
    weights = load.weights.copy()
    for i, part in enumerate(parts[1:], start=1):
        far = distance(0, i) + noise / num_steps[0]
        if far > usual:
            weights[part] *= (usual / far) ** FADING
    return ExpertLoad(load.tokens, np.maximum(weights, 1e-12))
