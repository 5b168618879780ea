"""Reads ``routed_experts`` as nested lists [tokens][layers][top-k], as prime-rl, verl and vLLM's answers hold them.

Every such list is a request, wherever in a JSON document or line it lies. Rows are the hidden layers of the model.
"""

from pathlib import Path

from eplb_traces.errors import InputError
from eplb_traces.readers.dialect import Reading, ReadOptions, first_bytes
from eplb_traces.readers.json_fields import json_records, nested_array
from eplb_traces.readers.routed_requests import HEAD_BYTES, KEY, reading_of_requests, under_key

SUFFIXES: tuple[str, ...] = (".jsonl", ".json")
RECOGNISED_BY = "the key routed_experts with lists"
BECOMES = "trace, one request a list"
REFUSES = "ids without num_experts; requests of unlike layers or top-k; ragged lists"


def recognises(path: Path) -> bool:
    """Take JSON whose first value under the key is a list."""
    head = first_bytes(path, HEAD_BYTES).lstrip()
    _, found, rest = head.partition(f'"{KEY}"'.encode())
    return head[:1] in (b"{", b"[") and bool(found) and rest.lstrip(b" :\t\r\n").startswith(b"[")


def read(path: Path, options: ReadOptions) -> Reading:
    """Read the choices; every list is a request."""
    requests = []
    for place, value in json_records(path):
        for inner, ids in under_key(value, place, list):
            requests.append((inner, nested_array(ids, inner)))
    if not requests:
        raise InputError(f"no list under a key {KEY!r}")
    return reading_of_requests(requests, options, "routed_experts [tokens, layers, top-k] as lists")
