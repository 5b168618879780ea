"""Recognises .pt and .pth files and loads their tensors as numpy arrays."""

from pathlib import Path

import numpy as np

from eplb_traces.files.torch_file import OLDER_MAGIC, PICKLE, ZIP_MAGIC, read_torch
from eplb_traces.files.zip_files import member_head, member_names
from eplb_traces.readers.dialect import first_bytes

_HEAD_BYTES = 1 << 16


def is_torch_file(path: Path) -> bool:
    """Whether a file is torch's zip, whole or cut, or its older pickle, which is refused by name."""
    names = member_names(path)
    if names:
        return _pickle_of(names) is not None
    return first_bytes(path, 4).startswith((OLDER_MAGIC, ZIP_MAGIC))


def has_key(path: Path, keys: tuple[str, ...]) -> bool:
    """Whether one of the keys stands in the description of the tensors, which is not executed."""
    name = _pickle_of(member_names(path))
    head = first_bytes(path, _HEAD_BYTES) if name is None else member_head(path, name, _HEAD_BYTES)
    return any(key.encode() in head for key in keys)


def load_torch(path: Path) -> object:
    """Load what torch saved; errors as in `read_torch`."""
    with path.open("rb") as file:
        return read_torch(file)


def kind_of(value: object) -> str:
    """For messages: the kind of a value that torch saved."""
    return "tensor" if isinstance(value, np.ndarray) else type(value).__name__


def _pickle_of(names: list[str]) -> str | None:
    return next((name for name in names if name.endswith(PICKLE)), None)
