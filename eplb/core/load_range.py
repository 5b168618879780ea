"""Checks that the counts of a load are in the range in which every computation on them is exact or rounds as usual.

Inside the range neither sums over windows and experts nor shares of single replicas overflow or become subnormal.
"""

from typing import Final

import numpy as np

from eplb.core.arrays import Floats
from eplb.errors import InputError
from eplb_traces import ExpertLoad

LEAST_TOKENS: Final = 1e-300
"""Least count that is not 0, and least weight of a window."""
MOST_TOKENS: Final = 1e300
"""Largest count, largest weight, and most tokens of a layer, windows summed by their weights."""
_ADVICE: Final = "multiply all counts by one factor, which changes no placement"


def check_load_range(load: ExpertLoad) -> None:
    """Refuse counts that a sum or a share would lose.

    Raises
    ------
    InputError
        With the first count or weight out of range, alone or times its window's weight, or the first layer whose sum
        is.
    """
    check_counts(load.weights, "weights[window {}]")
    check_counts(load.tokens, "tokens[window {}, layer {}, expert {}]")
    if _least_positive(load.tokens) * min(1.0, float(load.weights.min())) < LEAST_TOKENS:
        _check_weighted(load)
    with np.errstate(over="ignore"):
        of_layer = load.total.sum(axis=1)
    if of_layer.max() > MOST_TOKENS:
        layer = int((of_layer > MOST_TOKENS).argmax())
        raise InputError(
            f"load of layer {layer} sums to {of_layer[layer]:g} tokens: expected at most {MOST_TOKENS}; {_ADVICE}"
        )


def check_counts(values: Floats, place: str) -> None:
    """Raise InputError for the first value that is neither 0 nor in range; the place has one field an axis."""
    if values.max() <= MOST_TOKENS and _least_positive(values) >= LEAST_TOKENS:
        return
    wrong = (values > MOST_TOKENS) | ((values < LEAST_TOKENS) & (values > 0))
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0].tolist())
        raise InputError(
            f"{place.format(*at)} = {values[at]}: expected 0 or {LEAST_TOKENS} to {MOST_TOKENS}; {_ADVICE}"
        )


def _check_weighted(load: ExpertLoad) -> None:
    """Refuse the first count that its window's weight makes too small."""
    with np.errstate(over="ignore"):
        weighted = load.tokens * load.weights[:, None, None]
    lost = (weighted < LEAST_TOKENS) & (load.tokens > 0)
    if lost.any():
        window, layer, expert = np.argwhere(lost)[0].tolist()
        raise InputError(
            f"tokens[window {window}, layer {layer}, expert {expert}] = {load.tokens[window, layer, expert]} of weight "
            f"{load.weights[window]}: expected a product of at least {LEAST_TOKENS}; {_ADVICE}"
        )


def _least_positive(tokens: Floats) -> float:
    return float(np.min(tokens, where=tokens > 0, initial=np.inf))
