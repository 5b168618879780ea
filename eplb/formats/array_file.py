"""Knows how to read numpy's files without unpickling and to write them into memory; knows no dialect."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError
from eplb.formats.json_fields import read_bytes

_READ_ERRORS = (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, SyntaxError, NotImplementedError)


def load_npy(path: Path) -> NDArray[np.generic]:
    """The array in a .npy file.

    Raises
    ------
    FormatError
        If it is none, or holds pickled objects.
    """
    content = read_bytes(path)
    try:
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except _READ_ERRORS as error:
        raise FormatError(f"{path}: not a .npy file of numbers: {error}") from error


def load_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    """The arrays in a .npz file by name.

    Raises
    ------
    FormatError
        If it is none, or holds pickled objects.
    """
    content = read_bytes(path)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("one array, no archive")
            return {name: archive[name] for name in archive.files}
    except (*_READ_ERRORS, AttributeError, TypeError) as error:
        raise FormatError(f"{path}: not a .npz file of numbers: {error}") from error


def npy_bytes(array: NDArray[np.int32]) -> bytes:
    """The bytes of a .npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def npz_bytes(arrays: Mapping[str, NDArray[np.int64]]) -> bytes:
    """The bytes of a .npz file, the same for the same arrays at any time."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.save(entry, array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, entry.getvalue())
    return stream.getvalue()
