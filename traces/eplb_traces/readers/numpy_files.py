"""Loads numpy's .npy and .npz as plain arrays; arrays of Python objects, which are pickles, are refused.

The shape in a header is compared with the bytes that follow before an array of that shape is allocated.
"""

import tokenize
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.files.limits import check_size, size_of
from eplb_traces.files.zip_files import check_members

NPY_MAGIC = b"\x93NUMPY"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DAMAGED = (ValueError, OSError, EOFError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError)
_DAMAGED_ZIP = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def plain_array(file: IO[bytes], num_bytes: int, compressed_bytes: int | None = None) -> NDArray[Any]:
    """Load the array of an open .npy.

    Parameters
    ----------
    file
        At its beginning.
    num_bytes
        Of the .npy.
    compressed_bytes
        Of the archive in which it lies, if it does.

    Raises
    ------
    InputError
        If it is no .npy, an archive of several, holds objects, or is shorter or longer than its header says.
    """
    magic = file.read(len(NPY_MAGIC))
    if magic.startswith(b"PK"):
        raise InputError("an archive of several arrays: expected one .npy")
    if magic != NPY_MAGIC:
        raise InputError("not a plain .npy file: it does not begin with numpy's magic number")
    file.seek(0)
    try:
        _check_header(file, num_bytes, num_bytes if compressed_bytes is None else compressed_bytes)
        file.seek(0)
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except InputError:
        raise
    except _DAMAGED as error:
        raise InputError(f"not a plain .npy file: {without_advice(error)}") from error
    return array


def plain_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Load every array of a .npz.

    Raises
    ------
    InputError
        If the file is no .npz, holds objects, or has a name twice.
    """
    with path.open("rb") as file:
        return archived_arrays(file, size_of(path))


def archived_arrays(file: IO[bytes], num_bytes: int) -> dict[str, NDArray[Any]]:
    """Load every array of an open .npz of `num_bytes` bytes; errors as in `plain_arrays`."""
    if file.read(len(NPY_MAGIC)) == NPY_MAGIC:
        raise InputError("not an .npz file: it is a single array")
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            check_members(archive, num_bytes)
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name in arrays:
                    raise InputError(f"the array {name} is there twice")
                with archive.open(member) as content:
                    arrays[name] = plain_array(content, member.file_size, num_bytes)
    except _DAMAGED_ZIP as error:
        inner = str(error).removeprefix("not a plain .npy file: ")
        raise InputError(f"not an .npz file of plain arrays: {inner}") from error
    return arrays


def without_advice(error: Exception) -> str:
    """The message without numpy's advice to unpickle."""
    if "allow_pickle" in str(error):
        return "Object arrays cannot be loaded: they are pickles, which can run any code"
    return str(error)


def _check_header(file: IO[bytes], num_bytes: int, compressed_bytes: int) -> None:
    """Compare the size of the array with the bytes after the header, and with those of the file."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise InputError(f"not a plain .npy file: version {version[0]}.{version[1]}, expected 1.0 or 2.0")
    shape, _, dtype = _HEADERS[version](file)
    check_size(shape, compressed_bytes, "the array")
    if dtype.hasobject:
        return  # refused by name where the array is read
    size = prod(shape)
    expected, found = size * dtype.itemsize, num_bytes - file.tell()
    if expected != found or min(shape, default=0) < 0 or (size and not dtype.itemsize):
        raise InputError(
            f"not a plain .npy file: its header says {dtype} of shape {shape}, {expected} bytes, and {found} follow"
        )
