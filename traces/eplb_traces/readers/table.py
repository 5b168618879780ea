"""A table of named columns that is read in chunks, and the checks of its cells."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.files.limits import LARGEST_EXACT

Column = NDArray[Any]
"""[rows] numbers or objects, or [rows, K] where every cell is a list of K numbers."""


class Table(Protocol):
    """Rows and columns of a file; the meaning of the columns is not decided here."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """[columns] names as they are written; None where the file has no header."""
        ...

    @property
    def num_columns(self) -> int:
        """Columns of the table."""
        ...

    @property
    def num_bytes(self) -> int:
        """Size of the file, by which `limits` judges the sizes that its ids ask for."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out before the table was reached: comment lines, an empty last column."""
        ...

    def chunks(self, columns: Sequence[int]) -> Iterator[list[Column]]:
        """The given columns, some rows at a time, from the first row on."""
        ...

    def place(self, row: int, column: int) -> str:
        """Where a cell is in the file, for messages: "line 7, column 2 (tokens)"."""
        ...


def counts(table: Table, cells: Column, first_row: int, column: int) -> NDArray[np.int64 | np.float64]:
    """Cells as int64 or float64; finite and >= 0.

    Raises
    ------
    InputError
        Naming the first cell that is no such number, or an integer above 2^53.
    """
    numbers = _numbers(table, cells, first_row, column, "a finite number >= 0")
    dtype = np.float64 if numbers.dtype.kind == "f" else np.int64
    if not numbers.size or (numbers.min() >= 0 and numbers.max() <= LARGEST_EXACT):
        return numbers.astype(dtype, copy=False)
    limit = np.inf if numbers.dtype.kind == "f" else LARGEST_EXACT + 1
    wrong = ~((numbers >= 0) & (numbers < limit))
    if wrong.any():
        index = int(np.argmax(wrong))
        raise bad_cell(table, first_row + index, column, cells[index], "a finite number >= 0, at most 2^53")
    return numbers.astype(dtype, copy=False)


def whole_numbers(table: Table, cells: Column, first_row: int, column: int) -> NDArray[np.int64]:
    """Cells as int64 >= 0; a float without a fraction is one.

    Raises
    ------
    InputError
        Naming the first cell that is none.
    """
    numbers = _numbers(table, cells, first_row, column, "an integer >= 0")
    if numbers.dtype.kind in "iu":
        if not numbers.size or (numbers.min() >= 0 and numbers.max() <= LARGEST_EXACT):
            return numbers.astype(np.int64, copy=False)
        wrong = ~((numbers >= 0) & (numbers <= LARGEST_EXACT))
    else:
        wrong = ~((numbers >= 0) & (numbers <= LARGEST_EXACT) & (numbers == np.floor(numbers)))
    if wrong.any():
        index = int(np.argmax(wrong))
        raise bad_cell(table, first_row + index, column, cells[index], "an integer >= 0")
    return numbers.astype(np.int64)


def bad_cell(table: Table, row: int, column: int, value: object, expected: str) -> InputError:
    """The error for one cell."""
    shown = value.item() if isinstance(value, np.generic) else value
    hint = _hint(shown) if isinstance(shown, str) else ""
    return InputError(f"{table.place(row, column)} = {shown!r}: expected {expected}{hint}")


def _numbers(table: Table, cells: Column, first_row: int, column: int, expected: str) -> NDArray[Any]:
    if cells.ndim == 1 and cells.dtype.kind in "iuf":
        return cells.astype(np.float64) if cells.dtype == np.float16 else cells  # whose largest number is below 2^53
    if cells.ndim != 1:
        raise InputError(f"{table.place(first_row, column)} is a list: expected {expected}")
    index = next((i for i, value in enumerate(cells) if not _is_number(value)), 0)
    raise bad_cell(table, first_row + index, column, cells[index], expected)


def _is_number(value: object) -> bool:
    """Whether a cell of a column that holds other cells too is a number that a table may have."""
    if isinstance(value, bool | np.bool_):
        return False
    if isinstance(value, int | float):
        return abs(value) <= LARGEST_EXACT
    if not isinstance(value, str) or "_" in value:
        return False
    try:
        return 0 <= float(value) < np.inf
    except ValueError:
        return False


def _hint(text: str) -> str:
    if text == "":
        return "; the cell is empty"
    if text.replace(",", "").replace(".", "").strip().isdigit() and "," in text:
        return "; write numbers without thousands separator and with a decimal point"
    return ""
