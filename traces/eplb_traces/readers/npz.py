"""Reads .npz files: our own lossless loads, and arrays with names as people write them (`named_arrays`).

Our own writer adds ``weights``, ``labels`` and ``shape``, the model as JSON.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.files.shape_json import shape_from_json
from eplb_traces.files.zip_files import member_names
from eplb_traces.readers.dialect import Reading, ReadOptions
from eplb_traces.readers.named_arrays import LOAD_KEYS, TRACE_KEYS, reading_of_named_arrays, texts
from eplb_traces.readers.numpy_files import plain_arrays

SUFFIXES: tuple[str, ...] = (".npz",)
RECOGNISED_BY = "a zip of .npy files"
BECOMES = "load (counts) or trace (expert ids with num_experts, router logits with top_k)"
REFUSES = "objects; several arrays of which none has a known name; what .npy refuses"
_SHAPE = "shape"


def recognises(path: Path) -> bool:
    """Look for a zip of .npy files."""
    names = member_names(path)
    return bool(names) and all(name.endswith(".npy") for name in names)


def read(path: Path, options: ReadOptions) -> Reading:
    """Read a load, or the choices of tokens, into memory."""
    arrays = plain_arrays(path)
    if _SHAPE not in arrays:
        return reading_of_named_arrays(arrays, options)
    try:
        shape = shape_from_json(json.loads(str(arrays.pop(_SHAPE))), _SHAPE)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"array shape is not JSON: {error}") from error
    if any(key in arrays for key in TRACE_KEYS):
        return replace(reading_of_named_arrays(arrays, replace(options, shape=shape)), is_own=True)
    load = ExpertLoad(_own_tokens(arrays), arrays.get("weights"), texts(arrays, "labels"), shape)
    return Reading(content=load, form="eplb's .npz", is_own=True)


def _own_tokens(arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    keys = [key for key in LOAD_KEYS if key in arrays]
    if len(keys) != 1:
        raise InputError(f"the arrays are {', '.join(sorted(arrays))}: expected one of {', '.join(LOAD_KEYS)}")
    return arrays[keys[0]]
