"""Reads eplb's own Parquet files; `files.parquet_file` defines the schema."""

from pathlib import Path

from eplb_traces.files.parquet_file import holds_trace, read_parquet_load, read_parquet_trace
from eplb_traces.readers.dialect import Reading, ReadOptions, first_bytes

SUFFIXES: tuple[str, ...] = (".parquet",)
RECOGNISED_BY = "Parquet's magic number"
BECOMES = "load or trace, as the file's metadata says"
REFUSES = "files without eplb's metadata"


def recognises(path: Path) -> bool:
    """Look for Parquet's magic number."""
    return first_bytes(path, 4) == b"PAR1"


def read(path: Path, options: ReadOptions) -> Reading:
    """Read a load, or open a trace that is streamed."""
    del options
    content = read_parquet_trace(path) if holds_trace(path) else read_parquet_load(path)
    return Reading(content=content, form="eplb's Parquet", is_own=True)
