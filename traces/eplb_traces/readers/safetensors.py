"""Reads a single .safetensors file of counts, expert ids or router logits; `named_arrays` decides which tensor it is.

The files that TensorRT-LLM's ranks write lie in a folder and are read by `trtllm`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError, MissingExtraError
from eplb_traces.readers.dialect import Reading, ReadOptions, first_bytes
from eplb_traces.readers.named_arrays import reading_of_named_arrays

SUFFIXES: tuple[str, ...] = (".safetensors",)
RECOGNISED_BY = "a header of tensor names and types"
BECOMES = "load (counts) or trace (expert ids with num_experts, router logits with top_k)"
REFUSES = "several tensors of which none has a known name; what .npy refuses"
_LENGTH_BYTES = 8


def recognises(path: Path) -> bool:
    """Look for the length of the header and its first bracket."""
    return first_bytes(path, _LENGTH_BYTES + 2)[_LENGTH_BYTES:] == b'{"'


def read(path: Path, options: ReadOptions) -> Reading:
    """Read the tensor that holds the load or the trace."""
    return reading_of_named_arrays(_tensors(path), options)


def _tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Load every tensor; numpy has no bfloat16, which is widened."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError("reading .safetensors", "trace") from error
    try:
        with safe_open(path, framework="numpy") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  # no dictionary
            return {name: _widened(path, name) if of == "BF16" else file.get_tensor(name) for name, of in types.items()}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"not a whole .safetensors file of numbers: {error}") from error


def _widened(path: Path, name: str) -> NDArray[np.float32]:
    """A bfloat16 tensor as float32: its bytes are the upper half of those of a float32."""
    with path.open("rb") as file:
        num_header = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        entry = json.loads(file.read(num_header))[name]
        first, stop = entry["data_offsets"]
        file.seek(_LENGTH_BYTES + num_header + first)
        halves = np.frombuffer(file.read(stop - first), dtype="<u2")
    widened: NDArray[np.float32] = (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
    return widened
