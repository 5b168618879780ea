"""Reads the experts that SGLang returns with a request (``return_routed_experts``, sglang 0.5.23).

``meta_info.routed_experts`` is the base64 of raw little-endian int32, ids (tokens - 1, hidden layers, K) without a
header: nothing in it says layers, K or E, so the caller gives the model's shape. A file is the raw bytes, their base64
(one request a line), or the JSON answers of the server, one or one a line. Only the last is recognised.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError, naming_place
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.model_shape import ModelShape
from eplb_traces.readers.dialect import ReadOptions, first_bytes
from eplb_traces.readers.routed_requests import HEAD_BYTES, KEY, NPY_IN_BASE64, encoded_requests, trace_of_requests
from eplb_traces.routing_trace import RoutingTrace

SUFFIXES: tuple[str, ...] = (".json", ".jsonl")
_ID = np.dtype("<i4")


def recognises(path: Path) -> bool:
    """Take JSON with the key; what holds a .npy is vLLM's and stands before this dialect in the table."""
    head = first_bytes(path, HEAD_BYTES).lstrip()
    return head[:1] in (b"{", b"[") and f'"{KEY}"'.encode() in head and NPY_IN_BASE64 not in head


def read_load(path: Path, options: ReadOptions) -> ExpertLoad:
    """Count the tokens."""
    return read_trace(path, options).load(options.window)


def read_trace(path: Path, options: ReadOptions) -> RoutingTrace:
    """Read the choices; every string is a request.

    Raises
    ------
    InputError
        Also if the shape is not given, or does not divide the number of ids.
    """
    shape = options.shape
    if shape is None or shape.top_k is None:
        raise InputError("raw ids do not say how many layers and choices there are: give the model's shape with top_k")
    content = path.read_bytes()
    contents = encoded_requests(path) if _is_text(content) else [("the ids", content)]
    requests = []
    for place, raw in contents:
        with naming_place(place):
            requests.append((place, _ids(raw, shape, shape.top_k)))
    return trace_of_requests(requests, options)


def _is_text(content: bytes) -> bool:
    """Raw ids below 2^24 have a zero in every fourth byte, text has none."""
    return b"\0" not in content


def _ids(raw: bytes, shape: ModelShape, top_k: int) -> NDArray[Any]:
    """Return [tokens, rows, K]: rows are all hidden layers where the shape knows their number, else its MoE layers."""
    num_rows = shape.num_hidden_layers or shape.num_layers
    ids_bytes = num_rows * top_k * _ID.itemsize
    if not raw or len(raw) % ids_bytes:
        raise InputError(
            f"has {len(raw)} bytes: expected a multiple of {ids_bytes}, {num_rows} layers x top-{top_k} x 4 bytes"
        )
    return np.frombuffer(raw, dtype=_ID).reshape(-1, num_rows, top_k)
