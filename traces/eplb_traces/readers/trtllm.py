"""Reads TensorRT-LLM's expert statistics: a folder with meta_info.json and rank*.safetensors.

``EXPERT_STATISTIC_ITER_RANGE`` makes the engine write them (tensorrt_llm, _torch/expert_statistic.py): meta_info.json
``{"num_experts": E, "num_experts_per_token": K}`` by rank 0 and, by each rank, tensors [E] named
``{iteration}_{absolute layer id}`` with the choices of that rank's own tokens. Ranks are summed; an iteration is a
window. Other files of the folder (co-occurrence, selected experts) are left alone.
"""

import re
from itertools import product
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
REFUSES = "tensors of unlike shapes; a missing rank; a missing or contradicting meta_info.json"
META = "meta_info.json"
_RANK_FILE = re.compile(r"rank(\d+)\.safetensors")
_KEY = re.compile(r"(\d{1,15})_(\d{1,15})")

Counts = dict[tuple[int, int], NDArray[np.float64]]


def recognises(path: Path) -> bool:
    """Take a folder with a rank's file."""
    return path.is_dir() and bool(_rank_files(path))


def read(path: Path, options: ReadOptions) -> Reading:
    """Sum the ranks' counts; one window an iteration, layers by ascending id."""
    files = _files_of_all_ranks(path)
    with naming_place(META):
        document = json_object(path / META)
        num_experts = positive_integer(document, "num_experts")
        top_k = positive_integer(document, "num_experts_per_token")
    if options.num_experts not in (None, num_experts):
        raise InputError(f"num_experts = {options.num_experts}: {META} says {num_experts}")
    counts: Counts = {}
    of_ranks: dict[str, Counts] = {}
    for file in files:
        with naming_place(file.name):
            of_ranks[file.name] = _counts_of_rank(file, num_experts)
    for of_rank in of_ranks.values():
        for key, of_layer in of_rank.items():
            counts[key] = counts[key] + of_layer if key in counts else of_layer
    load = not_empty(_load(counts, num_experts, top_k))
    form = "TensorRT-LLM statistics, {iteration}_{layer} [experts], ranks summed"
    return reading_of_rows(
        Reading(content=load, form=form, notes=_missing(of_ranks)), options, load.shape.moe_layer_ids
    )


def _rank_files(folder: Path) -> list[tuple[int, Path]]:
    """Return the ranks and their files, ascending."""
    found = [(_RANK_FILE.fullmatch(file.name), file) for file in folder.iterdir()]
    return sorted((int(match[1]), file) for match, file in found if match)


def _files_of_all_ranks(folder: Path) -> list[Path]:
    """Return the file of every rank from 0 on."""
    found = _rank_files(folder)
    if not found:
        raise InputError("the folder has no rank*.safetensors")
    for expected, (rank, file) in enumerate(found):
        if rank != expected:
            raise InputError(
                f"{file.name}, and no rank{expected}.safetensors: expected one file of every rank from 0 on"
            )
    return [file for _, file in found]


def _missing(of_ranks: dict[str, Counts]) -> tuple[str, ...]:
    """A note for each rank that lacks one of its layers in an iteration, as one that stopped first.

    With pipeline stages ranks have different layers.
    """
    iterations = sorted({iteration for counts in of_ranks.values() for iteration, _ in counts})
    found = []
    for name, counts in of_ranks.items():
        expected = list(product(iterations, sorted({layer for _, layer in counts})))
        missing = [key for key in expected if key not in counts]
        if missing:
            first = f"'{missing[0][0]}_{missing[0][1]}'"
            found.append(f"{name} lacks {len(missing)} of {len(expected)} tensors, as {first}: the others are counted")
    return tuple(found)


def _counts_of_rank(file: Path, num_experts: int) -> Counts:
    """{(iteration, layer): counts [E]} of a rank."""
    counts: Counts = {}
    for key, tensor in _tensors(file):
        match = _KEY.fullmatch(key)
        if match is None:
            raise InputError(f"tensor {key!r}: expected a name of the form iteration_layer")
        if tensor.shape != (num_experts,):
            raise InputError(f"tensor {key!r} has shape {tensor.shape}: expected ({num_experts},)")
        at = int(match[1]), int(match[2])
        if at in counts:
            raise InputError(f"tensor {key!r}: layer {at[1]} of iteration {at[0]} is there twice")
        counts[at] = exact_counts(tensor, f"tensor {key!r}")
    return counts


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
