"""Decodes numpy's .npy and .npz files without unpickling, and encodes arrays as such files."""

import io
import zipfile
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from eplb.formats.json_fields import error_context
from eplb.formats.source_file import SourceFile
from eplb_traces.readers.numpy_files import archived_arrays, plain_array


def load_npy(source: SourceFile) -> NDArray[np.generic]:
    """The array in a .npy file.

    Raises
    ------
    FormatError
        If it is not one, holds pickled objects, or declares more numbers than its bytes hold.
    """
    with error_context(f"{source.path}: not a .npy file of numbers"):
        return plain_array(io.BytesIO(source.content), len(source.content))


def load_npz(source: SourceFile) -> dict[str, NDArray[np.generic]]:
    """The arrays in a .npz file by name.

    Raises
    ------
    FormatError
        If it is not one, holds pickled objects, or declares more numbers than a file of its size may.
    """
    with error_context(f"{source.path}: not a .npz file of numbers"):
        return archived_arrays(io.BytesIO(source.content), len(source.content))


def npy_bytes(array: NDArray[np.int32]) -> bytes:
    """The bytes of a .npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def npz_bytes(arrays: Mapping[str, NDArray[np.int64]]) -> bytes:
    """The bytes of a .npz file; equal arrays give equal bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.save(entry, array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, entry.getvalue())
    return stream.getvalue()
