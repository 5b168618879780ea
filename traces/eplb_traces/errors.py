"""Errors of every room. They live in the lowest room so that one `except EplbError` catches them all.

The classes say what went wrong; `eplb_cli.status` alone knows which exit code that is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class EplbError(Exception):
    """Anything eplb refuses or fails to do on purpose. A bug is never an EplbError."""


class InputError(EplbError, ValueError):
    """A file, array or argument is not what it has to be. The message carries value, place and expectation."""


class MissingExtraError(EplbError, ImportError):
    """A feature needs an optional dependency that is not installed.

    Parameters
    ----------
    feature
        What the caller wanted to do, as a noun phrase: "reading Parquet".
    extra
        Name of the extra that brings the dependency: "trace".
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra '{extra}': pip install 'eplb[{extra}]'")
        self.extra = extra


@contextmanager
def naming_place(place: str | Path) -> Iterator[None]:
    """Put `place`, a file or a part of one, before the message of an InputError from inside, unless it stands there."""
    try:
        yield
    except InputError as error:
        if str(error).startswith(f"{place}: "):
            raise
        raise InputError(f"{place}: {error}") from error
