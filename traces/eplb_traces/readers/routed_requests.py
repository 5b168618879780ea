"""Reads the experts that an engine returns with a request, as arrays and as text.

vLLM and SGLang return ids [tokens, hidden layers, K] from a buffer that starts as zeros: a row of a dense layer stays
zero, and so does a token that was not computed again because its prefix was cached. K zeros are no choice for K > 1.
"""

import base64
import binascii
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError, naming_place
from eplb_traces.readers.choices import Choices, reading_of_choices
from eplb_traces.readers.dialect import Reading, ReadOptions
from eplb_traces.readers.json_fields import json_records
from eplb_traces.readers.layers import hidden_layer_rows

_Value = TypeVar("_Value")

KEY = "routed_experts"
HEAD_BYTES = 1 << 20
"""In which the first of these strings is looked for."""
NPY_IN_BASE64 = b"k05VTVBZ"
"""How the base64 of a .npy begins."""


def encoded_requests(path: Path) -> list[tuple[str, bytes]]:
    """Decode (place, bytes) of every request in a text: base64 a line, or the engine's JSON answers.

    In JSON every string under a key ``routed_experts`` counts, wherever it lies; one document, or one a line.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"not a text: {error}") from error
    if not text:
        raise InputError("the file is empty")
    found = list(_strings(path, text))
    if not found:
        raise InputError(f"no string under a key {KEY!r}")
    decoded = []
    for place, string in found:
        try:
            decoded.append((place, base64.b64decode(string, validate=True)))
        except (binascii.Error, ValueError) as error:
            raise InputError(f"{place}: not base64: {error}") from error
    return decoded


def reading_of_requests(requests: Sequence[tuple[str, NDArray[Any]]], options: ReadOptions, form: str) -> Reading:
    """Read (place, ids [tokens, rows, K]): request n is the nth array, a token's step its place in it.

    Parameters
    ----------
    requests
        All with the same rows and K; a row is a hidden layer.
    options
        `num_experts`, and which rows are MoE layers where zeros do not say it.
    form
        For the reading.

    Raises
    ------
    InputError
        Naming the array, token and layer that is wrong; also if there is no token.
    """
    first = requests[0][1]
    parts = []
    for number, (place, ids) in enumerate(requests):
        with naming_place(place):
            _check(ids, first)
        steps = np.arange(len(ids))
        parts.append(Choices(place=place, ids=ids, step=steps, request=np.full_like(steps, number)))
    return reading_of_choices(parts, options, form, choose_rows=hidden_layer_rows)


def _strings(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """Yield (place, base64 text). Lines end with a line feed alone: JSON strings may hold Unicode's line separators."""
    if text[0] not in "{[":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"line {number}", line.strip().strip('"')
        return
    for place, document in json_records(path):
        yield from under_key(document, place, str)


def under_key(document: object, place: str, kind: type[_Value]) -> Iterator[tuple[str, _Value]]:
    """Every (place, value) of a kind under the key ``routed_experts``, wherever it lies in a JSON document."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key == KEY and isinstance(value, kind):
                yield f"{place}.{key}", value
            else:
                yield from under_key(value, f"{place}.{key}", kind)
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from under_key(value, f"{place}[{index}]", kind)


def _check(ids: NDArray[Any], first: NDArray[Any]) -> None:
    if ids.ndim != 3 or ids.dtype.kind not in "iu" or 0 in ids.shape:
        raise InputError(f"{ids.dtype} of shape {ids.shape}: expected integers [tokens, layers, top-k]")
    if ids.shape[1:] != first.shape[1:]:
        raise InputError(f"has layers and top-k {ids.shape[1:]}: expected {first.shape[1:]} as in the first request")
