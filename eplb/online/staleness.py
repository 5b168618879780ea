"""Lowers the weights of stale steps: steps whose load differs from the newest.

After a switch of workloads the steps before it predict little, however recent they are. Where the load changes all the
time by about the same amount, no step is discounted.
"""

from itertools import pairwise

import numpy as np

from eplb.online.window import shares
from eplb_traces import ExpertLoad

STALENESS_EXPONENT = 1.5  # tuned on moe-435m and synthetic switching workloads
LEAST_SEGMENTS = 3  # fewer do not show the usual distance of neighbours


def discounted(load: ExpertLoad, segment: int) -> ExpertLoad:
    """The same steps, with less weight where their load differs from the newest.

    The steps are cut into segments, from the newest backwards. Let d be the squared distance of the mean shares of two
    segments beyond that of independent steps, and u the variance of the mean of one segment. A segment keeps
    ((u + median d of neighbours) / (u + d to the newest)) ** 1.5 of its weight, at most all of it. As in a chi-square
    test, squares are divided by the mean share.

    Parameters
    ----------
    load
        [W, L, E] steps, oldest first.
    segment
        Steps of one segment.
    """
    ends = range(load.num_windows, 0, -segment)
    parts = [slice(max(0, end - segment), end) for end in ends]
    if len(parts) < LEAST_SEGMENTS:
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
            weights[part] *= (usual / far) ** STALENESS_EXPONENT
    return ExpertLoad(load.tokens, np.maximum(weights, 1e-12))
