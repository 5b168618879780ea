"""Looks into zip archives to recognise them, and limits what they unpack; a damaged archive has no members."""

import zipfile
import zlib
from pathlib import Path

from eplb_traces.files.limits import check_size

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


def check_members(archive: zipfile.ZipFile, num_bytes: int) -> None:
    """Refuse an archive of `num_bytes` bytes whose members are too large together.

    Raises
    ------
    InputError
        As `check_size`, for float64.
    """
    check_size([sum(member.file_size for member in archive.infolist()) // 8], num_bytes, "the archive")


def member_head(path: Path, name: str, num_bytes: int) -> bytes:
    """The beginning of a member; nothing where it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            return file.read(num_bytes)
    except _DAMAGED:
        return b""
