"""Reads a TOML file of which all keys are known."""

import tomllib
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path


def read_toml(path: Path, known: Collection[str]) -> dict[str, object]:
    """The keys and values of the file.

    Raises
    ------
    FormatError
        If it is not TOML, or with the key that is not one of `known`.
    """
    from eplb.errors import FormatError
    from eplb.formats.json_fields import read_text

    try:
        fields: dict[str, object] = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{path}: not TOML: {error}") from error
    except RecursionError as error:
        raise FormatError(f"{path}: lists or tables lie too deep in each other") from error
    for key in fields:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            raise FormatError(f"{path}: unknown key {key!r}: {meant}expected only {', '.join(known)}")
    return fields
