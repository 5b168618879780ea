"""Knows numpy's .npy: a load [L, E] or [W, L, E], or expert ids [T, L, K] as vLLM returns them for a request.

vLLM's ``--enable-return-routed-experts`` gives, base64-encoded, a .npy of shape (tokens - 1, layers, top_k) in uint8,
uint16 or int32. The array does not say which of the two it is: `read_load` takes it for a load, `read_trace` for ids.
"""

from pathlib import Path

import numpy as np

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.model_shape import ModelShape
from eplb_traces.readers.dialect import ReadOptions, first_bytes, required_num_experts
from eplb_traces.routing_trace import RoutingTrace, TokenBatch

SUFFIXES: tuple[str, ...] = (".npy",)


def recognises(path: Path) -> bool:
    """Look for numpy's magic number."""
    return first_bytes(path, 6) == b"\x93NUMPY"


def read_load(path: Path, options: ReadOptions) -> ExpertLoad:
    """Read a load of one or more windows."""
    del options
    return ExpertLoad(_array(path))


def read_trace(path: Path, options: ReadOptions) -> RoutingTrace:
    """Read the choices of one request; every token is its own step, as in decoding."""
    expert_ids = _array(path)
    if expert_ids.ndim != 3 or expert_ids.dtype.kind not in "iu" or 0 in expert_ids.shape:
        raise InputError(f"{expert_ids.dtype} of shape {expert_ids.shape}: expected integers [tokens, layers, top-k]")
    num_tokens, num_layers, top_k = expert_ids.shape
    shape = ModelShape(num_layers, required_num_experts(options), top_k)
    steps = np.arange(num_tokens, dtype=np.int64)
    return RoutingTrace(shape, [TokenBatch(shape, expert_ids, steps, np.zeros_like(steps))])


def _array(path: Path) -> np.ndarray:
    try:
        array: object = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"not a plain .npy file: {error}") from error
    if not isinstance(array, np.ndarray):
        raise InputError("not a .npy file: it is an archive of several arrays")
    return array
