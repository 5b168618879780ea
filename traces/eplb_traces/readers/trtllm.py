"""Reads TensorRT-LLM's expert statistics: a folder with meta_info.json and rank*.safetensors.

``EXPERT_STATISTIC_ITER_RANGE`` makes the engine write them (tensorrt_llm, _torch/expert_statistic.py): meta_info.json
``{"num_experts": E, "num_experts_per_token": K}`` by rank 0 and, by each rank, tensors [E] named
``{iteration}_{absolute layer id}`` with the choices of that rank's own tokens. Ranks are summed; an iteration is a
window. Other files of the folder (co-occurrence, selected experts) are left alone.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError, MissingExtraError, naming_place
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.model_shape import ModelShape
from eplb_traces.readers.arrays import reading_of_rows
from eplb_traces.readers.dialect import Reading, ReadOptions
from eplb_traces.readers.slot_counts import exact_counts, json_object, not_empty, positive_integer

SUFFIXES: tuple[str, ...] = ()
RECOGNISED_BY = "a folder with rank*.safetensors"
BECOMES = "load, ranks summed, one window an iteration"
REFUSES = "tensors of unlike shapes; a missing or contradicting meta_info.json"
META = "meta_info.json"
_RANK_FILE = re.compile(r"rank(\d+)\.safetensors")
_KEY = re.compile(r"(\d{1,15})_(\d{1,15})")

Counts = dict[tuple[int, int], NDArray[np.float64]]


def recognises(path: Path) -> bool:
    """Take a folder with a rank's file."""
    return path.is_dir() and bool(_rank_files(path))


def read(path: Path, options: ReadOptions) -> Reading:
    """Sum the ranks' counts; one window an iteration, layers by ascending id."""
    files = _rank_files(path)
    if not files:
        raise InputError("the folder has no rank*.safetensors")
    with naming_place(META):
        document = json_object(path / META)
        num_experts = positive_integer(document, "num_experts")
        top_k = positive_integer(document, "num_experts_per_token")
    if options.num_experts not in (None, num_experts):
        raise InputError(f"num_experts = {options.num_experts}: {META} says {num_experts}")
    counts: Counts = {}
    for file in files:
        with naming_place(file.name):
            for key, of_rank in _counts_of_rank(file, num_experts):
                counts[key] = counts[key] + of_rank if key in counts else of_rank
    load = not_empty(_load(counts, num_experts, top_k))
    form = "TensorRT-LLM statistics, {iteration}_{layer} [experts], ranks summed"
    return reading_of_rows(Reading(content=load, form=form), options, load.shape.moe_layer_ids)


def _rank_files(folder: Path) -> list[Path]:
    """Return the ranks' files by rank."""
    found = [(_RANK_FILE.fullmatch(file.name), file) for file in folder.iterdir()]
    return [file for _, file in sorted((int(match[1]), file) for match, file in found if match)]


def _counts_of_rank(file: Path, num_experts: int) -> Iterator[tuple[tuple[int, int], NDArray[np.float64]]]:
    """Yield ((iteration, layer), counts [E]) of a rank."""
    for key, tensor in _tensors(file):
        match = _KEY.fullmatch(key)
        if match is None:
            raise InputError(f"tensor {key!r}: expected a name of the form iteration_layer")
        if tensor.shape != (num_experts,):
            raise InputError(f"tensor {key!r} has shape {tensor.shape}: expected ({num_experts},)")
        yield (int(match[1]), int(match[2])), exact_counts(tensor, f"tensor {key!r}")


def _tensors(file: Path) -> list[tuple[str, NDArray[Any]]]:
    """Read every tensor of a file with safetensors' numpy side: no torch."""
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise MissingExtraError("reading TensorRT-LLM's .safetensors", "trace") from error
    try:
        return sorted(load_file(file).items())
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"not a whole .safetensors file of numbers: {error}") from error


def _load(counts: Counts, num_experts: int, top_k: int) -> ExpertLoad:
    if not counts:
        raise InputError("no file has a tensor: an empty recording")
    iterations = sorted({iteration for iteration, _ in counts})
    layers = tuple(sorted({layer for _, layer in counts}))
    for iteration in iterations:
        for layer in layers:
            if (iteration, layer) not in counts:
                raise InputError(
                    f"no rank has '{iteration}_{layer}': expected every layer of {layers[0]} to {layers[-1]} that is "
                    "there in any iteration in all of them"
                )
    tokens = np.array([[counts[iteration, layer] for layer in layers] for iteration in iterations])
    labels = [f"iteration {iteration}" for iteration in iterations]
    return ExpertLoad(tokens, labels=labels, shape=ModelShape(len(layers), num_experts, top_k, moe_layer_ids=layers))
