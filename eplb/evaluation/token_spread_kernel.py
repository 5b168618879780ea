"""Computes on how many places (ranks or nodes) the choices of a token are expected to lie."""

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints
from eplb_traces.jit import njit


@njit(
    "void(Array(uint16, 3, 'C', readonly=True), int64, int64, int64[:, ::1], int64[:, ::1], float64[:, ::1], int64,"
    " float64[::1])"
)
def add_expected_places(
    expert_ids: NDArray[np.uint16], begin: int, end: int, first: Ints, place: Ints, share: Floats, num_places: int,
    expected: Floats,
) -> None:  # fmt: skip
    """Add every token's expected number of distinct places to ``expected[layer]``, in place.

    A token whose expert e goes to place u with probability p(e, u) misses u with the product of 1 - p(e, u) over its
    choices; so it reaches u with one minus that product, and the sum over u is expected. O(choices x holders).

    Parameters
    ----------
    expert_ids
        [t, L, K] chosen experts.
    begin, end
        Layers to do.
    first
        [L, E + 1] where each expert's entries begin in `place` and `share`.
    place, share
        [L, entries] place that an expert's tokens may go to, and with which probability.
    num_places
        U
    expected
        [L] tokens x places.
    """
    num_tokens, _, top_k = expert_ids.shape
    missed = np.ones(num_places)
    for layer in range(begin, end):
        touched = np.empty(num_places, np.int64)
        total = 0.0
        for token in range(num_tokens):
            num_touched = 0
            for k in range(top_k):
                expert = np.int64(expert_ids[token, layer, k])
                for entry in range(first[layer, expert], first[layer, expert + 1]):
                    if missed[place[layer, entry]] == 1.0:
                        touched[num_touched] = place[layer, entry]
                        num_touched += 1
                    missed[place[layer, entry]] *= 1.0 - share[layer, entry]
            for i in range(num_touched):
                total += 1.0 - missed[touched[i]]
                missed[touched[i]] = 1.0
        expected[layer] += total
