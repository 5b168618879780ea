"""Computes the expected pairs of experts if tokens chose experts independently of each other."""

import numpy as np
from numpy.typing import NDArray


def independent_pairs(partners: NDArray[np.int64]) -> NDArray[np.float64]:
    """Spread every expert's pairs over the other experts without any affinity.

    The result e has e[i, j] = x[i] * x[j] off the diagonal, 0 on it, and row sums as given: quasi-independence
    (Goodman 1968), which among all symmetric tables with these sums and an empty diagonal has the largest entropy.
    Written as x[i] * (X - x[i]) = partners[i] with X = sum(x), each x[i] is the smaller root of a quadratic in X,
    except that of one expert with more than about half of all pairs, which may be the larger. So one unknown is left,
    found by bracketing. O(E^2).

    Parameters
    ----------
    partners
        [E] >= 0, pairs that each expert is part of; none exceeds the sum of the others.

    Returns
    -------
    NDArray
        [E, E] expected pairs; fractions.
    """
    most = int(partners.max())
    if most == 0:
        return np.zeros((partners.size, partners.size))
    share = partners / most  # relative to the largest, so that the unknown u = 1 / X^2 (times `most`) is at most 1/4
    others = np.delete(share, np.argmax(share))
    largest_root = float(_slope(others, 0.25) @ others - 2.0) < 0.0
    inverse = _inverse_square_sum(share, others, largest_root)
    scaled = share * _slope(share, inverse)  # x[i] * X
    expected = np.outer(scaled, scaled) * inverse
    if largest_root:
        hub = int(np.argmax(share))
        expected[hub] = expected[:, hub] = scaled * (1.0 - scaled[hub] * inverse)
    np.fill_diagonal(expected, 0.0)
    return expected * most


def _slope(share: NDArray[np.float64], inverse: float) -> NDArray[np.float64]:
    """x[i] * X / share[i] of the smaller root: 1 where X is large, 2 where both roots meet."""
    return 2.0 / (1.0 + np.sqrt(np.maximum(1.0 - 4.0 * share * inverse, 0.0)))


def _inverse_square_sum(share: NDArray[np.float64], others: NDArray[np.float64], largest_root: bool) -> float:
    """1 / X^2 at which the x[i] sum to X."""
    from scipy.optimize import brentq

    def excess(inverse: float) -> float:
        if largest_root:
            return float(others @ _slope(others, inverse) - _slope(np.ones(1), inverse)[0])
        return float(inverse * (share @ _slope(share, inverse)) - 1.0)

    # The brackets' ends are roots themselves where one expert is part of every pair (0), or where only two are (1/4).
    low, high = excess(0.0), excess(0.25)
    if low * high > 0.0:
        return 0.0 if abs(low) < abs(high) else 0.25
    return float(brentq(excess, 0.0, 0.25, xtol=1e-16, rtol=1e-14))
