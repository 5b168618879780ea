"""Reads SGLang's load as JSON: ``{"logical_count": [layers][E]}`` or ``[steps][layers][E]``, other keys ignored.

The dialect is that of SGLang's ``--init-expert-location`` (sglang 0.5.23, srt/eplb/expert_location.py) and of the files
attached to sgl-project/sglang#6017.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.files.limits import LARGEST_EXACT
from eplb_traces.readers.dialect import Reading, ReadOptions
from eplb_traces.readers.json_fields import beginning, json_document
from eplb_traces.readers.sglang_counts import reading_of_counts

SUFFIXES: tuple[str, ...] = (".json",)
RECOGNISED_BY = "an object with the key logical_count"
BECOMES = "load, one window a step"
REFUSES = "ragged or non-numeric counts; layers without tokens that do not look like dense layers"
KEY = "logical_count"


def recognises(path: Path) -> bool:
    """Take anything that begins like a JSON object with our key in sight."""
    head = beginning(path)
    return head.startswith("{") and KEY in head


def read(path: Path, options: ReadOptions) -> Reading:
    """Read counts, one window a step."""
    return reading_of_counts(_counts(json_document(path)), options, "SGLang logical_count")


def _counts(document: object) -> NDArray[np.float64]:
    """Return [layers, E] or [steps, layers, E] as float64."""
    if not isinstance(document, dict):
        raise InputError(f"$ is a {_kind(document)}: expected an object with the key {KEY!r}")
    if KEY not in document:
        raise InputError(f"$ has the keys {sorted(document)}: expected {KEY!r}")
    counts = document[KEY]
    place = f"$.{KEY}"
    depth = _depth(counts, place)
    matrices = counts if depth == 3 else [counts]
    places = [f"{place}[{step}]" for step in range(len(counts))] if depth == 3 else [place]
    num_layers, num_experts = len(matrices[0]), len(matrices[0][0])
    for matrix, of_matrix in zip(matrices, places, strict=True):
        _check_list(matrix, num_layers, of_matrix)
        for layer, row in enumerate(matrix):
            _check_row(row, num_experts, f"{of_matrix}[{layer}]")
    try:
        array = np.array(matrices, dtype=np.float64)
    except OverflowError as error:
        raise InputError(f"{place}: {error}") from error
    if array.max() >= LARGEST_EXACT:
        _check_exact(matrices, places)
    return array


def _check_exact(matrices: list[list[list[float]]], places: list[str]) -> None:
    """Refuse an integer that float64 does not hold."""
    for matrix, place in zip(matrices, places, strict=True):
        for layer, row in enumerate(matrix):
            for expert, value in enumerate(row):
                if isinstance(value, int) and int(float(value)) != value:
                    raise InputError(f"{place}[{layer}][{expert}] = {value}: expected at most 2^53")


def _depth(counts: object, place: str) -> int:
    """Return how many lists lie in each other at the very first entry: 2 or 3."""
    depth = 0
    while isinstance(counts, list):
        if not counts:
            raise InputError(f"{place} is an empty list")
        counts = counts[0]
        place += "[0]"
        depth += 1
    if depth in (2, 3):
        return depth
    raise InputError(f"{place} lies in {depth} lists: expected [layers][experts] or [steps][layers][experts]")


def _check_list(value: object, length: int, place: str) -> None:
    if not isinstance(value, list):
        raise InputError(f"{place} is a {_kind(value)}: expected a list of {length}")
    if len(value) != length:
        raise InputError(f"{place} has {len(value)} entries: expected {length}")


def _check_row(row: list[object], num_experts: int, place: str) -> None:
    _check_list(row, num_experts, place)
    if {type(value) for value in row} <= {int, float}:
        return
    expert, value = next((i, value) for i, value in enumerate(row) if type(value) not in (int, float))
    raise InputError(f"{place}[{expert}] is a {_kind(value)}: expected a number")


def _kind(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
