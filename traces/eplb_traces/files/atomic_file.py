"""Writes files atomically, one or several that belong together."""

import fcntl
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from eplb_traces.errors import IncompleteOutputError, InputError
from eplb_traces.files.remote import put, url_of

Content = bytes | Callable[[Path], None]
"""The bytes of a file, or a function that writes it to a given path."""

_logger = logging.getLogger("eplb")


def atomic_write(path: str | Path, content: Content) -> None:
    """Write `content` to `path` so that a reader sees either the old file or the complete new one, even after a crash.

    The new file is written to the same folder, flushed to disk and renamed over the old one, whose permissions it gets.
    If `path` is a link, the file it points to is replaced. What an interrupted write to `path` has left is removed.

    Parameters
    ----------
    path
        The file to write. Its folder must exist.
    content
        The bytes, or a function that writes a file to a given path (with the folder and suffix of `path`).

    Raises
    ------
    InputError
        If the folder is missing or not writeable, or `path` is not a regular file. Nothing was written then.
    """
    atomic_write_all({path: content})


def atomic_write_all(files: Mapping[str | Path, Content]) -> None:
    """Write files that belong together: none is replaced before all new ones are complete on disk.

    A crash between two renames leaves the first files new and the others old; they are renamed in the given order.
    Objects of a store (`s3://`) are put one after the other, each as a whole.

    Raises
    ------
    InputError
        As `atomic_write` raises it. Nothing was written then.
    IncompleteOutputError
        If a file cannot be renamed after another one was.
    """
    _write_rest([(path, content) for path, content in files.items() if url_of(path) is None], [])
    for path, content in files.items():
        url = url_of(path)
        if url is not None:
            put(url, content)


def _write_rest(files: list[tuple[str | Path, Content]], ready: list[tuple[str | Path, Path, Path]]) -> None:
    """Write the files beside their targets, each inside the locks of those before; then rename all of them."""
    if not files:
        _rename(ready)
        return
    (path, content), *rest = files
    target = Path(os.path.realpath(path))
    with _temporary(path, target) as beside:
        with _cannot_write(path):
            if isinstance(content, bytes):
                beside.write_bytes(content)
            else:
                content(beside)
            if target.exists():
                beside.chmod(target.stat().st_mode & 0o7777)
            _flush_to_disk(beside, os.O_RDWR)
        _write_rest(rest, [*ready, (path, beside, target)])


def _rename(ready: list[tuple[str | Path, Path, Path]]) -> None:
    done: list[str] = []
    for path, beside, target in ready:
        try:
            os.replace(beside, target)
        except OSError as error:
            message = f"cannot write {path}: {error.strerror or error}"
            if done:
                raise IncompleteOutputError(f"{message}; written before: {', '.join(done)}") from error
            raise InputError(message) from error
        done.append(str(path))
    for folder in {target.parent for _, _, target in ready}:
        try:
            _flush_to_disk(folder, os.O_RDONLY)
        except OSError as error:
            _logger.warning(
                "%s: written, but a power failure may undo it: the folder cannot be flushed to disk: %s",
                ", ".join(done),
                error.strerror or error,
            )


@contextmanager
def _temporary(path: str | Path, target: Path) -> Iterator[Path]:
    """Create a file beside the target, locked until the block ends; then remove it if it is still there."""
    if target.exists() and not target.is_file():
        raise InputError(f"cannot write {path}: it is not a regular file")
    _remove_abandoned(target)
    with _cannot_write(path):
        beside, descriptor = _create_locked(target)
    try:
        yield beside
    finally:
        beside.unlink(missing_ok=True)
        os.close(descriptor)


def _create_locked(target: Path) -> tuple[Path, int]:
    """A new file beside the target. Nobody else can read it if a file with permissions of its own is replaced."""
    mode = 0o600 if target.exists() else 0o666
    while True:
        beside = target.with_name(f".{target.stem}.{secrets.token_hex(8)}{target.suffix}")
        descriptor = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode)
        with suppress(OSError):  # a file system without locks: nothing abandoned is removed there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if beside.exists():  # another process may have removed it before it was locked
            return beside, descriptor
        os.close(descriptor)


def _remove_abandoned(target: Path) -> None:
    """Remove files of interrupted writes to the target. A file whose writer is alive is locked."""
    name = re.compile(rf"\.{re.escape(target.stem)}\.[0-9a-f]{{16}}{re.escape(target.suffix)}")
    entries: list[str] = []
    with suppress(OSError):
        entries = os.listdir(target.parent)
    for entry in filter(name.fullmatch, entries):
        with suppress(OSError):
            descriptor = os.open(target.parent / entry, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (target.parent / entry).unlink()
            finally:
                os.close(descriptor)


@contextmanager
def _cannot_write(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _flush_to_disk(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
