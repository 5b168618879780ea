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
    from eplb.errors import EplbError, InputError
    from eplb.formats import detect_format

    try:
        yield
    except InputError as error:
        try:
            found = detect_format(path).name
        except (EplbError, OSError):
            raise error from None
        raise InputError(f"{path}: a placement ({found}): expected a load or a trace") from error


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
            try:
                found = read(path).summary
            except (EplbError, OSError):
                continue
            raise FormatError(f"{path}: a load or trace ({found}): expected a placement") from error
        raise
