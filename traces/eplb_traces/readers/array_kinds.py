"""Finds out what a plain array of numbers is: counts, expert ids, router logits, or something that is no load.

An array does not say what it is. Every rule here rests on what its numbers can be: the choices of a token differ, the
layers of a load have equal sums, probabilities add up to 1, a pattern has only 0 and 1.
"""

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGEST_EXACT = 1 << 53
_LARGEST_TOP_K = 32
_LARGEST_LIKELY_ID = 4096
_FEWEST_ROWS = 8
_ROWS_FOR_ANY_ID = 16
_IDS_FOR_A_CHOICE = 4  # with fewer choices than a quarter of the ids, distinct numbers prove little
_FEWEST_BINARY = 16
_FEWEST_SQUARE = 8
_FEWEST_EXPERTS = 8
_MANY_LAYERS = 100
_SUM_TOLERANCE = 0.02  # rows of float16 and bfloat16 probabilities
_FEWEST_SCORES = 16


class ArrayKind(StrEnum):
    """What the numbers of an array can be."""

    COUNTS = "counts"
    IDS = "expert ids"
    LOGITS = "router logits"
    PROBABILITIES = "probabilities or shares whose rows add up to 1"
    SCORES = "scores or shares between 0 and 1"
    PATTERN = "a pattern of 0 and 1"
    SQUARE = "a square matrix"
    EXPERTS_FIRST = "[experts, layers]"


def whole(array: NDArray[Any]) -> NDArray[Any]:
    """Whole floats and booleans as int64; other arrays as they are."""
    if array.dtype.kind == "b":
        return array.astype(np.int64)
    if array.dtype.kind != "f" or not array.size or not np.isfinite(array).all():
        return array
    is_whole = (array == np.floor(array)).all() and float(np.abs(array).max()) < _LARGEST_EXACT
    return array.astype(np.int64) if is_whole else array


def kind_of(array: NDArray[Any]) -> ArrayKind:
    """Judge an array [.., rows, columns] of at least two axes whose number of experts is not known."""
    if array.dtype.kind == "f":
        return _kind_of_fractions(array)
    if is_pattern(array):
        return ArrayKind.PATTERN
    if looks_like_ids(array):
        return ArrayKind.IDS
    if is_square(array):
        return ArrayKind.SQUARE
    return ArrayKind.EXPERTS_FIRST if _experts_first(array) else ArrayKind.COUNTS


def looks_like_ids(array: NDArray[Any]) -> bool:
    """Whether every row could be the choice of a token: a few small integers, all different."""
    rows = array.reshape(-1, array.shape[-1])
    if array.dtype.kind not in "iu" or not 1 < rows.shape[1] <= _LARGEST_TOP_K or len(rows) < _FEWEST_ROWS:
        return False
    largest = int(array.max())
    if array.min() < -1 or largest >= _LARGEST_LIKELY_ID:
        return False
    return (len(rows) >= _ROWS_FOR_ANY_ID or largest < _IDS_FOR_A_CHOICE * array.size) and are_choices(array)


def are_choices(array: NDArray[Any]) -> bool:
    """Whether the numbers of every row differ; rows of zeros or -1 alone are no choice."""
    rows = array.reshape(-1, array.shape[-1])
    chosen = rows[(rows > 0).any(axis=1)]
    in_order = np.sort(chosen, axis=1)
    repeated = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)
    return bool(len(chosen) and not repeated.any())


def is_pattern(array: NDArray[Any]) -> bool:
    """Whether there is nothing but 0 and 1, and both."""
    if array.dtype.kind not in "iu" or array.size < _FEWEST_BINARY:
        return False
    return bool(array.min() == 0 and array.max() == 1)


def is_square(array: NDArray[Any]) -> bool:
    """Whether the last two axes are of one length, as in a transition or co-activation matrix of experts."""
    return array.shape[-1] == array.shape[-2] >= _FEWEST_SQUARE


def _kind_of_fractions(array: NDArray[Any]) -> ArrayKind:
    if array.min() < 0:
        return ArrayKind.LOGITS
    sums = array.sum(axis=-1, dtype=np.float64)
    if array.shape[-1] > 1 and (np.abs(sums - 1) < _SUM_TOLERANCE).all():
        return ArrayKind.PROBABILITIES
    if array.max() <= 1 and array.size >= _FEWEST_SCORES:
        return ArrayKind.SCORES
    if is_square(array):
        return ArrayKind.SQUARE
    return ArrayKind.EXPERTS_FIRST if _experts_first(array) else ArrayKind.COUNTS


def _experts_first(array: NDArray[Any]) -> bool:
    """Whether rows could be experts and columns layers.

    Every layer has the same tokens: equal sums of all rows are a proof that rows are layers, of all columns that
    columns are.
    """
    num_rows, num_columns = array.shape[-2:]
    by_layer = array.sum(axis=-1, dtype=np.float64)
    if num_rows > 1 and np.allclose(by_layer, by_layer[..., :1]):
        return False
    by_column = array.sum(axis=-2, dtype=np.float64)
    if num_columns > 1 and np.allclose(by_column, by_column[..., :1]):
        return True
    if num_rows <= num_columns or num_rows < _FEWEST_EXPERTS:
        return False
    return num_columns < _FEWEST_EXPERTS or num_rows > _MANY_LAYERS or _can_be_experts(num_rows)


def _can_be_experts(count: int) -> bool:
    """Whether a published model has so many routed experts: powers of two, multiples of 32, 60, 72."""
    return count & (count - 1) == 0 or count % 32 == 0 or count in (60, 72)
