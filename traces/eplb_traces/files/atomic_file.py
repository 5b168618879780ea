"""Knows how to write a file whole or not at all; knows nothing of what is in it."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from eplb_traces.errors import InputError


def atomic_write(path: str | Path, content: bytes | Callable[[Path], None]) -> None:
    """Put `content` at `path` so that a reader, or a crash, sees the old file or the new one and nothing between.

    The new file is written beside the old one, flushed to the disk and renamed over it. A link is followed: the file it
    points to is replaced, the link stays.

    Parameters
    ----------
    path
        Where the file shall be. Its folder has to exist.
    content
        The bytes, or a function that writes a file at the path it is given (same folder, same suffix as `path`).

    Raises
    ------
    InputError
        If the folder is missing or not writeable, or `path` is something else than a regular file.
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
