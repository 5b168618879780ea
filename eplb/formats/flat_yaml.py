"""Parses the subset of YAML that TensorRT-LLM's placement files use; other YAML is refused with its line number.

Three known keys, plain integers, and under ``initial_global_assignments`` one list of integers a layer, in brackets
(over several lines if need be) or one ``- id`` a line, as both the engine's script and PyYAML write them. Comments
are skipped.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError
from eplb.formats.json_fields import stack_rows
from eplb.formats.source_file import SourceFile

_ASSIGNMENTS = "initial_global_assignments"
_NUMBERS = ("num_slots", "layer_updates_per_iter")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")  # 010 would be octal to YAML 1.1
_KEY_LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*|[0-9]{1,9}):(?: +(.*))?")
_INTEGER_LIST = re.compile(rf"\[\s*{_INTEGER.pattern}(?:\s*,\s*{_INTEGER.pattern})*\s*\]")


@final
@dataclass(frozen=True)
class _Line:
    number: int
    indent: int
    text: str


def parse_assignments(source: SourceFile) -> tuple[tuple[int, ...], NDArray[np.int64]]:
    """Layer ids, ascending, and the rows [L, P] under them, expert ids not yet checked.

    Raises
    ------
    FormatError
        With the line of anything that is not this subset of YAML, an unknown or missing key, or a list that does not
        have `num_slots` entries.
    """
    path, lines = source.path, _content_lines(source)
    numbers: dict[str, int] = {}
    row_of_layer: dict[int, NDArray[np.int64]] = {}
    position = 0
    while position < len(lines):
        line = lines[position]
        key, value = _split_key(path, line)
        if line.indent or key in numbers or (key == _ASSIGNMENTS and row_of_layer):
            raise _refusal(path, line, f"one of {_ASSIGNMENTS}, {', '.join(_NUMBERS)}, each once, not indented")
        position += 1
        if key in _NUMBERS:
            numbers[key] = _integer(path, line, value)
        elif key == _ASSIGNMENTS and not value:
            start = position
            while position < len(lines) and (lines[position].indent or lines[position].text.startswith("]")):
                position += 1
            row_of_layer = _layers(path, line, lines[start:position])
        else:
            raise FormatError(
                f"{path}: line {line.number}: {line.text[:60]!r}: TensorRT-LLM refuses keys other than "
                f"{_ASSIGNMENTS}, {', '.join(_NUMBERS)}; expected one of these"
            )
    return _checked(path, numbers, row_of_layer)


def _checked(
    path: Path, numbers: dict[str, int], row_of_layer: dict[int, NDArray[np.int64]]
) -> tuple[tuple[int, ...], NDArray[np.int64]]:
    if "num_slots" not in numbers:
        raise FormatError(f"{path}: key 'num_slots' is missing")
    if not row_of_layer:
        raise FormatError(f"{path}: key {_ASSIGNMENTS!r} is missing: the file holds no placement")
    for key, number in numbers.items():
        if number < 0:
            raise FormatError(f"{path}: {key} = {number}: expected an integer >= 0")
    for layer, row in row_of_layer.items():
        if row.size != numbers["num_slots"]:
            raise FormatError(
                f"{path}: layer {layer} has {row.size} slots: expected num_slots = {numbers['num_slots']}"
            )
    layer_ids = tuple(sorted(row_of_layer))
    return layer_ids, stack_rows({f"{path}: layer {layer}": row_of_layer[layer] for layer in layer_ids})


def _content_lines(source: SourceFile) -> list[_Line]:
    """Lines that are not empty, without comments."""
    lines = []
    for number, line in enumerate(source.text.split("\n"), start=1):
        text = line.split("#")[0].rstrip()
        if "\t" in text:
            raise FormatError(f"{source.path}: line {number}: a tab: expected spaces")
        if text:
            lines.append(_Line(number, len(text) - len(text.lstrip()), text.lstrip()))
    return lines


def _layers(path: Path, head: _Line, lines: list[_Line]) -> dict[int, NDArray[np.int64]]:
    """Rows of the lines below ``initial_global_assignments:``, by layer id."""
    row_of_layer: dict[int, NDArray[np.int64]] = {}
    position = 0
    while position < len(lines):
        line = lines[position]
        key, value = _split_key(path, line)
        if line.indent != lines[0].indent or not key.isdigit() or str(int(key)) != key:
            raise _refusal(path, line, "the absolute index of a layer before its list")
        if int(key) in row_of_layer:
            raise _refusal(path, line, f"layer {key} only once")
        start = position
        position += 1
        while position < len(lines) and not _KEY_LINE.fullmatch(lines[position].text):
            position += 1
        row_of_layer[int(key)] = _row(path, line, value, lines[start + 1 : position])
    if not row_of_layer:
        raise _refusal(path, head, "a list of expert ids under each layer's index")
    return row_of_layer


def _row(path: Path, line: _Line, value: str, rest: list[_Line]) -> NDArray[np.int64]:
    """[P] of one layer: the value beside its key and the lines below."""
    if value:
        text = " ".join([value, *(below.text for below in rest)])
        if not _INTEGER_LIST.fullmatch(text):
            raise _refusal(path, line, "a list of integers in brackets")
        return np.array(list(map(int, text[1:-1].split(","))), dtype=np.int64)
    if not rest:
        raise _refusal(path, line, "a list of integers after the layer")
    for below in rest:
        if not below.text.startswith("- ") or below.indent < line.indent or below.indent != rest[0].indent:
            raise _refusal(path, below, "'- ' and an integer")
    return np.array([_integer(path, below, below.text[2:].strip()) for below in rest], dtype=np.int64)


def _split_key(path: Path, line: _Line) -> tuple[str, str]:
    match = _KEY_LINE.fullmatch(line.text)
    if match is None:
        raise _refusal(path, line, "'key: value'")
    return match.group(1), (match.group(2) or "").strip()


def _integer(path: Path, line: _Line, text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise _refusal(path, line, "an integer")
    return int(text)


def _refusal(path: Path, line: _Line, expected: str) -> FormatError:
    text = line.text if len(line.text) <= 60 else f"{line.text[:57]}..."
    return FormatError(f"{path}: line {line.number}: {text!r}: expected {expected}")
