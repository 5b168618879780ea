"""Loads numpy's .npy and .npz as plain arrays; arrays of Python objects, which are pickles, are refused."""

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError

NPY_MAGIC = b"\x93NUMPY"


def plain_array(file: IO[bytes]) -> NDArray[Any]:
    """Load the array of an open .npy.

    Raises
    ------
    InputError
        If it is no .npy, an archive of several, or holds objects.
    """
    magic = file.read(len(NPY_MAGIC))
    if magic.startswith(b"PK"):
        raise InputError("an archive of several arrays: expected one .npy")
    if magic != NPY_MAGIC:
        raise InputError("not a plain .npy file: it does not begin with numpy's magic number")
    file.seek(0)
    try:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, TypeError, MemoryError, tokenize.TokenError) as error:
        raise InputError(f"not a plain .npy file: {without_advice(error)}") from error
    return array


def plain_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Load every array of a .npz.

    Raises
    ------
    InputError
        If the file is no .npz, or holds objects.
    """
    with path.open("rb") as file:
        if file.read(len(NPY_MAGIC)) == NPY_MAGIC:
            raise InputError("not an .npz file: it is a single array")
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    arrays[name.removesuffix(".npy")] = plain_array(member)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        inner = str(error).removeprefix("not a plain .npy file: ")
        raise InputError(f"not an .npz file of plain arrays: {inner}") from error
    return arrays


def without_advice(error: Exception) -> str:
    """The message without numpy's advice to unpickle."""
    if "allow_pickle" in str(error):
        return "Object arrays cannot be loaded: they are pickles, which can run any code"
    return str(error)
