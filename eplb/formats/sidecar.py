"""Writes and reads the sidecar: the record of a plan, in a file beside an engine's file.

SGLang and TensorRT-LLM crash on keys that they do not expect, so the record of the plan goes to ``NAME.eplb.json``,
where NAME is the whole name of the engine's file. It holds a digest of the map; beside another map it is not used.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb.formats.json_fields import as_text, emit_json, load_json
from eplb.formats.protocol import EncodedFile, RecordStatus
from eplb.formats.provenance import RECORD_VERSION, Provenance, provenance_fields, provenance_from_json, record_fields
from eplb_traces.files.atomic_file import atomic_write, atomic_write_all
from eplb_traces.files.remote import exists

SIDECAR_SUFFIX = ".eplb.json"
SIDECAR_KIND = "eplb-provenance"


@final
@dataclass(frozen=True)
class Sidecar:
    """What was found beside an engine's file; the provenance is None unless the status is IN_SIDECAR."""

    status: RecordStatus
    provenance: Provenance | None = None


def sidecar_path(path: Path) -> Path:
    """The sidecar of the engine's file `path`."""
    return path.with_name(path.name + SIDECAR_SUFFIX)


def map_digest(raw: NDArray[np.int64]) -> str:
    """SHA-256 over shape and ids of the array that a file holds, whatever its text looks like."""
    sha = hashlib.sha256(repr(raw.shape).encode())
    sha.update(raw.astype("<i8", copy=False).tobytes())
    return f"sha256:{sha.hexdigest()}"


def write_encoded(path: Path, encoded: EncodedFile, format_name: str) -> None:
    """Write a file, and its sidecar if it needs one, each whole or not at all.

    Both are complete on disk before one is replaced. After a crash between the two renames, the old sidecar beside the
    new file has the digest of another map.
    """
    if encoded.digested is None:
        atomic_write(path, encoded.content)
        return
    head = {"format": SIDECAR_KIND, "version": RECORD_VERSION, "beside": format_name}
    head["map_digest"] = map_digest(encoded.digested)
    record = emit_json({**head, **provenance_fields(encoded.plan)})
    atomic_write_all({path: encoded.content, sidecar_path(path): record})


def read_sidecar(path: Path, format_name: str, raw: NDArray[np.int64]) -> Sidecar:
    """The record beside the engine's file `path`, which holds the map `raw`.

    Raises
    ------
    FormatError
        If a sidecar is there and cannot be read. One of another map or format is not an error but STALE.
    """
    beside = sidecar_path(path)
    if not exists(beside):
        return Sidecar(RecordStatus.ABSENT)
    place = f"{beside}: $"
    fields = record_fields(load_json(beside), place, SIDECAR_KIND, ("beside", "map_digest"))
    provenance = provenance_from_json(fields, place)
    same_map = as_text(fields["map_digest"], f"{place}.map_digest") == map_digest(raw)
    if same_map and as_text(fields["beside"], f"{place}.beside") == format_name:
        return Sidecar(RecordStatus.IN_SIDECAR, provenance)
    return Sidecar(RecordStatus.STALE)
