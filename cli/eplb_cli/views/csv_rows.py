"""Makes CSV of the rows that `--json` prints."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Final

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""A text that begins like this is a formula for spreadsheets."""


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """A heading and a line for each row.

    A nested field is the column `outer.inner`, a list of texts is joined, and a list of anything else is left out: it
    is no cell. A text that a spreadsheet would execute as a formula gets an apostrophe in front.
    """
    flat = [_flat(row, "") for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    memory = io.StringIO()
    writer = csv.writer(memory, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(name)) for name in columns] for row in flat)
    return memory.getvalue()


def _flat(fields: Mapping[str, object], prefix: str) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif not isinstance(value, list | tuple):
            flat[f"{prefix}{name}"] = value
        elif value and all(isinstance(one, str) for one in value):
            flat[f"{prefix}{name}"] = "; ".join(value)
    return flat


def _cell(value: object) -> object:
    """The value; nothing for null."""
    if isinstance(value, bool):
        return str(value).lower()
    is_formula = isinstance(value, str) and value.startswith(_FORMULA)
    return f"'{value}" if is_formula else value
