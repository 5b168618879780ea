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
from eplb_traces.readers.dialect import Reading, ReadOptions, Wanted, first_bytes, required_num_experts
from eplb_traces.readers.routed_requests import trace_of_requests

SUFFIXES: tuple[str, ...] = (".npy",)
RECOGNISED_BY = "numpy's magic number"
BECOMES = "load or trace"
REFUSES = "arrays that are neither"
_LARGEST_TOP_K = 32
_LARGEST_LIKELY_ID = 4096
_FEWEST_CHOICES = 16


def recognises(path: Path) -> bool:
    """Look for numpy's magic number."""
    return first_bytes(path, 6) == b"\x93NUMPY"


def read(path: Path, options: ReadOptions) -> Reading:
    """Read a load of one or more windows, or the ids of a request; every token is its own step, as in decoding."""
    array = _array(path)
    is_ids = options.num_experts is not None and array.ndim == 3 and array.shape[2] != options.num_experts
    if options.wants is Wanted.TRACE or is_ids:
        required_num_experts(options)
        return Reading(content=trace_of_requests([("the array", array)], options), form="ids [tokens, layers, top-k]")
    if options.num_experts is None and _looks_like_ids(array):
        raise InputError(
            f"{array.dtype} of shape {array.shape} with {array.shape[2]} different numbers in every row looks like "
            "expert ids [tokens, layers, top-k], not like counts: give num_experts"
        )
    return Reading(content=ExpertLoad(array), form="counts")


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
