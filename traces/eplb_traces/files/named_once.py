"""Refuses a file that is named twice where the tokens of all files are added up."""

import os
from collections.abc import Iterable
from pathlib import Path

from eplb_traces.errors import InputError
from eplb_traces.files.remote import url_of


def check_named_once(paths: Iterable[str | Path]) -> None:
    """Compare the files themselves, not their names: `a.npz`, `./a.npz` and a link to it are one.

    Raises
    ------
    InputError
        Naming the second of two paths of one file. A path without a file passes.
    """
    name_of: dict[object, str | Path] = {}
    for path in paths:
        identity = _identity(path)
        if identity in name_of:
            first = name_of[identity]
            also = "" if str(first) == str(path) else f", also as {first}"
            raise InputError(f"{path} is named twice{also}: its tokens would count twice")
        name_of[identity] = path


def _identity(path: str | Path) -> object:
    """What two paths of one file have in common."""
    url = url_of(path)
    if url is not None:
        return url
    try:
        state = os.stat(path)
    except OSError:
        return str(path)
    return state.st_dev, state.st_ino
