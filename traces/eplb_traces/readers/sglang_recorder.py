"""Reads the .pt files of SGLang's expert distribution recorder, and a folder of them; torch is not needed.

sglang 0.5.23, srt/eplb/expert_distribution.py. Mode stat: ``{"logical_count": [buffer, layers, E]}`` of rank 0, a ring
buffer in no certain order. Modes per_pass and per_token: one file a rank, ``{"records": [...],
"last_physical_to_logical_map": [layers, P]}``, each record with ``forward_pass_id``, ``rank``,
``global_physical_count`` [layers, P] and, per token, ``topk_ids_of_layer`` [layers, T, 8] padded with -1, physical ids
like the counts. The map is the one in force at the dump: a recording that spans a rebalance reads wrong, unnoticed.
"""

from pathlib import Path

from eplb_traces.errors import InputError, naming_place
from eplb_traces.readers.dialect import Reading, ReadOptions, Wanted
from eplb_traces.readers.sglang_counts import numbers, reading_of_counts
from eplb_traces.readers.sglang_records import RankRecording, reading_of_passes, reading_of_tokens
from eplb_traces.readers.slot_counts import exact_counts
from eplb_traces.readers.torch_files import has_key, is_torch_file, kind_of, load_torch

SUFFIXES: tuple[str, ...] = (".pt", ".pth")
RECOGNISED_BY = "torch's zip with the key logical_count or records; a folder of them"
BECOMES = "load (stat, per_pass) or trace (per_token)"
REFUSES = "anything but tensors, numbers, strings, lists and dictionaries; ranks with unlike maps"


def recognises(path: Path) -> bool:
    """Take a folder of .pt files, or torch's zip with a key of the recorder."""
    if path.is_dir():
        return bool(_rank_files(path))
    return is_torch_file(path) and has_key(path, ("logical_count", "last_physical_to_logical_map"))


def read(path: Path, options: ReadOptions) -> Reading:
    """Read counts of a stat recording, one window a step; sum the ranks' counts pass by pass; or read tokens.

    With `options.window` the windows of a per_pass recording hold that many passes; None: one window a pass.
    """
    documents = _documents(path)
    if len(documents) == 1 and "logical_count" in documents[0]:
        counts = exact_counts(numbers(documents[0]["logical_count"], "logical_count"), "logical_count")
        return reading_of_counts(counts, options, "SGLang recorder, logical_count")
    recordings = _recordings(path, documents)
    has_tokens = any("topk_ids_of_layer" in record for recording in recordings for record in recording.records)
    if options.wants is Wanted.TRACE or (has_tokens and options.wants is not Wanted.LOAD):
        return reading_of_tokens(recordings, options)
    return reading_of_passes(recordings, options)


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
    document = load_torch(path)
    if not isinstance(document, dict):
        raise InputError(f"holds a {kind_of(document)}: expected a dictionary of the recorder")
    return {str(key): value for key, value in document.items()}


def _recordings(path: Path, documents: list[dict[str, object]]) -> list[RankRecording]:
    recordings = []
    for place, document in zip(_rank_files(path) if path.is_dir() else [path], documents, strict=True):
        with naming_place(place.name):
            recordings.append(_rank_recording(document))
    return recordings


def _rank_recording(document: dict[str, object]) -> RankRecording:
    if "logical_count" in document:
        raise InputError("a stat recording, which has the counts of all ranks: give this file, not the folder")
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
