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
        self._are_small_numbers = True

    def of(self, column: Column) -> NDArray[np.int64]:
        """[rows] the code of each value."""
        from eplb_traces.readers.table_kernel import number_codes

        numbers = self._table_for(column)
        if numbers is None:
            return self._factorized(column)
        codes = np.empty_like(numbers)
        self.extend(number_codes(numbers, self._code_of_number, len(self._code_of), codes))
        return codes

    def lookup(self, column: Column) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[rows] numbers for the values of a column, and the code of each such number; -1 where it has none yet.

        Who gives codes to further numbers, in the array itself, tells `extend`.
        """
        numbers = self._table_for(column)
        if numbers is None:
            return self._factorized(column), np.arange(len(self._code_of))
        return numbers, self._code_of_number

    def extend(self, num_codes: int) -> None:
        """Take over codes that were entered in the table of numbers, so that there are `num_codes`."""
        num_before = len(self._code_of)
        if num_codes > num_before:
            new = np.flatnonzero(self._code_of_number >= num_before)
            self._codes(new[np.argsort(self._code_of_number[new])].tolist())

    def _table_for(self, column: Column) -> NDArray[np.int64] | None:
        """The column as numbers for which the table has room; None once a column has had other values."""
        is_small = self._are_small_numbers and column.dtype.kind in "iu"
        if is_small and column.size:
            is_small = bool(column.min() >= 0 and column.max() < _LARGEST_LOOKUP)
            room = int(column.max()) + 1 - len(self._code_of_number) if is_small else 0
            if room > 0:
                room = max(room, len(self._code_of_number))
                self._code_of_number = np.pad(self._code_of_number, (0, room), constant_values=-1)
        self._are_small_numbers = is_small
        return column.astype(np.int64, copy=False) if is_small else None

    def _factorized(self, column: Column) -> NDArray[np.int64]:
        import pandas

        local, values = pandas.factorize(column)
        return self._codes(values.tolist())[local]

    def _codes(self, values: list[object]) -> NDArray[np.int64]:
        """The codes of different values."""
        return np.array([self._code_of.setdefault(str(value), len(self._code_of)) for value in values], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._code_of)

    @property
    def values(self) -> list[str]:
        """The values as text, in the order of their codes."""
        return list(self._code_of)


class Pairs(NamedTuple):
    """Rows of the long form."""

    window: Column | None
    layer: NDArray[np.int64]
    rank: Column | None
    expert: NDArray[np.int64]
    tokens: NDArray[np.int64 | np.float64]

    def select(self, rows: NDArray[np.int64]) -> "Pairs":
        """Some of the rows."""
        window, rank = (None if axis is None else axis[rows] for axis in (self.window, self.rank))
        return Pairs(window, self.layer[rows], rank, self.expert[rows], self.tokens[rows])


@final
class Cells:
    """Counts [windows, layers, ranks, experts] that grow with the rows, and which of them had a row."""

    def __init__(self, num_bytes: int) -> None:
        self._most_cells = most_numbers(num_bytes)
        self.windows, self.layers, self.ranks = Codes(), Codes(), Codes()
        self._tokens: NDArray[np.float64] = np.zeros((1, 1, 1, 1))
        self._seen: NDArray[np.bool_] = np.zeros((1, 1, 1, 1), dtype=np.bool_)
        self._num_experts = 0

    def add(self, rows: Pairs, repeated: Callable[[int], InputError]) -> None:
        """Enter some rows; `repeated` makes the error for the index of a row whose cell had a row before.

        Raises
        ------
        InputError
            For a cell with two rows, or if the table would be too large.
        """
        num_rows = len(rows.tokens)
        if not num_rows:
            return
        from eplb_traces.readers.table_kernel import enter_pairs

        none = np.broadcast_to(np.int64(0), num_rows)
        window, window_code = (none, np.zeros(1, np.int64)) if rows.window is None else self.windows.lookup(rows.window)
        layer, layer_code = self.layers.lookup(rows.layer)
        rank = none if rows.rank is None else self.ranks.of(rows.rank)
        self._num_experts = max(self._num_experts, int(rows.expert.max()) + 1)
        num_codes = np.array([1 if rows.window is None else len(self.windows), len(self.layers)])
        row = 0
        self._grow(num_codes[0], num_codes[1])
        while row < num_rows:
            row = enter_pairs(
                *(row, window, layer, rank, rows.expert, rows.tokens),
                *(window_code, layer_code, num_codes, self._tokens, self._seen),
            )
            if row < num_rows:
                is_new_window, is_new_layer = window_code[window[row]] < 0, layer_code[layer[row]] < 0
                if not (is_new_window or is_new_layer):
                    raise repeated(row)
                is_new = np.zeros(len(layer_code), dtype=np.bool_)
                is_new[layer[row:] if is_new_layer else layer[:0]] = True
                is_new &= layer_code < 0
                self._grow(num_codes[0] + is_new_window, num_codes[1] + is_new.sum())
        self.windows.extend(num_codes[0] if rows.window is not None else 0)
        self.layers.extend(num_codes[1])

    def counts(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """[windows, layers, experts] summed over ranks, and which of them had a row on any rank.

        The arrays are those of this object where their size allows; nothing can be added afterwards.
        """
        size = (len(self.windows) or 1, len(self.layers), len(self.ranks) or 1, self._num_experts)
        if size[1:] == self._seen.shape[1:] and size[2] == 1:
            for array in (self._tokens, self._seen):
                array.resize((*size[:2], size[3]), refcheck=False)
            return self._tokens, self._seen
        inside = tuple(slice(n) for n in size)
        return self._tokens[inside].sum(axis=2), np.asarray(self._seen[inside].any(axis=2))

    def _grow(self, num_windows: int, num_layers: int) -> None:
        """Make room for so many windows and layers, and for the ranks and experts that have appeared."""
        held = self._seen.shape
        size = (max(1, int(num_windows)), max(1, int(num_layers)), len(self.ranks) or 1, self._num_experts)
        if all(n <= room for n, room in zip(size, held, strict=True)):
            return
        windows = held[0] if size[0] <= held[0] else max(size[0], held[0] + held[0] // 4)
        layers = held[1] if size[1] <= held[1] else max(size[1], 2 * held[1])
        room = (windows, layers, max(size[2], held[2]), max(size[3], held[3]))
        if np.prod(np.array(room, dtype=np.float64)) > self._most_cells:
            raise InputError(
                f"{size[0]} windows x {size[1]} layers x {size[2]} ranks x {size[3]} experts are too many: a "
                "column holds something else than its name says"
            )
        if room[1:] == held[1:]:  # in place: no second array of this size
            self._tokens.resize(room, refcheck=False)
            self._seen.resize(room, refcheck=False)
            return
        tokens, seen = np.zeros(room), np.zeros(room, dtype=np.bool_)
        inside = tuple(slice(n) for n in held)
        tokens[inside], seen[inside] = self._tokens, self._seen
        self._tokens, self._seen = tokens, seen


@final
class RowBuffer:
    """Rows of float64 that grow in place: the rows of a large table are not held twice."""

    def __init__(self, num_columns: int) -> None:
        self._rows: NDArray[np.float64] = np.empty((0, num_columns))
        self._num_rows = 0

    def next_rows(self, count: int) -> NDArray[np.float64]:
        """[count, columns] to be filled; valid until the next call."""
        start, self._num_rows = self._num_rows, self._num_rows + count
        held = len(self._rows)
        if self._num_rows > held:
            self._rows.resize((max(self._num_rows, held + held // 4), self._rows.shape[1]), refcheck=False)
        return self._rows[start : self._num_rows]

    def rows(self) -> NDArray[np.float64]:
        """[rows, columns] all of them; nothing can be added afterwards."""
        self._rows.resize((self._num_rows, self._rows.shape[1]), refcheck=False)
        return self._rows
