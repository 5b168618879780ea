"""Checks the sizes that a file declares against its own size, before anything of that size is allocated."""

from collections.abc import Iterable
from math import prod
from pathlib import Path

from eplb_traces.errors import InputError

LARGEST_EXACT = 1 << 53
"""float64 holds every integer up to here."""
LARGEST_EXACT_FLOAT32 = 1 << 24
MOST_LAYERS = 1 << 16
"""A layer id from here on is something else."""
MOST_EXPERTS = 1 << 16
"""Ids of a token-level trace are uint16."""

_ALWAYS_ALLOWED = 1 << 24  # 128 MiB of float64
_NUMBERS_PER_BYTE = 64  # of a compressed or sparse file: most counts of a window of few tokens are zeros
MOST_NUMBERS = 1 << 30
"""Of an array: 8 GiB of float64."""


def check_size(shape: Iterable[int], num_bytes: int, what: str) -> None:
    """Refuse an array that is too large to come from a file of this size.

    Parameters
    ----------
    shape
        Of the array.
    num_bytes
        Size of the file, or of the part that the array comes from.
    what
        For the message: "the array counts".

    Raises
    ------
    InputError
        If the array has more than 2^24 numbers and more than `most_numbers` of this size.
    """
    axes = [int(axis) for axis in shape]
    if prod(axes) > most_numbers(num_bytes):
        raise InputError(
            f"{what} has {' x '.join(map(str, axes))} numbers, the file {num_bytes} bytes: expected at most "
            f"{most_numbers(num_bytes)} numbers; the file is damaged, or a number in it is no id or size"
        )


def most_numbers(num_bytes: int) -> int:
    """How many numbers an array from a file of this size may have: one a byte, and 64 a byte up to 2^30 of them."""
    return max(_ALWAYS_ALLOWED, min(MOST_NUMBERS, num_bytes * _NUMBERS_PER_BYTE), num_bytes)


def check_regular(path: Path) -> None:
    """Refuse a pipe, a socket or a device, which may have no end; a file that does not exist passes.

    Raises
    ------
    InputError
        Unless the path is that of a regular file, a folder or nothing.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError("is a pipe, a socket or a device: expected a regular file or a folder")


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder together."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return path.stat().st_size
