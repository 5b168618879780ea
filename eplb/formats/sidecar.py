"""Knows the file beside a foreign file that keeps the plan's provenance; knows no dialect.

SGLang and TensorRT-LLM die of a key they do not know, so what an engine's file cannot carry goes to
``NAME.eplb.json``, where NAME is the whole name of the engine's file. It holds a digest of the map; with another
map it is not believed.
"""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb.core.problem import Plan
from eplb.errors import FormatError
from eplb.formats.json_fields import as_fields, as_int, as_text, emit_json, load_json
from eplb.formats.provenance import PROVENANCE_KEYS, Provenance, provenance_fields, provenance_from_json
from eplb_traces.files.atomic_file import atomic_write

SIDECAR_SUFFIX = ".eplb.json"
SIDECAR_KIND = "eplb-provenance"
_VERSION = 1
_KEYS = ("format", "version", "beside", "map_digest")


def sidecar_path(path: Path) -> Path:
    """Where the provenance of the engine's file `path` lies."""
    return path.with_name(path.name + SIDECAR_SUFFIX)


def map_digest(raw: NDArray[np.int64]) -> str:
    """SHA-256 over shape and ids of the array that a file holds, whatever its text looks like."""
    sha = hashlib.sha256(repr(raw.shape).encode())
    sha.update(raw.astype("<i8", copy=False).tobytes())
    return f"sha256:{sha.hexdigest()}"


def write_with_sidecar(path: Path, content: bytes, raw: NDArray[np.int64], format_name: str, plan: Plan) -> None:
    """Write an engine's file and its sidecar, each whole or not at all.

    The engine's file goes first: if that fails, nothing has changed, and if only the sidecar fails, what lies beside
    the new file is an old record that its digest gives away.
    """
    head = {"format": SIDECAR_KIND, "version": _VERSION, "beside": format_name, "map_digest": map_digest(raw)}
    record = emit_json({**head, **provenance_fields(plan)})
    atomic_write(path, content)
    atomic_write(sidecar_path(path), record)


def find_provenance(path: Path, format_name: str, raw: NDArray[np.int64]) -> Provenance | None:
    """The record beside `path` if there is one and it belongs to this map.

    Raises
    ------
    FormatError
        If a record is there and cannot be read. One of another map or dialect is no error: it counts as none.
    """
    beside = sidecar_path(path)
    if not beside.exists():
        return None
    place = f"{beside}: $"
    fields = as_fields(load_json(beside), place, _KEYS + PROVENANCE_KEYS)
    if fields["format"] != SIDECAR_KIND or as_int(fields["version"], f"{place}.version") != _VERSION:
        raise FormatError(f"{place}: expected format {SIDECAR_KIND!r}, version {_VERSION}")
    provenance = provenance_from_json(fields, place)
    same_map = as_text(fields["map_digest"], f"{place}.map_digest") == map_digest(raw)
    return provenance if same_map and as_text(fields["beside"], f"{place}.beside") == format_name else None


def stale_note(path: Path) -> str:
    """What to tell the user when a sidecar lies beside `path` that is not about its map."""
    return f"{sidecar_path(path).name} is about another map and was not used"
