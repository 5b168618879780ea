"""Base classes of all errors of eplb_traces, eplb and eplb_cli; `except EplbError` catches every one.

`eplb_cli.exit_codes` maps them to exit codes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class EplbError(Exception):
    """Base class of errors that eplb raises on purpose. An exception of another class is a bug."""


class InputError(EplbError, ValueError):
    """A file, array or argument is invalid. The message contains the value, its place and what was expected."""


class IncompleteOutputError(EplbError):
    """Some output was written and the rest could not be. The message names both."""


class MissingExtraError(EplbError, ImportError):
    """A feature needs an optional dependency that is not installed.

    Parameters
    ----------
    feature
        The action that failed, as a noun phrase: "reading Parquet".
    extra
        Name of the extra that installs the dependency: "trace".
    """

    def __init__(self, feature: str, extra: str) -> None:
        from eplb_traces.install_command import install_command

        super().__init__(f"{feature} needs the extra '{extra}': {install_command(extra)}")
        self.feature = feature
        self.extra = extra

    def __reduce__(self) -> tuple[type["MissingExtraError"], tuple[str, str]]:
        return type(self), (self.feature, self.extra)


@contextmanager
def naming_place(place: str | Path) -> Iterator[None]:
    """Prefix the message of an InputError raised inside with `place`, a file or a part of it, once."""
    try:
        yield
    except InputError as error:
        if str(error).startswith(f"{place}: "):
            raise
        raise InputError(f"{place}: {error}") from error
