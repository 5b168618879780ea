"""Reads the .pt files of SGLang's expert distribution recorder, and a folder of them; torch loads tensors only.

sglang 0.5.23, srt/eplb/expert_distribution.py. Mode stat: ``{"logical_count": [buffer, layers, E]}`` of rank 0, a ring
buffer in no certain order. Modes per_pass and per_token: one file a rank, ``{"records": [...],
"last_physical_to_logical_map": [layers, P]}``, each record with ``forward_pass_id``, ``rank``,
``global_physical_count`` [layers, P] and, per token, ``topk_ids_of_layer`` [layers, T, 8] padded with -1, physical ids
like the counts. The map is the one in force at the dump: a recording that spans a rebalance reads wrong, unnoticed.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from eplb_traces.errors import InputError, MissingExtraError, naming_place
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.readers.dialect import ReadOptions, first_bytes
from eplb_traces.readers.sglang_counts import load_from_counts, numbers
from eplb_traces.readers.sglang_records import RankRecording, load_of_passes, trace_of_tokens
from eplb_traces.routing_trace import RoutingTrace

SUFFIXES: tuple[str, ...] = (".pt", ".pth")
_Result = TypeVar("_Result")


def recognises(path: Path) -> bool:
    """Take a folder of .pt files, or torch's zip or its older pickle."""
    if path.is_dir():
        return bool(_rank_files(path))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    return first_bytes(path, 2) == b"\x80\x02"


def read_load(path: Path, options: ReadOptions) -> ExpertLoad:
    """Read counts of a stat recording, one window a step, or sum the ranks' counts pass by pass.

    With `options.window` the windows of a per_pass recording hold that many passes; None: one window a pass.
    """
    documents = _documents(path)
    if len(documents) == 1 and "logical_count" in documents[0]:
        return load_from_counts(numbers(documents[0]["logical_count"], "logical_count").astype(np.float64))
    return _of_recordings(path, documents, lambda recordings: load_of_passes(recordings, options.window))


def read_trace(path: Path, options: ReadOptions) -> RoutingTrace:
    """Read the tokens of a per_token recording; `options.num_experts` may only repeat what the map says."""
    trace = _of_recordings(path, _documents(path), trace_of_tokens)
    if options.num_experts not in (None, trace.shape.num_experts):
        raise InputError(f"num_experts = {options.num_experts}: the recording has {trace.shape.num_experts}")
    return trace


def _rank_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)


def _documents(path: Path) -> list[dict[str, object]]:
    """Load the dictionaries of a file, or of all files of a folder."""
    if not path.is_dir():
        return [_load_tensors(path)]
    files = _rank_files(path)
    if not files:
        raise InputError("the folder has no .pt file")
    documents = []
    for file in files:
        with naming_place(file.name):
            documents.append(_load_tensors(file))
    return documents


def _load_tensors(path: Path) -> dict[str, object]:
    """Load a .pt that holds nothing but tensors, numbers, strings, lists and dictionaries."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("reading SGLang's .pt recordings", "runtime") from error
    import pickle

    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            "not a file of plain tensors: it needs unpickling, which can run any code, and is refused "
            f"({_first_sentence(error)})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"not a whole file of torch.save: {_first_sentence(error)}") from error
    if not isinstance(document, dict):
        raise InputError(f"holds a {type(document).__name__}: expected a dictionary of the recorder")
    return {str(key): value for key, value in document.items()}


def _first_sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    naming = [line for line in lines if "GLOBAL" in line or "global" in line]
    return (naming or lines or [type(error).__name__])[0][:200]


def _of_recordings(
    path: Path, documents: list[dict[str, object]], build: Callable[[list[RankRecording]], _Result]
) -> _Result:
    recordings = []
    for place, document in zip(_rank_files(path) if path.is_dir() else [path], documents, strict=True):
        with naming_place(place.name):
            recordings.append(_rank_recording(document))
    return build(recordings)


def _rank_recording(document: dict[str, object]) -> RankRecording:
    missing = [key for key in ("records", "last_physical_to_logical_map") if key not in document]
    if missing:
        raise InputError(
            f"has the keys {sorted(document)}: expected 'logical_count' or 'records' and 'last_physical_to_logical_map'"
        )
    records = document["records"]
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise InputError("records: expected a list of dictionaries")
    physical_to_logical = numbers(document["last_physical_to_logical_map"], "last_physical_to_logical_map")
    return RankRecording(records, physical_to_logical)
