"""Reads loads as CSV: a matrix of L rows x E columns, or a long form with the header window,layer,expert,tokens.

A matrix may have a header row, of names or after a first column ``layer``, which may be without a name as pandas writes
it. The column ``window`` of a long form may be missing.
"""

import csv
import math
from pathlib import Path

import numpy as np

from eplb_traces.errors import InputError, naming_place
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.files.long_form import LONG_FORM_COLUMNS, load_from_long_form
from eplb_traces.readers.dialect import Reading, ReadOptions, first_bytes

SUFFIXES: tuple[str, ...] = (".csv",)
RECOGNISED_BY = "text with commas"
BECOMES = "load"
REFUSES = "ragged rows"

Lines = list[tuple[int, list[str]]]


def recognises(path: Path) -> bool:
    """Take text whose first line has a comma and no JSON bracket for CSV."""
    first_line = first_bytes(path).split(b"\n")[0].strip()
    return b"," in first_line and b"\0" not in first_line and first_line[:1] not in (b"{", b"[")


def read(path: Path, options: ReadOptions) -> Reading:
    """Read a matrix as one window, or a long form."""
    del options
    return Reading(content=_load(path), form="CSV")


def _load(path: Path) -> ExpertLoad:
    lines = _lines(path)
    header = [cell.strip().lower() for cell in lines[0][1]]
    if set(LONG_FORM_COLUMNS[1:]) <= set(header):
        return _long_form(header, lines[1:])
    has_layer_column = header[0] in ("", "layer") and len(header) > 1
    if has_layer_column or not any(_is_number(cell) for cell in header):  # a single word among numbers is no header
        if len(lines) == 1:
            raise InputError("the file has a header and no rows")
        _check_length(lines[1], len(header))
        lines = [(number, cells[1:] if has_layer_column else cells) for number, cells in lines[1:]]
    return ExpertLoad(_matrix(lines))


def _lines(path: Path) -> Lines:
    """Read (line number, cells) of every line that is not blank."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"not a CSV file: {error}") from error
    if not lines:
        raise InputError("the file is empty")
    return lines


def _matrix(lines: Lines) -> np.ndarray:
    num_experts = len(lines[0][1])
    for line in lines:
        _check_length(line, num_experts)
    return np.array([[_count(cell, number, column) for column, cell in enumerate(cells)] for number, cells in lines])


def _long_form(header: list[str], lines: Lines) -> ExpertLoad:
    unknown = [name for name in header if name not in LONG_FORM_COLUMNS]
    if unknown or len(set(header)) < len(header):
        raise InputError(f"header {','.join(header)}: expected {','.join(LONG_FORM_COLUMNS)}")
    for line in lines:
        _check_length(line, len(header))
    columns = {
        name: np.array([_count(cells[i], number, i) for number, cells in lines]) for i, name in enumerate(header)
    }
    columns.setdefault("window", np.zeros(len(lines)))
    with naming_place("after the header"):
        return load_from_long_form(columns, None)


def _check_length(line: tuple[int, list[str]], expected: int) -> None:
    number, cells = line
    if len(cells) != expected:
        raise InputError(f"line {number} has {len(cells)} cells: expected {expected}")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _count(cell: str, line: int, column: int) -> float:
    value = float(cell) if _is_number(cell) else math.nan
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"line {line}, column {column + 1} = {cell!r}: expected a finite number >= 0")
    return value
