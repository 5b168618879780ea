"""Loads .pt and .pth files of tensors, numbers, strings, lists and dictionaries; anything else in them is refused."""

import io
import pickletools
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError, MissingExtraError
from eplb_traces.files.limits import size_of
from eplb_traces.readers.dialect import first_bytes
from eplb_traces.readers.zip_files import check_members, member_head, member_names

if TYPE_CHECKING:
    from torch import Tensor

_DAMAGED = (
    *(RuntimeError, EOFError, OSError, ValueError, KeyError, AssertionError, TypeError, IndexError, AttributeError),
    *(MemoryError, OverflowError, ImportError, struct.error, zipfile.BadZipFile, zlib.error),
)
_ZIP_MAGIC = b"PK\x03\x04"
_OLDER_MAGIC = b"\x80\x02"
_HEAD_BYTES = 1 << 16
_PICKLES_OF_OLDER = 5
_LONGEST_WORD = 4096  # torch searches its error messages in a time that grows with the square of a word in them


def is_torch_file(path: Path) -> bool:
    """Whether a file is torch's zip, whole or cut, or its older pickle."""
    names = member_names(path)
    if names:
        return _pickle_of(names) is not None
    return first_bytes(path, 4).startswith((_OLDER_MAGIC, _ZIP_MAGIC))


def has_key(path: Path, keys: tuple[str, ...]) -> bool:
    """Whether one of the keys stands in the description of the tensors, which is not executed."""
    name = _pickle_of(member_names(path))
    head = first_bytes(path, _HEAD_BYTES) if name is None else member_head(path, name, _HEAD_BYTES)
    return any(key.encode() in head for key in keys)


def load_torch(path: Path) -> object:
    """Load what torch saved, with weights only: no code runs.

    Raises
    ------
    InputError
        If the file is cut, is another kind of pickle, or needs code to be read.
    MissingExtraError
        Without torch.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("reading .pt files", "runtime") from error
    import pickle

    try:
        _check_archive(path)
        with path.open("rb") as file:  # a path that ends in .safetensors would be read as such
            document: object = torch.load(file, map_location="cpu", weights_only=True)
    except InputError:  # a ValueError
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            "not a file of plain tensors: it needs unpickling, which can run any code, and is refused "
            f"({_first_sentence(error)})"
        ) from error
    except _DAMAGED as error:
        raise InputError(f"not a whole file of torch.save: {_first_sentence(error)}") from error
    return document


def array_of_tensor(tensor: "Tensor", place: str) -> NDArray[Any]:
    """A tensor as a numpy array; bfloat16, which numpy does not have, as float32.

    Raises
    ------
    InputError
        If it is sparse, quantized, complex, without content, or repeats its content in another axis.
    """
    import torch

    dense = tensor.detach()
    is_plain = dense.layout is torch.strided and dense.device.type == "cpu"
    if not is_plain or dense.is_quantized or dense.is_complex():
        kind = f"{tensor.layout} tensor of {tensor.dtype} on {tensor.device}"
        raise InputError(f"{place} is a {kind}: expected plain numbers")
    num_stored = dense.untyped_storage().nbytes() // dense.element_size()
    if dense.numel() > num_stored:
        raise InputError(
            f"{place} is of shape {tuple(dense.shape)}, {dense.numel()} numbers, and holds {num_stored}: expected a "
            "number for each; save a contiguous copy"
        )
    if dense.is_floating_point() and dense.dtype not in (torch.float16, torch.float32, torch.float64):
        dense = dense.float()
    array: NDArray[Any] = np.asarray(dense.numpy())
    return array


def _check_archive(path: Path) -> None:
    """Limit what a compressed archive unpacks (torch's own are not compressed), and the words of its pickles."""
    if first_bytes(path, 4) != _ZIP_MAGIC:
        with path.open("rb") as file:
            for _ in range(_PICKLES_OF_OLDER):
                if file.peek(1):
                    _check_words(file)
        return
    with zipfile.ZipFile(path) as archive:
        check_members(archive, size_of(path))
        for name in archive.namelist():
            content = archive.read(name) if name.endswith("data.pkl") else b""
            if max(map(len, content.split()), default=0) > _LONGEST_WORD:
                _check_words(io.BytesIO(content))


def _check_words(file: IO[bytes]) -> None:
    """Refuse a pickle, which is not executed, with a name or a text that has a very long word."""
    for _, argument, position in pickletools.genops(file):
        longest = max(map(len, argument.split()), default=0) if isinstance(argument, str) else 0
        if longest > _LONGEST_WORD:
            raise InputError(
                f"a text at byte {position} of its pickle has {longest} characters without a space: expected at most "
                f"{_LONGEST_WORD}"
            )


def _pickle_of(names: list[str]) -> str | None:
    return next((name for name in names if name.endswith("data.pkl")), None)


def _first_sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    naming = [line for line in lines if "GLOBAL" in line or "global" in line]
    return (naming or lines or [type(error).__name__])[0][:200]
