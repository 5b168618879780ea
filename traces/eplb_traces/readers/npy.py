"""Reads numpy's .npy: counts, the ids of a request as vLLM returns them, or router logits; `arrays` decides which."""

from pathlib import Path

from eplb_traces.files.limits import size_of
from eplb_traces.readers.arrays import reading_of_array
from eplb_traces.readers.dialect import Reading, ReadOptions, first_bytes
from eplb_traces.readers.numpy_files import NPY_MAGIC, plain_array

SUFFIXES: tuple[str, ...] = (".npy",)
RECOGNISED_BY = "numpy's magic number"
BECOMES = "load (counts) or trace (expert ids with num_experts, router logits with top_k)"
REFUSES = "objects; ids without num_experts; probabilities, placement patterns, square matrices, unclear axes"


def recognises(path: Path) -> bool:
    """Look for numpy's magic number."""
    return first_bytes(path, len(NPY_MAGIC)) == NPY_MAGIC


def read(path: Path, options: ReadOptions) -> Reading:
    """Read the array; every token of a trace is its own step, as in decoding."""
    with path.open("rb") as file:
        array = plain_array(file, size_of(path))
    return reading_of_array(array, options)
