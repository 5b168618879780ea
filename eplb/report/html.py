"""Writes a report as one HTML file that contains its style, scripts, libraries and data.

The page makes no requests, to the network or to other files. Equal contents give equal bytes.
"""

import html
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from eplb.report.contents import ReportContents
from eplb.report.html_payload import payload
from eplb.report.html_static import static_parts
from eplb_traces.files.atomic_file import atomic_write

_SCRIPTS: Final = (
    "arrays.js", "view.js", "cursor.js", "address.js", "expert.js", "layer.js", "overview.js", "domains.js",
    "step_time.js", "tables.js", "printing.js", "main.js",
)  # fmt: skip
"""In the order of inclusion; together they form one module."""


def write_page(contents: ReportContents, path: Path) -> None:
    """Write a report as one interactive HTML file.

    Parameters
    ----------
    contents
        The contents of the report.
    path
        The file; its folder must exist.

    Raises
    ------
    InputError
        If `path` cannot be written.
    """
    atomic_write(path, page(contents).encode())


def page(contents: ReportContents) -> str:
    """The text of the file that `write_page` writes."""
    parts = {
        "title": html.escape(f"{contents.title}: {'expert placement' if contents.plans else 'load of the experts'}"),
        **static_parts(contents),
        "style": _part("page.css"),
        "plotly": _library("plotly-cartesian.min.js"),
        "tables": _library("dataTables.min.js"),
        "script": "\n".join(_part(name) for name in _SCRIPTS),
        "payload": json_in_html(payload(contents)),
    }
    # In one pass: inserted text is not searched for placeholders.
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], _part("page.html"))


def json_in_html(value: dict[str, Any]) -> str:
    """JSON in which `<`, `>` and `&` are escaped, so that no string can end the script element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _part(name: str) -> str:
    return (files("eplb.report") / "page" / name).read_text(encoding="utf-8")


def _library(name: str) -> str:
    return _part(f"vendor/{name}")
