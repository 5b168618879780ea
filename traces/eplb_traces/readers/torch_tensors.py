"""Reads a tensor in a .pt or .pth file, alone or under names: counts, expert ids or router logits.

vllm-ascend's ``expert_load_view.pt`` is one tensor of counts [layers, experts]. Hugging Face's ``router_logits`` is one
tensor [tokens, experts] a layer, in a tuple: tensors of one shape in a list are stacked, layers first.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.readers.arrays import reading_of_array
from eplb_traces.readers.dialect import Reading, ReadOptions
from eplb_traces.readers.named_arrays import reading_of_named_arrays
from eplb_traces.readers.torch_files import is_torch_file, kind_of, load_torch

SUFFIXES: tuple[str, ...] = (".pt", ".pth")
RECOGNISED_BY = "torch's zip with a tensor or a dictionary of tensors"
BECOMES = "load (counts) or trace (expert ids with num_experts, router logits with top_k)"
REFUSES = "anything that needs unpickling; several tensors of which none has a known name; what .npy refuses"


def recognises(path: Path) -> bool:
    """Take any file of torch: those of SGLang's recorder come before in the table."""
    return not path.is_dir() and is_torch_file(path)


def read(path: Path, options: ReadOptions) -> Reading:
    """Read the tensor, or the one of a dictionary that holds the load or the trace."""
    document = load_torch(path)
    if isinstance(document, dict):
        arrays = {str(key): _array(value, str(key)) for key, value in document.items()}
        return reading_of_named_arrays({key: array for key, array in arrays.items() if array is not None}, options)
    array = _array(document, "the tensor")
    if array is None:
        raise InputError(f"holds a {kind_of(document)}: expected a tensor, or a dictionary of tensors")
    return reading_of_array(array, options)


def _array(value: object, place: str) -> NDArray[Any] | None:
    """A tensor, number, or list of numbers or of tensors of one shape; None for anything else."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, int | float):
        return np.array(value)
    if not isinstance(value, list | tuple) or not value:
        return None
    parts = [_array(part, f"{place}[{i}]") for i, part in enumerate(value)]
    arrays = [part for part in parts if part is not None]
    if len(arrays) < len(parts):
        return None
    if len({part.shape for part in arrays}) > 1:
        raise InputError(f"{place} is a list of unlike shapes: expected one shape")
    return np.stack(arrays)
