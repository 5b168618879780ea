"""Shows objects of the library: a short line as `repr`, and a small table as HTML for notebooks."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MOST_CHARACTERS: Final = 100
_MOST_ENTRIES = 4


def short_repr(value: "DataclassInstance") -> str:
    """The fields of a dataclass that differ from their defaults, on one line of at most 100 characters."""
    shown = {
        field.name: getattr(value, field.name)
        for field in fields(value)
        if field.repr and getattr(value, field.name) != _default(field)
    }
    arguments = ", ".join(f"{name}={_entry(entry)}" for name, entry in shown.items())
    return cut(f"{type(value).__name__}({arguments})")


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 layer", "8 layers"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def cut(text: str) -> str:
    """One line of at most 100 characters; the end of a longer one is replaced by "...)"."""
    line = " ".join(text.split())
    return line if len(line) <= MOST_CHARACTERS else f"{line[: MOST_CHARACTERS - 4]}...)"


def facts_html(title: str, facts: Mapping[str, object]) -> str:
    """A table of names and values, as HTML; text is escaped."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{_text(name)}</th><td style='text-align:left'>{_text(value)}</td></tr>"
        for name, value in facts.items()
    )
    return f"<div><strong>{_text(title)}</strong><table>{rows}</table></div>"


def fields_html(value: "DataclassInstance") -> str:
    """The fields of a dataclass with their values, as HTML."""
    return facts_html(type(value).__name__, {field.name: getattr(value, field.name) for field in fields(value)})


def _default(field: "Field[object]") -> object:
    """The default of a field; an object that equals nothing where it has none."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _entry(value: object) -> str:
    """A value; of a long sequence the first entries and the number of all."""
    if isinstance(value, tuple | list) and len(value) > _MOST_ENTRIES:
        first = ", ".join(repr(entry) for entry in value[:_MOST_ENTRIES])
        return f"({first}, ... {len(value)} in all)"
    return str(value) if isinstance(value, str) else repr(value)


def _text(value: object) -> str:
    """Escaped text: floats with six digits, the entries of a sequence of text below each other."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        lines = [entry if isinstance(entry, str) else None for entry in value]
        if lines and None not in lines:
            return "<br>".join(html.escape(str(entry)) for entry in lines)
        return html.escape(_entry(value))
    return html.escape(str(value))
