"""Shows which trace or load was written."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from eplb_cli import output


@final
@dataclass(frozen=True)
class Written:
    """A file that is there now, and its kind: "token-level trace" or "load"."""

    path: Path
    kind: str


def show_written(written: Written, *, as_json: bool) -> None:
    """Print the path, or one JSON object with the kind as well."""
    if as_json:
        output.json_object({"written": {"path": str(written.path), "kind": written.kind}})
    else:
        output.line(f"wrote {written.path}")
