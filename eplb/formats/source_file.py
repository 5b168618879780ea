"""Reads a placement file at most once: its bytes, its text and its JSON or YAML value are kept for later use."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

from eplb.formats.json_fields import decode_utf8, parse_json, read_bytes


@final
@dataclass(frozen=True)
class SourceFile:
    """A file on disk. Every property raises `FormatError` for content that is not of its kind."""

    path: Path

    @cached_property
    def content(self) -> bytes:
        """All bytes of the file."""
        return read_bytes(self.path)

    @cached_property
    def text(self) -> str:
        """The file as UTF-8 text."""
        return decode_utf8(self.content, self.path)

    @cached_property
    def json(self) -> object:
        """The JSON value in the file; see `parse_json`."""
        return parse_json(self.text, str(self.path))

    @cached_property
    def yaml(self) -> object:
        """The value of the YAML document in the file; see `parse_yaml`."""
        from eplb.formats.yaml_text import parse_yaml

        return parse_yaml(self.text, str(self.path))

    @property
    def json_members(self) -> dict[str, object]:
        """The members of the object in a ``.json`` file; empty for another suffix or another JSON value."""
        value = self.json if self.path.suffix == ".json" else None
        return value if isinstance(value, dict) else {}
