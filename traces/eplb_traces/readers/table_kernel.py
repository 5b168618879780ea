"""Compiled loops over the cells of tables. Import this module inside the function that needs it: see `jit`."""

import numpy as np
from numpy.typing import NDArray

from eplb_traces.jit import helper, njit

_BLOCK = 32  # rows and columns of a block that is transposed within the first-level cache
_AXIS = "Array(int64, 1, 'A', readonly=True)"


@njit(f"int64({_AXIS}, int64[::1], int64, int64[::1])")
def number_codes(
    numbers: NDArray[np.int64], code_of: NDArray[np.int64], num_codes: int, codes: NDArray[np.int64]
) -> int:
    """Look up the code of each number; new numbers get the next codes. Return how many codes there are then.

    Parameters
    ----------
    numbers
        [rows], 0 <= number < len(code_of)
    code_of
        Code of each number, -1 for a number without one; filled in place.
    num_codes
        Codes given before.
    codes
        [rows] filled in place.
    """
    for row in range(len(numbers)):
        code = code_of[numbers[row]]
        if code < 0:
            code = num_codes
            code_of[numbers[row]] = code
            num_codes += 1
        codes[row] = code
    return num_codes


_PAIRS = f"{_AXIS}, {_AXIS}, {_AXIS}, {_AXIS}"
_TABLES = "int64[::1], int64[::1], int64[::1], float64[:, :, :, ::1], boolean[:, :, :, ::1]"


@helper
def _code_with_room(number: int, code_of: NDArray[np.int64], num_codes: NDArray[np.int64], room: int) -> int:
    """The code of a number, the next one if it has none; -1 where that would not be below `room`."""
    if code_of[number] < 0 and num_codes[0] < room:
        code_of[number] = num_codes[0]
        num_codes[0] += 1
    code: int = code_of[number]
    return code


@njit(
    f"int64(int64, {_PAIRS}, Array(int64, 1, 'A', readonly=True), {_TABLES})",
    f"int64(int64, {_PAIRS}, Array(float64, 1, 'A', readonly=True), {_TABLES})",
)
def enter_pairs(
    first_row: int,
    window: NDArray[np.int64],
    layer: NDArray[np.int64],
    rank: NDArray[np.int64],
    expert: NDArray[np.int64],
    tokens: NDArray[np.int64 | np.float64],
    window_code: NDArray[np.int64],
    layer_code: NDArray[np.int64],
    num_codes: NDArray[np.int64],
    counts: NDArray[np.float64],
    seen: NDArray[np.bool_],
) -> int:
    """Write rows to their cells of `counts`, until one has no room or its cell had a row before. Return that row.

    Parameters
    ----------
    first_row
        The row to begin with.
    window, layer
        [rows] numbers, each an index of its table of codes.
    rank, expert
        [rows] place in `counts`.
    tokens
        [rows]
    window_code, layer_code
        Place of each number in `counts`, -1 for a number without one; filled in place.
    num_codes
        [2] codes of windows and of layers given so far; counted in place.
    counts, seen
        [windows, layers, ranks, experts] filled in place: the counts, and which cells have a row.

    Returns
    -------
    int
        The number of rows where all have been written.
    """
    num_windows, num_layers, num_ranks, num_experts = counts.shape
    flat_counts, flat_seen = counts.reshape(-1), seen.reshape(-1)
    last_window, last_layer, first_cell = -1, -1, 0
    for i in range(first_row, len(tokens)):
        row = np.uint64(i)  # with an unsigned index numba looks for no negative one
        if window[row] != last_window or layer[row] != last_layer:
            last_window, last_layer = window[row], layer[row]
            w = _code_with_room(last_window, window_code, num_codes[:1], num_windows)
            m = _code_with_room(last_layer, layer_code, num_codes[1:], num_layers)
            if w < 0 or m < 0:
                return i
            first_cell = (w * num_layers + m) * num_ranks * num_experts
        cell = np.uint64(first_cell + rank[row] * num_experts + expert[row])
        if flat_seen[cell]:
            return i
        flat_seen[cell] = True
        flat_counts[cell] = tokens[row]
    return len(tokens)


@njit(
    "boolean(Array(int64, 2, 'C', readonly=True), float64[:, ::1], int64)",
    "boolean(Array(float64, 2, 'C', readonly=True), float64[:, ::1], int64)",
)
def columns_to_rows(columns: NDArray[np.int64 | np.float64], rows: NDArray[np.float64], limit: int) -> bool:
    """Transpose `columns` into `rows`. Return whether every number is >= 0 and below `limit`.

    Parameters
    ----------
    columns
        [K, n]
    rows
        [n, K] filled in place.
    limit
        No NaN is below it.
    """
    num_columns, num_rows = columns.shape
    is_valid = True
    for first_row in range(0, num_rows, _BLOCK):
        for first in range(0, num_columns, _BLOCK):
            for row in range(first_row, min(first_row + _BLOCK, num_rows)):
                for column in range(first, min(first + _BLOCK, num_columns)):
                    number = columns[column, row]
                    is_valid &= 0 <= number < limit
                    rows[row, column] = number
    return is_valid
