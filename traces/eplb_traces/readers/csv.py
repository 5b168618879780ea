"""Reads tables as text: separated by commas, tabs, semicolons or white space, also compressed with gzip.

pandas parses the cells. This file decides the separator and whether there is a header; `table_columns` decides what
the columns mean.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal, cast, final

from eplb_traces.errors import InputError
from eplb_traces.files.limits import check_size, size_of
from eplb_traces.readers.dialect import Reading, ReadOptions, first_bytes
from eplb_traces.readers.table import Column
from eplb_traces.readers.table_columns import understand
from eplb_traces.readers.table_forms import read_table

SUFFIXES: tuple[str, ...] = (".csv", ".tsv")
RECOGNISED_BY = "text with commas, tabs or numbers between spaces"
BECOMES = "load (rows of pairs or of layers), trace (rows of tokens)"
REFUSES = "unknown headers, ragged rows, totals, text or negative numbers in cells, repeated rows"

_CELLS_PER_CHUNK = 1 << 20
_MOST_ROWS_PER_CHUNK = 1 << 17
_BYTES_OF_BEGINNING = 1 << 16
_PART_OF_A_DUMP = re.compile(r"activation_counts_recordstep_.*|(prefill|decode)_\d+\.csv")
_GROUPED = re.compile(r"[1-9]\d{0,2}(\.\d{3})+")
_BELOW_THOUSAND = re.compile(r"\d{1,3}")
_MOST_INDEX_COLUMNS = 3  # window or step, layer, rank
_CELLS_TO_LOOK_AT = 1 << 16
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")


def recognises(path: Path) -> bool:
    """Take text for a table whose first line has a comma, a tab or numbers between spaces, and no JSON bracket."""
    lines = (line.strip() for line in _first_bytes(path).split(b"\n"))
    first = next((line for line in lines if line and not line.startswith(b"#")), b"")
    has_separator = b"," in first or b"\t" in first or re.fullmatch(rb"[\d.eE+\-]+( +[\d.eE+\-]+)+", first) is not None
    return has_separator and b"\0" not in first and first[:1] not in (b"{", b"[")


def read(path: Path, options: ReadOptions) -> Reading:
    """Read a table of any known form."""
    if _PART_OF_A_DUMP.fullmatch(path.name):
        raise InputError("one file of a dump with a file for each rank: give the folder")
    try:
        return read_table(_open(path), options)
    except (UnicodeDecodeError, EOFError, csv.Error, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"not a table in UTF-8: {error}") from error


@final
@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table in a text file; every reading opens the file again.

    Parameters
    ----------
    path
        The file.
    separator
        One character, or a regular expression for white space.
    num_skipped
        Lines before the first row.
    names, num_columns, notes
        As in `Table`.
    has_empty_end
        Every row ends with a separator: its last cell is empty and not a column.
    has_spaces
        Cells begin with spaces, which are no part of them.
    """

    path: Path
    separator: str
    num_skipped: int
    names: tuple[str, ...] | None
    num_columns: int
    has_empty_end: bool
    has_spaces: bool
    notes: tuple[str, ...] = field(default=())

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return size_of(self.path)

    def chunks(self, columns: Sequence[int]) -> Iterator[list[Column]]:
        """The given columns, some rows at a time."""
        import pandas

        num_cells = self.num_columns + self.has_empty_end
        rows = min(_MOST_ROWS_PER_CHUNK, max(1024, _CELLS_PER_CHUNK // num_cells))
        with _opened(self.path) as file:
            for _ in range(self.num_skipped):
                file.readline()
            is_checked = False
            try:
                with pandas.read_csv(
                    file,
                    sep=self.separator,
                    header=None,
                    chunksize=rows,
                    keep_default_na=False,
                    na_filter=False,
                    skipinitialspace=self.has_spaces,
                    low_memory=False,
                    encoding="utf-8",
                    float_precision=_exact_floats(),
                ) as parts:
                    for part in parts:
                        self._check_width(part.shape[1])
                        first_row = int(part.index[0])
                        check_size((int(part.index[-1]) + 1, self.num_columns), self.num_bytes, "the table")
                        every = [column.to_numpy() for _, column in part.items()]
                        self._check_end(every[-1], first_row)
                        cells = [every[i] for i in columns]
                        fractions = [i for i, of in zip(columns, cells, strict=True) if of.dtype.kind == "f"]
                        if fractions and not is_checked:
                            self._check_points(fractions, len(columns) - len(fractions), first_row)
                            is_checked = True
                        yield cells
            except pandas.errors.EmptyDataError:
                return
            except pandas.errors.ParserError as error:
                raise self._ragged() or InputError(f"not a table: {error}") from error

    def place(self, row: int, column: int) -> str:
        """The line and column of a cell, found by reading the file again."""
        for number, line, cells in self._lines():
            if number == row:
                if len(cells) <= column:
                    return f"line {line} has {len(cells)} cells, expected {self.num_columns}; column {column + 1}"
                break
        else:
            line = row + self.num_skipped + 1
        name = "" if self.names is None else f" ({self.names[column].strip() or 'no name'})"
        return f"line {line}, column {column + 1}{name}"

    def _lines(self) -> Iterator[tuple[int, int, list[str]]]:
        """(row, line, cells) of every row."""
        with _opened(self.path) as file:
            for _ in range(self.num_skipped):
                file.readline()
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            lines = csv.reader(text, delimiter=self.separator) if len(self.separator) == 1 else map(str.split, text)
            row = 0
            for count, cells in enumerate(lines, 1):
                if any(cell.strip() for cell in cells) or len(cells) > 1:
                    line = getattr(lines, "line_num", count)
                    yield row, self.num_skipped + line, cells
                    row += 1

    def _check_width(self, num_cells: int) -> None:
        expected = self.num_columns + self.has_empty_end
        if num_cells != expected:
            raise self._ragged() or InputError(f"rows have {num_cells} cells: expected {expected}")

    def _check_end(self, last: Column, first_row: int) -> None:
        if self.has_empty_end and (last.dtype.kind in "iufb" or (last != "").any()):
            row = 0 if last.dtype.kind in "iufb" else int((last != "").argmax())
            raise InputError(f"line {self._line(first_row + row)} has a cell too many: expected {self.num_columns}")

    def _check_points(self, columns: Sequence[int], num_others: int, first_row: int) -> None:
        """Refuse columns with points that may group thousands: all between semicolons, others by their numbers.

        `num_others` columns that are read have no points.
        """
        if self.separator == ";":
            raise InputError(
                f"{self.place(first_row, columns[0])} or below: a number with a point between semicolons may be a "
                "fraction or a thousand: write commas between cells, and a decimal point"
            )
        rows = islice(self._lines(), first_row, first_row + max(1, _CELLS_TO_LOOK_AT // len(columns)))
        cells = [row[i].strip() for _, _, row in rows for i in columns if i < len(row)]
        with_point = [cell for cell in cells if "." in cell]
        ends = any(cell.endswith("0") for cell in with_point)  # which no program writes beside numbers without a point
        is_grouped = ends and all(map(_GROUPED.fullmatch, with_point))
        if is_grouped and (num_others > _MOST_INDEX_COLUMNS or any(map(_BELOW_THOUSAND.fullmatch, cells))):
            raise InputError(
                f"{self.place(first_row, columns[0])} or below: numbers such as {with_point[0]} have a point before "
                "three digits, and others none: write numbers without thousands separator, or a "
                "decimal point in all of them"
            )

    def _line(self, row: int) -> int:
        return next((line for number, line, _ in self._lines() if number == row), 0)

    def _ragged(self) -> InputError | None:
        """The error for the first row with another number of cells, if there is one."""
        expected = self.num_columns + self.has_empty_end
        for _, line, cells in self._lines():
            if len(cells) != expected:
                return InputError(f"line {line} has {len(cells)} cells: expected {expected}")
        return None


def _open(path: Path) -> TextTable:
    """Find separator, header and first row."""
    num_skipped, comments, first = _first_line(path)
    separator = _separator(first)
    cells = _cells(first, separator)
    if _is_header(cells):
        return _table(path, separator, num_skipped + 1, cells, _left_out(len(comments)))
    named = _cells(comments[-1].lstrip("#"), separator) if comments else []
    if len(cells) > 1 and len(named) == len(cells) and _is_header(named):
        notes = ("the header is a comment line", *_left_out(len(comments) - 1))
        return _table(path, separator, num_skipped, named, notes)
    end = len(cells) - 1
    wrong = next((i for i, cell in enumerate(cells) if not _NUMBER.fullmatch(cell) and (cell or i != end)), None)
    if wrong is not None:
        raise InputError(
            f"line {num_skipped + 1}, column {wrong + 1} = {cells[wrong]!r}: expected a finite number >= 0, or a "
            "header without counts"
        )
    return _table(path, separator, num_skipped, None, _left_out(len(comments)))


def _left_out(num_comments: int) -> tuple[str, ...]:
    return (f"{num_comments} comment lines left out",) if num_comments else ()


def _table(path: Path, separator: str, num_skipped: int, names: list[str] | None, notes: tuple[str, ...]) -> TextTable:
    _, _, first = _first_line(path, num_skipped)
    row = _cells(first, separator) if first else []
    width = len(row if names is None else names)
    has_end = width > 1 and len(row) == width and row[-1] == "" and (names is None or names[-1] == "")
    return TextTable(
        path=path,
        separator=separator,
        num_skipped=num_skipped,
        names=None if names is None else tuple(names[: width - has_end]),
        num_columns=width - has_end,
        has_empty_end=has_end,
        has_spaces=_has_spaces(path, separator),
        notes=(*notes, *(("an empty last column left out",) if has_end else ())),
    )


def _first_line(path: Path, num_skipped: int = 0) -> tuple[int, list[str], str]:
    """How many lines lie before the first that is neither blank nor a comment, the comments, and that line."""
    comments: list[str] = []
    with _opened(path) as file:
        for count, raw in enumerate(file):
            if count < num_skipped:
                continue
            if b"\0" in raw:
                raise InputError("not a table in UTF-8: the first line has zero bytes")
            line = raw.decode().rstrip("\r\n")
            if "\r" in line:
                raise InputError("lines end with a carriage return alone: expected a line feed")
            if line.lstrip().startswith("#"):
                comments.append(line.strip())
            elif line.strip():
                return count, comments, line
    if num_skipped:
        return num_skipped, comments, ""
    raise InputError("the file is empty")


def _separator(line: str) -> str:
    return next((mark for mark in ("\t", ";", ",") if mark in line), r"\s+")


def _has_spaces(path: Path, separator: str) -> bool:
    """Whether a cell in the beginning of a file begins with a space; only then does pandas look for them, slowly."""
    with _opened(path) as file:
        head = file.read(_BYTES_OF_BEGINNING)
    return re.search(rb"(^|" + separator.encode() + rb") ", head, re.MULTILINE) is not None


def _cells(line: str, separator: str) -> list[str]:
    if len(separator) > 1:
        return line.split()
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]
    except csv.Error as error:
        raise InputError(f"not a table: {error}") from error


def _is_header(cells: list[str]) -> bool:
    """Whether the first line names columns: 0, 1, .. E-1, words without a number, or a known form with numbers."""
    words = [cell for cell in cells if not _NUMBER.fullmatch(cell)]
    if not words:
        return len(cells) > 1 and cells == [str(i) for i in range(len(cells))]
    if len(words) == len(cells):
        return any(words)
    try:
        understand(cells)
    except InputError:  # still a header if it begins with a word: then the refusal shows it
        return cells[0] != "" and not re.search(r"\d", cells[0])
    return True


def _exact_floats() -> Literal["round_trip"] | None:
    """Pandas's option for floats without a rounding error; from 3.1 on it is the default and the option is gone."""
    import pandas

    major, minor = (int(part) for part in pandas.__version__.split(".")[:2])
    return None if (major, minor) >= (3, 1) else "round_trip"


def _opened(path: Path) -> BinaryIO:
    """The bytes of a file after a byte order mark."""
    file = cast("BinaryIO", gzip.GzipFile(path)) if _is_gzip(path) else path.open("rb")
    if file.read(3) != b"\xef\xbb\xbf":
        file.seek(0)
    return file


def _is_gzip(path: Path) -> bool:
    return first_bytes(path, 2) == b"\x1f\x8b"


def _first_bytes(path: Path) -> bytes:
    if path.is_dir() or not _is_gzip(path):
        return first_bytes(path)
    try:
        with gzip.GzipFile(path) as file:
            return file.read(4096)
    except (OSError, EOFError, zlib.error):
        return b""
