"""Keeps the counts of finished files in a folder, so that an interrupted run goes on where it was."""

import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from eplb_traces.errors import InputError
from eplb_traces.files.atomic_file import atomic_write
from eplb_traces.files.remote import stamp, url_of
from eplb_traces.files.shape_json import shape_from_json, shape_to_json
from eplb_traces.scale.shard_counts import Shard, ShardCounts

_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
_SUFFIX = ".counts.npz"


@final
@dataclass(frozen=True)
class Checkpoint:
    """A folder with a file for each finished shard, named by a digest of all that its counts depend on."""

    folder: Path

    def saved(self, shard: Shard) -> ShardCounts | None:
        """The counts of a shard that was finished; None where there are none, or none that can be read."""
        try:
            with np.load(io.BytesIO(self._path(shard).read_bytes()), allow_pickle=False) as members:
                shape = shape_from_json(json.loads(str(members["shape"])), "$.shape")
                starts, counts = members["starts"].tolist(), members["counts"]
                num_tokens = int(members["num_tokens"])
        except _DAMAGED:
            return None
        fits = counts.shape == (len(starts), shape.num_layers, shape.num_experts) and counts.dtype == np.int64
        return ShardCounts(shape, num_tokens, dict(zip(starts, counts, strict=True))) if fits else None

    def save(self, shard: Shard, found: ShardCounts) -> None:
        """Write the counts of a shard, whole or not at all."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {self.folder}: {error.strerror or error}") from error
        counts = np.zeros((len(found.windows), found.shape.num_layers, found.shape.num_experts), dtype=np.int64)
        for row, of_window in zip(counts, found.windows.values(), strict=True):
            row[:] = of_window
        memory = io.BytesIO()
        np.savez_compressed(
            memory,
            shape=np.array(json.dumps(shape_to_json(found.shape))),
            starts=np.array(list(found.windows), dtype=np.int64),
            num_tokens=np.int64(found.num_tokens),
            counts=counts,
        )
        atomic_write(self._path(shard), memory.getvalue())

    def remove(self) -> None:
        """Delete the folder with the files of all shards; other files in it, and then the folder, stay."""
        for path in self.folder.glob(f"*{_SUFFIX}"):
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{_digest(shard)}{_SUFFIX}"


def _digest(shard: Shard) -> str:
    """Of the file's path, of what changes with its content, and of how it is counted."""
    place = url_of(shard.path) or str(Path(shard.path).resolve())
    return hashlib.sha256(repr((place, stamp(shard.path), shard)).encode()).hexdigest()[:32]
