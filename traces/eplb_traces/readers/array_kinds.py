"""Finds out what a plain array of numbers is: counts, expert ids, router logits, or something that is no load.

An array does not say what it is, and neither does a table without a header. Every rule here rests on what its numbers
can be: the choices of a token differ, the layers of a load have equal sums, probabilities add up to 1, a pattern has
only 0 and 1, a placement has every expert in every row.
"""

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_traces.files.limits import LARGEST_EXACT

MOST_LAYERS_OF_A_MODEL = 128
"""No published model has more: an axis that is longer is not the layers."""
_LARGEST_TOP_K = 32
_LARGEST_LIKELY_ID = 4096
_USUAL_TOP_K = 10
_USUAL_LARGEST_ID = 1024
_FEWEST_ROWS = 8
_FEWEST_CHOICES = 4
_ROWS_FOR_ANY_ID = 16
_IDS_FOR_A_CHOICE = 4  # with fewer choices than a quarter of the ids, distinct numbers prove little
_FEWEST_BINARY = 16
_FEWEST_SQUARE = 8
_FEWEST_EXPERTS = 8
_MANY_LAYERS = 100
_USUAL_EXPERTS = (40, 48, 60, 72, 80, 144, 160)  # that are neither powers of two nor multiples of 32
_SUM_TOLERANCE = 0.02  # rows of float16 and bfloat16 probabilities
_LARGEST_WEIGHT = 8.0
_FEWEST_SCORES = 16


class ArrayKind(StrEnum):
    """What the numbers of an array can be."""

    COUNTS = "counts"
    IDS = "expert ids"
    LOGITS = "router logits"
    PROBABILITIES = "probabilities or shares whose rows add up to 1"
    SCORES = "scores or shares between 0 and 1"
    WEIGHTS = "weights of choices"
    PATTERN = "a pattern of 0 and 1"
    PLACEMENT = "a placement or a ranking"
    REPLICAS = "numbers of replicas"
    SQUARE = "a square matrix"
    EXPERTS_FIRST = "[experts, layers]"
    LAYERS_FIRST = "[layers, windows, experts]"
    INDEX_FIRST = "counts after a column of layers"
    PAIRS = "layer, expert, tokens"


def whole(array: NDArray[Any]) -> NDArray[Any]:
    """Whole floats and booleans as int64; other arrays as they are."""
    if array.dtype.kind == "b":
        return array.astype(np.int64)
    if array.dtype.kind != "f" or not array.size or not np.isfinite(array).all():
        return array
    is_whole = (array == np.floor(array)).all() and float(np.abs(array).max()) < LARGEST_EXACT
    return array.astype(np.int64) if is_whole else array


def kind_of(array: NDArray[Any]) -> ArrayKind:
    """Judge an array [.., rows, columns] of at least two axes whose number of experts is not known."""
    if array.dtype.kind == "f":
        kind = _kind_of_fractions(array)
    else:
        kind = ArrayKind.IDS if not is_pattern(array) and looks_like_ids(array) else certain_kind_of(array)
    if kind is not ArrayKind.COUNTS:
        return kind
    if array.dtype.kind != "f" and _looks_like_pairs(array):
        return ArrayKind.PAIRS
    if _begins_with_an_index(array):
        return ArrayKind.INDEX_FIRST
    if is_square(array):
        return ArrayKind.SQUARE
    return ArrayKind.EXPERTS_FIRST if _experts_first(array) else ArrayKind.COUNTS


def certain_kind_of(array: NDArray[Any]) -> ArrayKind:
    """Judge an array whose columns are as many as the experts: counts unless the numbers prove something else."""
    if is_pattern(array):
        return ArrayKind.PATTERN
    if _is_placement(array):
        return ArrayKind.PLACEMENT
    if _are_replicas(array):
        return ArrayKind.REPLICAS
    return ArrayKind.LAYERS_FIRST if _layers_first(array) else ArrayKind.COUNTS


def looks_like_ids(array: NDArray[Any]) -> bool:
    """Whether every row could be the choice of a token: a few small integers, all different."""
    rows = array.reshape(-1, array.shape[-1])
    if array.dtype.kind not in "iu" or not 1 < rows.shape[1] <= _LARGEST_TOP_K or len(rows) < _FEWEST_CHOICES:
        return False
    largest = int(array.max())
    if array.min() < -1 or largest >= _LARGEST_LIKELY_ID:
        return False
    is_usual_choice = rows.shape[1] <= _USUAL_TOP_K and largest < _USUAL_LARGEST_ID
    is_likely = is_usual_choice or len(rows) >= _ROWS_FOR_ANY_ID or largest < _IDS_FOR_A_CHOICE * array.size
    return is_likely and are_choices(array)


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


def is_usual(num_experts: int) -> bool:
    """Whether published models have layers of so many experts."""
    is_power = num_experts >= 2 and num_experts & (num_experts - 1) == 0
    return is_power or (num_experts > 0 and num_experts % 32 == 0) or num_experts in _USUAL_EXPERTS


def _kind_of_fractions(array: NDArray[Any]) -> ArrayKind:
    if array.min() < 0:
        return ArrayKind.LOGITS
    sums = array.sum(axis=-1, dtype=np.float64)
    if array.shape[-1] > 1 and (np.abs(sums - 1) < _SUM_TOLERANCE).all():
        return ArrayKind.PROBABILITIES
    if array.max() <= 1 and array.size >= _FEWEST_SCORES:
        return ArrayKind.SCORES
    if _are_weights(array, sums):
        return ArrayKind.WEIGHTS
    return ArrayKind.LAYERS_FIRST if _layers_first(array) else ArrayKind.COUNTS


def _are_weights(array: NDArray[Any], sums: NDArray[np.float64]) -> bool:
    """Whether rows could be the gate's weights of a token's choices: few, small, often with one scaled sum.

    Loads divided by their mean have small numbers too, but add up to the number of columns.
    """
    num_columns = array.shape[-1]
    if not 1 < num_columns <= _LARGEST_TOP_K or sums.size < _FEWEST_ROWS or array.max() >= _LARGEST_WEIGHT:
        return False
    return not np.allclose(sums, num_columns, rtol=_SUM_TOLERANCE)


def _is_placement(array: NDArray[Any]) -> bool:
    """Whether every row has each number from 0 to the largest, or all rows the same numbers in another order."""
    rows = array.reshape(-1, array.shape[-1])
    if array.dtype.kind not in "iu" or rows.shape[1] < _FEWEST_EXPERTS or array.min() != 0:
        return False
    largest = int(array.max())
    if not 1 < largest < rows.shape[1]:
        return False
    in_order = np.sort(rows, axis=1)
    if len(rows) > 1 and (in_order == in_order[0]).all():
        return True
    steps = np.diff(in_order, axis=1)
    return bool((in_order[:, 0] == 0).all() and (in_order[:, -1] == largest).all() and (steps <= 1).all())


def _are_replicas(array: NDArray[Any]) -> bool:
    """Whether these are 1 in most places and add up to one number of slots in every row."""
    if array.dtype.kind not in "iu" or array.shape[-1] < _FEWEST_EXPERTS or array.min() != 1 or array.max() == 1:
        return False
    sums = array.sum(axis=-1, dtype=np.int64)
    return bool((sums == sums.reshape(-1)[0]).all() and 2 * np.count_nonzero(array == 1) >= array.size)


def _layers_first(array: NDArray[Any]) -> bool:
    """Whether all layers having the same tokens proves that the first of three axes is the layers."""
    if array.ndim != 3 or 1 in array.shape[:2]:
        return False
    sums = array.sum(axis=-1, dtype=np.float64)
    return bool(np.allclose(sums, sums[:1]) and not np.allclose(sums, sums[:, :1]))


def _begins_with_an_index(array: NDArray[Any]) -> bool:
    """Whether the first column could be ids of layers, and the others are as many as experts usually are."""
    num_others = array.shape[-1] - 1
    if not is_usual(num_others) or is_usual(num_others + 1):
        return False
    first = array[..., 0]
    steps = np.diff(first, axis=-1)
    if num_others < _FEWEST_EXPERTS:  # few columns: ascending numbers alone prove little
        return bool(steps.size and (steps == 1).all())
    are_ids = (first == np.floor(first)).all() and (first < MOST_LAYERS_OF_A_MODEL).all()
    return bool(are_ids and (steps > 0).all())


def _looks_like_pairs(array: NDArray[Any]) -> bool:
    """Whether rows of 3 or 4 numbers count through pairs of small numbers, each once, before the last."""
    num_rows, num_columns = array.shape[-2:]
    if array.ndim != 2 or num_columns not in (3, 4) or num_rows <= num_columns:
        return False
    pairs = array[:, -3:-1]
    different = np.unique(pairs, axis=0)
    sides = [len(np.unique(pairs[:, i])) for i in (0, 1)]
    return len(different) == num_rows and max(sides) < num_rows and bool((np.diff(pairs[:, 0]) >= 0).all())


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
    if num_rows < _FEWEST_EXPERTS or num_columns > MOST_LAYERS_OF_A_MODEL:
        return False
    few_columns = num_columns < min(num_rows, _FEWEST_EXPERTS)
    return few_columns or num_rows > _MANY_LAYERS or is_usual(num_rows)
