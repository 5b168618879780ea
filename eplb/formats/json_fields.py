"""Parses JSON text and narrows its values to types; every error names the file and the JSON path.

A `place` is a file and a JSON path, as in ``plan.json: $.layers[3].status``.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError, InputError
from eplb_traces.files.limits import check_regular
from eplb_traces.files.remote import local_copy

_Number = TypeVar("_Number", np.int64, np.float64)


@contextmanager
def error_context(place: str | Path) -> Iterator[None]:
    """Turn an `InputError` of the block into a `FormatError` that begins with the place."""
    try:
        yield
    except FormatError:
        raise
    except InputError as error:
        raise FormatError(f"{place}: {error}") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises
    ------
    FormatError
        If it cannot be read, or is a pipe or a device.
    """
    try:
        local = local_copy(path)
        with error_context(path):
            check_regular(local)
        return local.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_text(path: Path) -> str:
    """The content of a UTF-8 file.

    Raises
    ------
    FormatError
        If it cannot be read or is not UTF-8.
    """
    return decode_utf8(read_bytes(path), path)


def decode_utf8(content: bytes, path: Path) -> str:
    """The text in the bytes of a file.

    Raises
    ------
    FormatError
        If they are not UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: byte {error.start} is not UTF-8: expected a text file") from error


def load_json(path: Path) -> object:
    """The JSON value in a file; see `parse_json`."""
    return parse_json(read_text(path), str(path))


def parse_json(text: str, place: str) -> object:
    """The JSON value in a text. Duplicate keys, NaN and infinities are refused; Python's own parser accepts them.

    Raises
    ------
    FormatError
        With line and column of what is not JSON.
    """
    try:
        value: object = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise FormatError(f"{place}: not JSON, line {error.lineno} column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{place}: not JSON: {error}") from error
    return value


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        duplicate = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {duplicate!r} is given twice in one object")
    return fields


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def as_object(value: object, place: str) -> dict[str, object]:
    """Narrow to an object with any keys."""
    if not isinstance(value, dict):
        raise FormatError(f"{place} is {_kind(value)}: expected an object")
    return value


def as_fields(value: object, place: str, required: tuple[str, ...]) -> dict[str, object]:
    """Narrow to an object with exactly the keys `required`."""
    fields = as_object(value, place)
    for key in required:
        if key not in fields:
            raise FormatError(f"{place}: key {key!r} is missing")
    for key in fields:
        if key not in required:
            raise FormatError(f"{place}: unknown key {key!r}, expected only {', '.join(required)}")
    return fields


def as_list(value: object, place: str) -> list[object]:
    """Narrow to a list."""
    if not isinstance(value, list):
        raise FormatError(f"{place} is {_kind(value)}: expected a list")
    return value


def as_text(value: object, place: str) -> str:
    """Narrow to a string."""
    if not isinstance(value, str):
        raise FormatError(f"{place} is {_kind(value)}: expected a string")
    return value


def as_int(value: object, place: str, minimum: int = 0) -> int:
    """Narrow to an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise FormatError(f"{place} = {_short(value)}: expected an integer >= {minimum}")
    return value


def as_number(value: object, place: str) -> float:
    """Narrow to a finite number >= 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0 or not _is_finite(value):
        raise FormatError(f"{place} = {_short(value)}: expected a finite number >= 0")
    return float(value)


def as_int_row(value: object, place: str) -> NDArray[np.int64]:
    """Narrow to a list of at least one integer, [P] int64."""
    row = as_list(value, place)
    if not row:
        raise FormatError(f"{place} is empty: expected at least one integer")
    if set(map(type, row)) != {int}:
        index = next(i for i, item in enumerate(row) if type(item) is not int)
        raise FormatError(f"{place}[{index}] = {_short(row[index])}: expected an integer")
    try:
        return np.array(row, dtype=np.int64)
    except OverflowError as error:
        index = next(i for i, item in enumerate(row) if isinstance(item, int) and not -(2**63) <= item < 2**63)
        raise FormatError(f"{place}[{index}]: expected an integer of 64 bits") from error


def as_number_row(value: object, place: str) -> NDArray[np.float64]:
    """Narrow to a list of finite numbers >= 0, [P] float64."""
    row = as_list(value, place)
    if set(map(type, row)) <= {float}:
        numbers = np.array(row, dtype=np.float64)
        if ((numbers >= 0) & (numbers < np.inf)).all():
            return numbers
    return np.array([as_number(item, f"{place}[{i}]") for i, item in enumerate(row)], dtype=np.float64)


def as_int_rows(value: object, place: str) -> NDArray[np.int64]:
    """Narrow to a list of lists of integers, all of one length, [L, P] int64."""
    rows = as_list(value, place)
    if not rows:
        raise FormatError(f"{place} is empty: expected one list of integers a layer")
    return stack_rows({f"{place}[{i}]": as_int_row(row, f"{place}[{i}]") for i, row in enumerate(rows)})


def stack_rows(row_of_place: Mapping[str, NDArray[_Number]]) -> NDArray[_Number]:
    """[L, P] of rows [P], each under its place; a row whose length differs from the first one's is an error there."""
    first_place, first = next(iter(row_of_place.items()))
    for place, row in row_of_place.items():
        if row.size != first.size:
            raise FormatError(f"{place} has {row.size} entries: expected {first.size}, as many as {first_place}")
    return np.stack(list(row_of_place.values()))


def emit_json(fields: Mapping[str, object]) -> bytes:
    """JSON text of an object: one key a line; a list of lists, objects or strings has one entry a line."""
    lines = [f"{json.dumps(key)}: {_emit_value(value)}" for key, value in fields.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


def _emit_value(value: object) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list | dict | str):
        return "[\n" + ",\n".join(_compact(item) for item in value) + "\n]"
    return _compact(value)


def _compact(value: object) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise FormatError(f"{_short(value)} holds a number that JSON cannot hold: expected finite numbers") from error


def _is_finite(value: float) -> bool:
    try:
        return isfinite(value)
    except OverflowError:  # an integer beyond the floats
        return False


def _kind(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def _short(value: object) -> str:
    if isinstance(value, list | dict):  # not its text: YAML aliases make that longer than memory
        return _kind(value)
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of more than 30 digits"
    return text if len(text) <= 40 else f"{text[:37]}..."
