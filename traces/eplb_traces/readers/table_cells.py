"""Sums the rows of a table into counts [windows, layers, experts], and refuses a row that is there twice."""

from collections.abc import Callable
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.files.limits import most_numbers
from eplb_traces.readers.table import Column

_LARGEST_LOOKUP = 1 << 20


@final
class Codes:
    """Numbers the different values of a column 0, 1, .. in the order in which they appear."""

    def __init__(self) -> None:
        self._code_of: dict[str, int] = {}
        self._code_of_number: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def of(self, column: Column) -> NDArray[np.int64]:
        """[rows] the code of each value."""
        import pandas

        if column.dtype.kind in "iu" and column.size and column.min() >= 0 and column.max() < _LARGEST_LOOKUP:
            return self._looked_up(column)
        local, values = pandas.factorize(column)
        return self._codes(values.tolist())[local]

    def _looked_up(self, numbers: Column) -> NDArray[np.int64]:
        """As `of`, for small numbers, several times faster."""
        import pandas

        known = self._code_of_number
        if numbers.max() >= len(known):
            known = self._code_of_number = np.full(int(numbers.max()) + 1, -1)
        codes = known[numbers]
        if codes.min() < 0:
            new = pandas.unique(numbers[codes < 0])
            known[new] = self._codes(new.tolist())
            codes = known[numbers]
        return codes

    def _codes(self, values: list[object]) -> NDArray[np.int64]:
        """The codes of different values."""
        return np.array([self._code_of.setdefault(str(value), len(self._code_of)) for value in values], dtype=np.int64)

    @property
    def values(self) -> list[str]:
        """The values as text, in the order of their codes."""
        return list(self._code_of)


class Place(NamedTuple):
    """[rows] codes of the cell to which each row belongs."""

    window: NDArray[np.int64]
    layer: NDArray[np.int64]
    rank: NDArray[np.int64]
    expert: NDArray[np.int64]


@final
class Cells:
    """Counts [windows, layers, ranks, experts] that grow with the rows, and which of them had a row."""

    def __init__(self, num_bytes: int) -> None:
        self._most_cells = most_numbers(num_bytes)
        self._tokens: NDArray[np.float64] = np.zeros((1, 1, 1, 1))
        self._seen: NDArray[np.bool_] = np.zeros((1, 1, 1, 1), dtype=np.bool_)
        self._size = (0, 0, 0, 0)

    def add(self, place: Place, tokens: NDArray[np.float64], repeated: Callable[[int], InputError]) -> None:
        """Enter some rows; `repeated` makes the error for the index of a row whose cell had a row before.

        Raises
        ------
        InputError
            For a cell with two rows, or if the table would be too large.
        """
        if not len(tokens):
            return
        self._grow(tuple(max(n, int(axis.max()) + 1) for n, axis in zip(self._size, place, strict=True)))
        flat = np.ravel_multi_index(tuple(place), self._seen.shape)
        seen = self._seen.reshape(-1)
        before = seen[flat]
        if before.any():
            raise repeated(int(np.argmax(before)))
        seen[flat] = True
        row_of = np.unique(flat, return_index=True)[1] if _has_repetition(flat, seen.size) else None
        if row_of is not None:
            raise repeated(int(np.setdiff1d(np.arange(len(flat)), row_of)[0]))
        self._tokens.reshape(-1)[flat] = tokens

    def counts(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """[windows, layers, experts] summed over ranks, and which of them had a row on any rank."""
        inside = tuple(slice(n) for n in self._size)
        tokens, seen = self._tokens[inside], self._seen[inside]
        if tokens.shape[2] == 1:
            return tokens[:, :, 0], seen[:, :, 0]
        return tokens.sum(axis=2), np.asarray(seen.any(axis=2))

    def _grow(self, size: tuple[int, ...]) -> None:
        if any(n > room for n, room in zip(size, self._seen.shape, strict=True)):
            room = tuple(
                held if n <= held else max(n, 2 * held) if i < 2 else n
                for i, (n, held) in enumerate(zip(size, self._seen.shape, strict=True))
            )
            if np.prod(np.array(room, dtype=np.float64)) > self._most_cells:
                raise InputError(
                    f"{size[0]} windows x {size[1]} layers x {size[2]} ranks x {size[3]} experts are too many: a "
                    "column holds something else than its name says"
                )
            tokens, seen = np.zeros(room), np.zeros(room, dtype=np.bool_)
            inside = tuple(slice(n) for n in self._seen.shape)
            tokens[inside], seen[inside] = self._tokens, self._seen
            self._tokens, self._seen = tokens, seen
        self._size = (size[0], size[1], size[2], size[3])


def _has_repetition(flat: NDArray[np.int64], num_cells: int) -> bool:
    """Whether a number occurs twice; each row is entered at its cell and must be found there."""
    if (flat[1:] > flat[:-1]).all():
        return False
    row_of_cell = np.empty(num_cells, dtype=np.int64)
    rows = np.arange(len(flat))
    row_of_cell[flat] = rows
    return not np.array_equal(row_of_cell[flat], rows)
