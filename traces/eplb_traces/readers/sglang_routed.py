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
from eplb_traces.readers.dialect import Reading, ReadOptions, first_bytes
from eplb_traces.readers.routed_requests import HEAD_BYTES, KEY, NPY_IN_BASE64, encoded_requests, reading_of_requests

SUFFIXES: tuple[str, ...] = (".json", ".jsonl")
RECOGNISED_BY = "the key routed_experts with base64 of raw int32"
BECOMES = "trace, one request a string"
REFUSES = "ids without the model's shape (--hidden-layers or --moe-layers, --num-experts, --top-k)"
_ID = np.dtype("<i4")


def recognises(path: Path) -> bool:
    """Take JSON with the key; what holds a .npy is vLLM's and stands before this dialect in the table."""
    head = first_bytes(path, HEAD_BYTES).lstrip()
    return head[:1] in (b"{", b"[") and f'"{KEY}"'.encode() in head and NPY_IN_BASE64 not in head


def read(path: Path, options: ReadOptions) -> Reading:
    """Read the choices; every string is a request.

    Raises
    ------
    InputError
        Also if the shape is not given, or does not divide the number of ids.
    """
    num_rows = options.num_hidden_layers or (len(options.moe_layer_ids) if options.moe_layer_ids else None)
    if num_rows is None and options.shape is not None:
        num_rows = options.shape.num_layers
    if num_rows is None or options.top_k is None:
        raise InputError(
            "raw ids do not say how many layers and choices there are: give num_hidden_layers (--hidden-layers) or "
            "moe_layer_ids (--moe-layers), and top_k (--top-k)"
        )
    content = path.read_bytes()
    contents = encoded_requests(path) if _is_text(content) else [("the ids", content)]
    requests = []
    for place, raw in contents:
        with naming_place(place):
            requests.append((place, _ids(raw, num_rows, options.top_k)))
    return reading_of_requests(requests, options, "SGLang routed_experts [tokens, layers, top-k]")


def _is_text(content: bytes) -> bool:
    """Raw ids below 2^24 have a zero in every fourth byte, text has none."""
    return b"\0" not in content


def _ids(raw: bytes, num_rows: int, top_k: int) -> NDArray[Any]:
    """Return [tokens, rows, K]: rows are all hidden layers where their number is known, else the MoE layers."""
    ids_bytes = num_rows * top_k * _ID.itemsize
    if not raw or len(raw) % ids_bytes:
        raise InputError(
            f"has {len(raw)} bytes: expected a multiple of {ids_bytes}, {num_rows} layers x top-{top_k} x 4 bytes"
        )
    return np.frombuffer(raw, dtype=_ID).reshape(-1, num_rows, top_k)
