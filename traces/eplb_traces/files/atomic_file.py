"""Writes files atomically."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from eplb_traces.errors import InputError


def atomic_write(path: str | Path, content: bytes | Callable[[Path], None]) -> None:
    """Write `content` to `path` so that a reader sees either the old file or the complete new one, even after a crash.

    The new file is written to the same folder, flushed to disk and renamed over the old one. If `path` is a link, the
    file it points to is replaced.

    Parameters
    ----------
    path
        The file to write. Its folder must exist.
    content
        The bytes, or a function that writes a file to a given path (with the folder and suffix of `path`).

    Raises
    ------
    InputError
        If the folder is missing or not writeable, or `path` is not a regular file.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise InputError(f"cannot write {path}: it is not a regular file")
    beside = target.with_name(f".{target.stem}.{secrets.token_hex(8)}{target.suffix}")
    try:
        if isinstance(content, bytes):
            beside.write_bytes(content)
        else:
            content(beside)
        _flush_to_disk(beside, os.O_RDWR)
        os.replace(beside, target)
        _flush_to_disk(target.parent, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)


def _flush_to_disk(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
