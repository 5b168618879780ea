"""Reads what torch.save wrote, without torch: tensors become numpy arrays; what would need code to be read is refused.

The file is a zip, not compressed, with ``data.pkl``, which `torch_pickle` decodes, and the numbers of each storage in
``data/KEY``. The form before torch 1.6, a bare pickle, is refused.
"""

import io
import struct
import zipfile
import zlib
from math import prod
from typing import IO, Any, Final, Literal, final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.files.limits import check_size
from eplb_traces.files.torch_pickle import BFLOAT16, Storage, TensorView, decoded
from eplb_traces.files.zip_files import check_members

ZIP_MAGIC: Final = b"PK\x03\x04"
OLDER_MAGIC: Final = b"\x80\x02"
PICKLE: Final = "data.pkl"
_BYTE_ORDERS: Final[dict[bytes, Literal["<", ">"]]] = {b"little": "<", b"big": ">"}
_MOST_LEVELS = 32
_DAMAGED = (
    *(RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, IndexError, NotImplementedError),
    *(MemoryError, OverflowError, struct.error, zipfile.BadZipFile, zlib.error),
)


def read_torch(file: IO[bytes]) -> object:
    """Read the value that torch.save wrote: arrays, numbers, texts, None, lists, tuples and dictionaries.

    Arrays are read-only views of the file's storages; bfloat16, which numpy does not have, is float32.

    Parameters
    ----------
    file
        At its beginning.

    Raises
    ------
    InputError
        If the file is cut, is another kind of pickle, needs code to be read, holds tensors that are not dense numbers
        or repeat their numbers, or is larger in memory than `files.limits` allows.
    """
    magic = file.read(len(ZIP_MAGIC))
    if magic.startswith(OLDER_MAGIC):
        raise InputError(
            "the form of torch.save before torch 1.6, a bare pickle, is not read: save it again, "
            "torch.save(torch.load(path, weights_only=True), path)"
        )
    num_bytes = file.seek(0, io.SEEK_END)
    try:
        with zipfile.ZipFile(file) as archive:
            document = _document(archive, num_bytes)
    except InputError:  # a ValueError
        raise
    except _DAMAGED as error:
        reason = str(error).strip("'\"").split("\n")[0] or type(error).__name__
        raise InputError(f"not a whole file of torch.save: {reason[:200]}") from error
    num_values, _ = _extent(document, {}, 0)
    check_size([num_values], num_bytes, "the document")
    return document


def _document(archive: zipfile.ZipFile, num_bytes: int) -> object:
    check_members(archive, num_bytes)
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"not a file of torch.save: its member {member.filename} is compressed")
    names = [name for name in archive.namelist() if name.split("/")[-1] == PICKLE]
    if len(names) != 1:
        raise InputError(f"not a file of torch.save: it has {len(names)} members {PICKLE}, expected one")
    folder = names[0].removesuffix(PICKLE)
    if f"{folder}constants.pkl" in archive.namelist():
        raise InputError("a TorchScript archive, which is code: expected a file of torch.save")
    return decoded(archive.read(names[0]), _Storages(archive, folder).array)


@final
class _Storages:
    """The storages of an archive; each is read once."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self.archive, self.folder = archive, folder
        self.found: dict[tuple[str, str], NDArray[Any]] = {}
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in archive.namelist() else b"little"
        if order not in _BYTE_ORDERS:
            raise InputError(f"byteorder is {order[:20]!r}: expected little or big")
        self.byte_order = _BYTE_ORDERS[order]

    def array(self, view: TensorView) -> NDArray[Any]:
        """The array of a tensor: its place is compared with the storage before numpy sees it."""
        numbers = self._numbers(view.storage, view.dtype)
        place = f"a tensor of storage {view.storage.key}"
        shape, strides = view.shape, view.strides
        if len(shape) != len(strides) or min((*shape, *strides, view.offset), default=0) < 0:
            raise InputError(f"{place} has shape {shape}, strides {strides} and offset {view.offset}")
        if prod(shape) > numbers.size:
            raise InputError(
                f"{place} is of shape {shape}, {prod(shape)} numbers, and holds {numbers.size}: expected a number for "
                "each; save a contiguous copy"
            )
        last = view.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if not prod(shape):
            return np.empty(shape, numbers.dtype)
        if last >= numbers.size:
            raise InputError(f"{place} has a number at {last}: the storage has {numbers.size}")
        steps = [stride * numbers.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(numbers[view.offset :], shape, steps, writeable=False)

    def _numbers(self, storage: Storage, dtype: str) -> NDArray[Any]:
        """[num_elements] the numbers of a storage."""
        if (storage.key, dtype) not in self.found:
            content = self.archive.read(f"{self.folder}data/{storage.key}")
            stored = np.dtype("u2" if dtype == BFLOAT16 else dtype).newbyteorder(self.byte_order)
            expected = storage.num_elements * (stored.itemsize if storage.dtype else 1)
            if len(content) != expected:
                raise InputError(f"storage {storage.key} has {len(content)} bytes: expected {expected}")
            numbers = np.frombuffer(content, stored).astype(stored.newbyteorder("="), copy=False)
            self.found[storage.key, dtype] = _widened(numbers) if dtype == BFLOAT16 else numbers
        return self.found[storage.key, dtype]


def _widened(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 as float32: its bits are the upper half of those of a float32."""
    widened: NDArray[np.float32] = (halves.astype(np.uint32) << 16).view(np.float32)
    return widened


def _extent(value: object, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """How many values a document has when what is in it several times is counted so often, and its levels.

    Raises
    ------
    InputError
        If it has more than 32 levels, as one that contains itself.
    """
    if isinstance(value, np.ndarray):
        return value.size, 0
    if not isinstance(value, list | tuple | dict):
        return 1, 0
    if id(value) not in known:
        if depth >= _MOST_LEVELS:
            raise InputError(f"lists or dictionaries lie more than {_MOST_LEVELS} levels deep in each other")
        parts = value.values() if isinstance(value, dict) else value
        extents = [_extent(part, known, depth + 1) for part in parts]
        levels = 1 + max((levels for _, levels in extents), default=0)
        known[id(value)] = 1 + sum(count for count, _ in extents), levels
    if depth + known[id(value)][1] > _MOST_LEVELS:
        raise InputError(f"lists or dictionaries lie more than {_MOST_LEVELS} levels deep in each other")
    return known[id(value)]
