"""Finds fields of JSON records under the names that tools write, and checks them."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError, naming_place
from eplb_traces.files.limits import LARGEST_EXACT

_HEAD_BYTES = 1 << 16
_DIGITS = re.compile(r"\d+")
_MOST_DIGITS = 16


def beginning(path: Path) -> str:
    """The first 64 KiB of a text, without white space before it; nothing for a folder or other bytes."""
    if path.is_dir():
        return ""
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES).decode("utf-8-sig", errors="replace").lstrip()


def parsed_json(text: str | bytes) -> object:
    """Parse a JSON text.

    Raises
    ------
    InputError
        If it is not JSON, or an object has a key twice, of which Python's own parser keeps the last.
    """
    try:
        value: object = json.loads(text, object_pairs_hook=unique_keys)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from error
    return value


def unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object of these members, for the parser of the standard library; InputError for a key that is there twice."""
    members = dict(pairs)
    if len(members) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise InputError(f"the key {key!r} is there twice in one object")
    return members


def json_document(path: Path) -> object:
    """Parse a file of one JSON document; errors as in `parsed_json`."""
    return parsed_json(path.read_bytes())


def json_records(path: Path) -> Iterator[tuple[str, object]]:
    """Yield (place, value) of every line, or of every entry of a list, or of one document that fills several lines."""
    if not beginning(path).startswith("[") and _has_lines(path):
        yield from _lines(path)
        return
    document = json_document(path)
    if isinstance(document, list):
        yield from ((f"$[{i}]", value) for i, value in enumerate(document))
    else:
        yield "$", document


def field_of(record: Mapping[str, object], names: tuple[str, ...]) -> str | None:
    """The name of `names` that a record has.

    Raises
    ------
    InputError
        If it has several.
    """
    found = [name for name in names if name in record]
    if len(found) > 1:
        raise InputError(f"has {' and '.join(found)}: expected one of them")
    return found[0] if found else None


def integer_of(value: object, name: str) -> int:
    """An integer >= 0, or a text with one number in it, as ``model.layers.10.mlp``."""
    if isinstance(value, str):
        numbers = _DIGITS.findall(value)
        if len(numbers) == 1 and len(numbers[0]) < _MOST_DIGITS:
            return int(numbers[0])
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_EXACT:
        raise InputError(f"{name} = {repr(value)[:80]}: expected an integer >= 0, at most 2^53")
    return value


def nested_array(value: object, place: str) -> NDArray[Any]:
    """Lists of lists of numbers as an array.

    Raises
    ------
    InputError
        If they are ragged, or hold anything else.
    """
    try:
        array = np.array(value)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{place} is ragged: expected lists of one length ({error})") from error
    if array.dtype.kind not in "iuf":
        raise InputError(f"{place} holds {array.dtype}: expected numbers")
    return array


def _has_lines(path: Path) -> bool:
    """Whether the first line that is not blank is a whole JSON value, and not the last."""
    with path.open("rb") as file:
        lines = (line for line in file if line.strip())
        first, second = next(lines, b""), next(lines, b"")
    return bool(second) and _is_json(first)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(path: Path) -> Iterator[tuple[str, object]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            with naming_place(f"line {number}"):
                value = parsed_json(line)
            yield f"line {number}", value
