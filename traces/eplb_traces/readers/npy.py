"""Reads numpy's .npy: a load [L, E] or [W, L, E], or the ids [T, L, K] of a request, as vLLM returns them.

The array does not say which of the two it is. `read_trace` takes it for ids. `read_load` takes it for a load, unless
the number of experts is given and is another than the last dimension; without that number it refuses an array that
looks like ids, because planning on ids as if they were counts gives nonsense without an error.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.readers.dialect import ReadOptions, first_bytes, required_num_experts
from eplb_traces.readers.routed_requests import trace_of_requests
from eplb_traces.routing_trace import RoutingTrace

SUFFIXES: tuple[str, ...] = (".npy",)
_LARGEST_TOP_K = 32
_LARGEST_LIKELY_ID = 4096
_FEWEST_CHOICES = 16


def recognises(path: Path) -> bool:
    """Look for numpy's magic number."""
    return first_bytes(path, 6) == b"\x93NUMPY"


def read_load(path: Path, options: ReadOptions) -> ExpertLoad:
    """Read a load of one or more windows, or count the ids of a request."""
    array = _array(path)
    if options.num_experts is not None and array.ndim == 3 and array.shape[2] != options.num_experts:
        return read_trace(path, options).load(options.window)
    if options.num_experts is None and _looks_like_ids(array):
        raise InputError(
            f"{array.dtype} of shape {array.shape} with {array.shape[2]} different numbers in every row looks like "
            "expert ids [tokens, layers, top-k], not like counts: give num_experts"
        )
    return ExpertLoad(array)


def read_trace(path: Path, options: ReadOptions) -> RoutingTrace:
    """Read the choices of one request; every token is its own step, as in decoding."""
    required_num_experts(options)
    return trace_of_requests([("the array", _array(path))], options)


def _looks_like_ids(array: NDArray[Any]) -> bool:
    """Say whether every row could be a choice: a few small integers, all different."""
    if array.ndim != 3 or array.dtype.kind not in "iu" or not 1 < array.shape[2] <= _LARGEST_TOP_K:
        return False
    if array.shape[0] * array.shape[1] < _FEWEST_CHOICES or array.min() < 0 or array.max() >= _LARGEST_LIKELY_ID:
        return False
    chosen = array[array.any(axis=2)]
    in_order = np.sort(chosen, axis=1)
    return bool(len(chosen) and (in_order[:, 1:] != in_order[:, :-1]).all())


def _array(path: Path) -> NDArray[Any]:
    try:
        array: object = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"not a plain .npy file: {error}") from error
    if not isinstance(array, np.ndarray):
        raise InputError("not a .npy file: it is an archive of several arrays")
    return array
