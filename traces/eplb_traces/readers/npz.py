"""Reads .npz files: our own lossless loads, loads under the names that people use, and token-level ids.

A load is the array named by one of LOAD_KEYS, or the only array, [L, E] or [W, L, E]; our own writer adds
``weights``, ``labels`` and ``shape``. A trace is ``topk_ids`` or ``expert_ids`` [T, L, K] with, where known,
``step``, ``request`` or ``seq_offsets`` [S + 1], ``source_rank``, and ``domain``: an index into ``domain_names`` of
each token, or a name of each token or sequence. Without ``step`` the whole trace is step 0.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.files.shape_json import shape_from_json
from eplb_traces.model_shape import ModelShape
from eplb_traces.readers.dialect import Reading, ReadOptions, required_num_experts
from eplb_traces.routing_trace import RoutingTrace, TokenBatch

SUFFIXES: tuple[str, ...] = (".npz",)
RECOGNISED_BY = "a zip of .npy files"
BECOMES = "load or trace"
REFUSES = "Python objects"
LOAD_KEYS = ("tokens", "load", "tokens_per_expert", "logical_count")
TRACE_KEYS = ("topk_ids", "expert_ids")

Arrays = Mapping[str, NDArray[Any]]


def recognises(path: Path) -> bool:
    """Look for a zip of .npy files."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def read(path: Path, options: ReadOptions) -> Reading:
    """Read a load, or the ids of a token-level trace, into memory."""
    arrays = _arrays(path)
    if _trace_key(arrays) is not None:
        return Reading(content=_trace(arrays, options), form="ids [tokens, layers, top-k]")
    key = _load_key(arrays)
    labels = arrays["labels"].tolist() if "labels" in arrays else None
    load = ExpertLoad(arrays[key], arrays.get("weights"), labels, _shape(arrays))
    return Reading(content=load, form=f"counts {key}", is_own="shape" in arrays)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read everything; arrays of Python objects are refused, since reading them would run code."""
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise InputError("not an .npz file: it is a single array")
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"not an .npz file of plain arrays: {error}") from error


def _names(arrays: Arrays) -> str:
    return ", ".join(sorted(arrays)) or "(none)"


def _trace_key(arrays: Arrays) -> str | None:
    return next((key for key in TRACE_KEYS if key in arrays), None)


def _load_key(arrays: Arrays) -> str:
    named = [key for key in LOAD_KEYS if key in arrays]
    if len(named) == 1:
        return named[0]
    if not named and len(arrays) == 1:
        return next(iter(arrays))
    expected = ", ".join((*LOAD_KEYS, *TRACE_KEYS))
    raise InputError(f"the arrays are {_names(arrays)}: expected one of {expected}, or a single array")


def _shape(arrays: Arrays) -> ModelShape | None:
    if "shape" not in arrays:
        return None
    try:
        fields = json.loads(str(arrays["shape"]))
    except ValueError as error:
        raise InputError(f"array shape is not JSON: {error}") from error
    return shape_from_json(fields, "shape")


def _trace(arrays: Arrays, options: ReadOptions) -> RoutingTrace:
    key = _trace_key(arrays) or TRACE_KEYS[0]
    expert_ids = arrays[key]
    if expert_ids.ndim != 3 or 0 in expert_ids.shape:
        raise InputError(f"{key} has shape {expert_ids.shape}: expected [tokens, layers, top-k], at least one of each")
    num_tokens, num_layers, top_k = expert_ids.shape
    shape = _shape(arrays) or ModelShape(num_layers, _num_experts(arrays, options), top_k)
    sequence = _sequence_of_token(arrays, num_tokens)
    request = arrays.get("request", sequence)
    domain, names = _domain(arrays, sequence, num_tokens)
    batch = TokenBatch(
        shape,
        expert_ids,
        arrays.get("step", np.zeros(num_tokens, dtype=np.int64)),
        request if request is not None else np.zeros(num_tokens, dtype=np.int64),
        arrays.get("source_rank"),
        domain,
    )
    return RoutingTrace(shape, [batch], num_tokens, names)


def _num_experts(arrays: Arrays, options: ReadOptions) -> int:
    if "num_experts" not in arrays:
        return required_num_experts(options)
    found = arrays["num_experts"]
    if found.shape != () or found.dtype.kind not in "iu":
        raise InputError(f"num_experts = {found}: expected one integer")
    if options.num_experts not in (None, int(found)):
        raise InputError(f"num_experts = {options.num_experts}: the file says {int(found)}")
    return int(found)


def _sequence_of_token(arrays: Arrays, num_tokens: int) -> NDArray[np.int64] | None:
    """[T] index of the sequence, from ``seq_offsets`` [S + 1]; None where the file has none."""
    if "seq_offsets" not in arrays:
        return None
    offsets = arrays["seq_offsets"]
    whole = offsets.ndim == 1 and len(offsets) > 1 and offsets.dtype.kind in "iu"
    if not whole or offsets[0] != 0 or offsets[-1] != num_tokens or (offsets[1:] < offsets[:-1]).any():
        raise InputError(f"seq_offsets: expected ascending integers from 0 to the number of tokens, {num_tokens}")
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))


def _domain(
    arrays: Arrays, sequence: NDArray[np.int64] | None, num_tokens: int
) -> tuple[NDArray[Any] | None, list[str]]:
    """Return the domain of each token and the names of the domains."""
    if "domain" not in arrays:
        return None, []
    domain = arrays["domain"]
    names = [str(name) for name in arrays["domain_names"]] if "domain_names" in arrays else []
    if domain.dtype.kind == "U":
        unique, domain = np.unique(domain, return_inverse=True)
        names = [str(name) for name in unique]
    if sequence is not None and len(domain) == sequence[-1] + 1 and len(domain) != num_tokens:
        domain = domain[sequence]
    return domain, names
