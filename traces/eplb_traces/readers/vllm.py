"""Reads the experts that vLLM returns with a request (``--enable-return-routed-experts``, vllm 0.33.0).

``routed_experts`` is a .npy in base64: ids (tokens - 1, hidden layers, K) in uint8, uint16 or int32, without the last
token, which was never fed back. A file is such a .npy, its base64 (one request a line), or the JSON answers of the
server, one or one a line.
"""

import io
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from eplb_traces.errors import naming_place
from eplb_traces.readers.dialect import Reading, ReadOptions, first_bytes
from eplb_traces.readers.numpy_files import plain_array
from eplb_traces.readers.routed_requests import HEAD_BYTES, KEY, NPY_IN_BASE64, encoded_requests, reading_of_requests

SUFFIXES: tuple[str, ...] = (".json", ".jsonl")
RECOGNISED_BY = "the key routed_experts with base64 of a .npy"
BECOMES = "trace, one request a string"
REFUSES = "ids without num_experts; requests of unlike layers or top-k"
_MAGIC = b"\x93NUMPY"
_FORM = "vLLM routed_experts [tokens, layers, top-k]"


def recognises(path: Path) -> bool:
    """Take base64 that begins like a .npy, or JSON with such a string; a bare .npy may as well be a load."""
    head = first_bytes(path, HEAD_BYTES).lstrip(b' \r\n\t"')
    if head[:1] in (b"{", b"["):
        return f'"{KEY}"'.encode() in head and NPY_IN_BASE64 in head
    return head.startswith(NPY_IN_BASE64)


def read(path: Path, options: ReadOptions) -> Reading:
    """Read the choices; every string is a request."""
    if first_bytes(path, len(_MAGIC)) == _MAGIC:
        requests = [("the array", _array(path.read_bytes()))]
        return reading_of_requests(requests, options, _FORM)
    requests = []
    for place, content in encoded_requests(path):
        with naming_place(place):
            requests.append((place, _array(content)))
    return reading_of_requests(requests, options, _FORM)


def _array(content: bytes) -> NDArray[Any]:
    return plain_array(io.BytesIO(content), len(content))
