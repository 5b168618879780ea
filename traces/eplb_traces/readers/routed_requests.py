"""Reads the experts that an engine returns with a request, as arrays and as text.

vLLM and SGLang return ids [tokens, hidden layers, K] from a buffer that starts as zeros: a row of a dense layer stays
zero, and so does a token that was not computed again because its prefix was cached. K zeros are no choice for K > 1.
"""

import base64
import binascii
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError, naming_place
from eplb_traces.model_shape import ModelShape
from eplb_traces.readers.dialect import ReadOptions, required_num_experts
from eplb_traces.readers.layers import MoeRows, hidden_layer_rows
from eplb_traces.routing_trace import RoutingTrace, TokenBatch

KEY = "routed_experts"
HEAD_BYTES = 1 << 20
"""In which the first of these strings is looked for."""
NPY_IN_BASE64 = b"k05VTVBZ"
"""How the base64 of a .npy begins."""

_logger = logging.getLogger("eplb")


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
    found = list(_strings(text))
    if not found:
        raise InputError(f"no string under a key {KEY!r}")
    decoded = []
    for place, string in found:
        try:
            decoded.append((place, base64.b64decode(string, validate=True)))
        except (binascii.Error, ValueError) as error:
            raise InputError(f"{place}: not base64: {error}") from error
    return decoded


def trace_of_requests(requests: Sequence[tuple[str, NDArray[Any]]], options: ReadOptions) -> RoutingTrace:
    """Make a trace of (place, ids [tokens, rows, K]): request n is the nth array, a token's step its place in it.

    Parameters
    ----------
    requests
        All with the same rows and K; a row is a hidden layer.
    options
        `num_experts`, and which rows are MoE layers where zeros do not say it.

    Raises
    ------
    InputError
        Naming the array, token and layer that is wrong; also if there is no token.
    """
    first = requests[0][1]
    for place, ids in requests:
        with naming_place(place):
            _check(ids, first)
    silent = [_silent(ids) for _, ids in requests]
    layers = hidden_layer_rows(np.logical_and.reduce([of.all(axis=0) for of in silent]), options)
    shape, rows = _shape(layers, first.shape[2], options), layers.rows
    batches = []
    num_left_out = 0
    for number, ((place, ids), of) in enumerate(zip(requests, silent, strict=True)):
        computed = ~of[:, rows].all(axis=1)
        num_left_out += int((~computed).sum())
        steps = np.flatnonzero(computed)
        with naming_place(place):
            batches.append(TokenBatch(shape, ids[computed][:, rows], steps, np.full_like(steps, number)))
    if num_left_out:
        _logger.warning("%d tokens have no choice in any layer, as where a prefix was cached: left out", num_left_out)
    return RoutingTrace(shape, batches)


def _strings(text: str) -> Iterator[tuple[str, str]]:
    """Yield (place, base64 text). Lines end with a line feed alone: JSON strings may hold Unicode's line separators."""
    if text[0] not in "{[":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"line {number}", line.strip().strip('"')
        return
    try:
        documents = [("$", json.loads(text))]
    except RecursionError as error:
        raise InputError(f"not JSON: {error}") from error
    except ValueError:
        documents = [(f"line {number}", _parsed(line, number)) for number, line in enumerate(text.split("\n"), 1)]
    for place, document in documents:
        yield from _under_key(document, place)


def _parsed(line: str, number: int) -> object:
    try:
        return json.loads(line) if line.strip() else None
    except (ValueError, RecursionError) as error:
        raise InputError(f"line {number}: not JSON: {error}") from error


def _under_key(document: object, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(document, dict):
        for key, value in document.items():
            if key == KEY and isinstance(value, str):
                yield f"{place}.{key}", value
            else:
                yield from _under_key(value, f"{place}.{key}")
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from _under_key(value, f"{place}[{index}]")


def _check(ids: NDArray[Any], first: NDArray[Any]) -> None:
    if ids.ndim != 3 or ids.dtype.kind not in "iu" or 0 in ids.shape:
        raise InputError(f"{ids.dtype} of shape {ids.shape}: expected integers [tokens, layers, top-k]")
    if ids.shape[1:] != first.shape[1:]:
        raise InputError(f"has layers and top-k {ids.shape[1:]}: expected {first.shape[1:]} as in the first request")


def _silent(ids: NDArray[Any]) -> NDArray[np.bool_]:
    """Return [tokens, rows]: True where nothing was chosen."""
    largest_nothing = 0 if ids.shape[2] > 1 else -1
    return np.all(ids <= largest_nothing, axis=2)


def _shape(layers: MoeRows, top_k: int, options: ReadOptions) -> ModelShape:
    """The model behind the rows that hold choices."""
    return ModelShape(
        len(layers.rows),
        required_num_experts(options),
        top_k,
        moe_layer_ids=layers.moe_layer_ids,
        num_hidden_layers=layers.num_hidden_layers,
    )
