"""Quotes paths for the place where a user pastes them: a shell, or YAML."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_PLAIN_YAML: Final = re.compile(r"[\w./][\w./@%+-]*")


def shell_word(path: Path) -> str:
    """The path as one word of a shell."""
    return shlex.quote(str(path))


def shell_json(fields: Mapping[str, object]) -> str:
    """A JSON object as one word of a shell."""
    return shlex.quote(json.dumps(fields, ensure_ascii=False))


def yaml_scalar(path: Path) -> str:
    """The path as a YAML scalar, in double quotes where it is not plain."""
    text = str(path)
    return text if _PLAIN_YAML.fullmatch(text) else json.dumps(text, ensure_ascii=False)
