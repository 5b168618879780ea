"""Names the mistake where a placement is given as a load, or a load as a placement."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def expecting_load(path: Path) -> Iterator[None]:
    """Say that a file which cannot be read as a load is a placement, if it is one.

    Raises
    ------
    InputError
        The error of the block, or that the file is a placement.
    """
    from eplb.errors import InputError
    from eplb.formats import detect_format

    try:
        yield
    except InputError as error:
        if not _is_placement(path):
            raise
        raise InputError(f"{path}: a placement ({detect_format(path).name}): expected a load or a trace") from error


@contextmanager
def expecting_placement(*paths: Path) -> Iterator[None]:
    """Say that a file which cannot be read as a placement is a load or a trace, if one of them is.

    Raises
    ------
    FormatError
        The error of the block, or that a file is a load or a trace.
    """
    from eplb.errors import EplbError, FormatError
    from eplb_traces.readers import read

    try:
        yield
    except FormatError as error:
        for path in paths:
            if _is_placement(path):
                continue
            try:
                found = read(path).summary
            except (EplbError, OSError):
                continue
            raise FormatError(f"{path}: a load or trace ({found}): expected a placement") from error
        raise


def _is_placement(path: Path) -> bool:
    """Whether a placement can be parsed from the file, though options may be missing that complete it."""
    from eplb.errors import EplbError
    from eplb.formats import parse_file

    try:
        parse_file(path)
    except (EplbError, OSError):
        return False
    return True
