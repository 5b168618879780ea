"""Reads Parquet: the files of eplb, whose schema `files.parquet_file` defines, and the tables of other programs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from eplb_traces.errors import InputError
from eplb_traces.files.limits import check_size, size_of
from eplb_traces.files.parquet_file import (
    TRACE_KEY,
    import_pyarrow,
    key_of,
    parquet_file,
    read_parquet_load,
    read_parquet_trace,
)
from eplb_traces.readers.dialect import Reading, ReadOptions, first_bytes
from eplb_traces.readers.table import Column
from eplb_traces.readers.table_forms import read_table

SUFFIXES: tuple[str, ...] = (".parquet",)
RECOGNISED_BY = "Parquet's magic number"
BECOMES = "load or trace, as the metadata of eplb, or the names of the columns, show"
REFUSES = "unknown columns, nulls, text or negative numbers in cells, repeated rows"

_CELLS_PER_CHUNK = 1 << 22
_MOST_ROWS_PER_CHUNK = 1 << 18


def recognises(path: Path) -> bool:
    """Look for Parquet's magic number."""
    return first_bytes(path, 4) == b"PAR1"


def read(path: Path, options: ReadOptions) -> Reading:
    """Read a load, or open a trace that is streamed; a table without metadata of eplb as a text table is read."""
    key = key_of(path)
    if key is None:
        return read_table(_open(path), options)
    content = read_parquet_trace(path) if key == TRACE_KEY else read_parquet_load(path)
    return Reading(content=content, form="eplb's Parquet", is_own=True)


@final
@dataclass(frozen=True)
class ParquetTable:
    """A table in a Parquet file, read by row groups; every reading opens the file again."""

    path: Path
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def num_columns(self) -> int:
        """Columns of the table."""
        return len(self.names)

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return size_of(self.path)

    def chunks(self, columns: Sequence[int]) -> Iterator[list[Column]]:
        """The given columns, some rows at a time."""
        names = [self.names[i] for i in columns]
        row = 0
        with parquet_file(self.path) as file:
            size = min(_MOST_ROWS_PER_CHUNK, max(1024, _CELLS_PER_CHUNK // len(names)))
            for rows in file.iter_batches(batch_size=size, columns=names):
                of = dict(zip(rows.schema.names, rows.columns, strict=True))
                yield [self._cells(of[self.names[i]], row, i) for i in columns]
                row += len(rows)
                check_size((row, len(names)), self.num_bytes, "the table")

    def place(self, row: int, column: int) -> str:
        """The row, counted from 0, and the name of the column."""
        return f"row {row}, column {self.names[column]}"

    def _cells(self, array: Any, first_row: int, column: int) -> Column:  # noqa: ANN401  # pyarrow is untyped
        pyarrow, _ = import_pyarrow()
        types = pyarrow.types
        if array.null_count:
            row = first_row + int(np.argmax(np.array(array.is_null().to_pylist())))
            raise InputError(f"{self.place(row, column)} is null: expected a value")
        if types.is_list(array.type) or types.is_large_list(array.type) or types.is_fixed_size_list(array.type):
            return self._lists(array, first_row, column)
        if types.is_integer(array.type) or types.is_floating(array.type):
            numbers = np.asarray(array.to_numpy(zero_copy_only=False))
            if numbers.dtype.kind == "f" and np.isnan(numbers).any():  # also what programs write for no value
                row = first_row + int(np.argmax(np.isnan(numbers)))
                raise InputError(f"{self.place(row, column)} = nan: expected a finite number >= 0")
            return numbers
        return np.array(array.to_pylist(), dtype=object)

    def _lists(self, array: Any, first_row: int, column: int) -> Column:  # noqa: ANN401  # pyarrow is untyped
        flat = array.flatten()
        sizes = np.array([len(cell) for cell in array])
        wrong = sizes != (sizes[0] if len(sizes) else 0)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise InputError(f"{self.place(first_row + at, column)} has {sizes[at]} ids: expected {sizes[0]}")
        if flat.null_count:
            raise InputError(f"{self.place(first_row, column)}: a list holds nulls")
        numbers = np.asarray(flat.to_numpy(zero_copy_only=False))
        return numbers.reshape(len(sizes), -1) if len(sizes) and sizes[0] else np.zeros((len(sizes), 0), dtype=np.int64)


def _open(path: Path) -> ParquetTable:
    with parquet_file(path) as file:
        names = tuple(file.schema_arrow.names)
    return ParquetTable(path, names)
