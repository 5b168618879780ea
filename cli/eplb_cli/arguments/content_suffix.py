"""Derives the suffix that a file would have from its content."""

import gzip
import json
import zlib
from pathlib import Path
from typing import BinaryIO, Final

_HEAD: Final = 64
_MAGIC: Final = {b"PAR1": ".parquet", b"\x93NUMPY": ".npy", b"\x80\x02": ".pt"}
"""{first bytes: suffix}; torch's files before its zip files are pickles of protocol 2."""
_GZIP: Final = b"\x1f\x8b"


def load_suffix(path: Path) -> str:
    """The suffix of a load or trace: .csv for text that is not JSON."""
    binary = _binary_suffix(path)
    if binary is not None:
        return binary
    if _head(path).startswith(_GZIP):
        with gzip.open(path) as file:
            return f"{_text_suffix(file)}.gz"
    with path.open("rb") as file:
        return _text_suffix(file)


def placement_suffix(path: Path) -> str:
    """The suffix of a placement file: .yaml for text that is not JSON."""
    binary = _binary_suffix(path)
    if binary is not None:
        return binary
    return ".json" if _head(path).lstrip()[:1] in (b"{", b"[") else ".yaml"


def _binary_suffix(path: Path) -> str | None:
    from eplb_traces.files.zip_files import member_names

    head = _head(path)
    for magic, suffix in _MAGIC.items():
        if head.startswith(magic):
            return suffix
    names = member_names(path)
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return ".pt"
    if names or head.startswith(b"PK"):  # cut or damaged: the reader of .npz names what is missing
        return ".npz"
    return ".safetensors" if head[8:9] == b"{" and b"\0" in head[:8] else None


def _text_suffix(file: BinaryIO | gzip.GzipFile) -> str:
    """JSON lines are several lines of which the first is a whole JSON value."""
    try:
        first, rest = _first_line(file), _first_line(file)
    except (OSError, EOFError, zlib.error):  # not gzip after all, cut or damaged: the reader names it
        return ".csv"
    if first[:1] not in (b"{", b"["):
        return ".tsv" if b"\t" in first and b"," not in first else ".csv"
    if not rest:
        return ".json"
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return ".json"
    return ".jsonl"


def _first_line(file: BinaryIO | gzip.GzipFile) -> bytes:
    """The next line that is not empty, stripped; nothing at the end."""
    return next((text for text in map(bytes.strip, file) if text), b"")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)
