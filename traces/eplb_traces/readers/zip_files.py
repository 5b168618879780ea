"""Looks into zip archives to recognise them; a damaged archive has no members."""

import zipfile
import zlib
from pathlib import Path

_DAMAGED = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, NotImplementedError, RuntimeError, KeyError)


def member_names(path: Path) -> list[str]:
    """Names of the members; none where the file is no whole zip archive."""
    try:
        if not zipfile.is_zipfile(path):
            return []
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except _DAMAGED:
        return []


def member_head(path: Path, name: str, num_bytes: int) -> bytes:
    """The beginning of a member; nothing where it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            return file.read(num_bytes)
    except _DAMAGED:
        return b""
