"""Lists the experts with the most tokens over their layer's mean."""

from typing import NamedTuple

import numpy as np

from eplb_traces import ExpertLoad


class HotExpert(NamedTuple):
    """An expert with many tokens."""

    layer: int
    expert: int
    tokens: float
    over_mean: float
    """Tokens over the mean of the layer's experts."""


def hottest_experts(load: ExpertLoad, count: int) -> list[HotExpert]:
    """The experts with the most tokens over their layer's mean, summed over windows; ties to the lowest layer and id.

    Experts at or below the mean are never among them.
    """
    mean = load.total.mean(axis=1, keepdims=True)
    ratio = np.divide(load.total, mean, out=np.zeros_like(load.total), where=mean > 0)
    order = np.argsort(-ratio, axis=None, kind="stable")[:count].tolist()
    places = [divmod(place, load.num_experts) for place in order]
    return [
        HotExpert(layer, expert, float(load.total[layer, expert]), float(ratio[layer, expert]))
        for layer, expert in places
        if ratio[layer, expert] > 1
    ]
