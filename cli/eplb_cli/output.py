"""Alone prints. The result goes to stdout, talk and progress to stderr; rich is loaded when a table or a bar is due."""

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from rich.table import Table

    from eplb_traces.errors import IncompleteOutputError

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
Cell = str | int | float
_QUIET: Final = ContextVar("quiet", default=False)


def line(text: str) -> None:
    """Print a line of the result, never wrapped: it may be a path or a command to copy."""
    _print(f"{printable(text)}\n")


def printable(text: str) -> str:
    """The text with control characters of a terminal as escapes: names come from files."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _print(text: str) -> None:
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _not_printed(error) from error


def flush() -> None:
    """Print what is still in the buffer of stdout."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _not_printed(error) from error


def _not_printed(error: OSError) -> "IncompleteOutputError":
    """The error of a result that stdout does not take; stdout is closed, so that Python does not fail on it again."""
    from eplb_traces.errors import IncompleteOutputError

    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    return IncompleteOutputError(
        f"stdout: {error.strerror or error}: the result is not printed; files that were to be written are there"
    )


def print_any_text() -> None:
    """Let stdout print characters that its encoding lacks as escapes."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def json_object(fields: Mapping[str, object]) -> None:
    """Print the whole result as one JSON object."""
    _print(json.dumps(fields, indent=2, allow_nan=False) + "\n")


def can_print(text: str) -> bool:
    """Whether stdout's encoding has these characters; where it has not, say the same in ASCII."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def width() -> int:
    """Columns of the terminal; 80 where there is none."""
    from rich.console import Console

    return Console().width


def note(text: str) -> None:
    """Say something to the user, at once, that is not the result; nothing with --quiet."""
    if not _QUIET.get():
        _to_stderr(text)


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()


def error(sentence: str) -> None:
    """Say why the command ended."""
    _to_stderr(f"error: {sentence}")


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print rows under headings, at most as wide as the terminal (80 columns where there is none).

    A column of numbers is aligned right. Integers get no separators, floats four decimals; other wishes come as text
    that is ready to print, which counts as a number if it begins like one.
    """
    from rich import box
    from rich.table import Column, Table

    numeric = [all(_looks_numeric(row[i]) for row in rows) for i in range(len(headings))]
    columns = [
        Column(heading, justify="right" if number else "left", no_wrap=number or i == 0)
        for i, (heading, number) in enumerate(zip(headings, numeric, strict=True))
    ]
    rich_table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        rich_table.add_row(*(_text(cell) for cell in row))
    _print_titled(title, rich_table)


def facts(title: str, pairs: Sequence[tuple[str, Cell]]) -> None:
    """Print name and value pairs, one a line."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for name, value in pairs:
        grid.add_row(name, _text(value))
    _print_titled(title, grid)


def _print_titled(title: str, body: "Table") -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(printable(title), style="bold", soft_wrap=True)
        console.print(body)
    for text in captured.get().splitlines():  # with rich's own styles
        _print(f"{text.rstrip()}\n")
    line("")


def written(path: Path, format: str, server_flags: str) -> None:
    """Say which file is there now, and below it what makes its engine load it."""
    line(f"wrote {path} ({format})")
    for text in server_flags.splitlines():
        line(f"  {text}")


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 node", "4 nodes"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percentage(fraction: float) -> str:
    """A fraction in percent, without the sign: 0.0003 is "0.03"."""
    text = f"{100 * fraction:.2f}"
    return "0.00" if text == "-0.00" else text


def milliseconds(seconds: float) -> str:
    """A duration in milliseconds: 0.00512 is "5.1"."""
    return f"{1000 * seconds:.1f}"


def byte_size(count: float) -> str:
    """A number of bytes in the decimal unit that fits it: 2598371328 is "2.598 GB", 44040192 "44.040 MB"."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3f} {unit}"
    return f"{count:g} B"


@contextmanager
def progress(doing: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """A bar on stderr while the block runs, gone afterwards; nothing where stderr is no terminal.

    Parameters
    ----------
    doing
        What the user waits for: "planning".
    total
        Steps of the block; None where unknown, which gives a bar without an end.

    Yields
    ------
    Callable
        To be called after each step.
    """
    if _QUIET.get() or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def quiet() -> Iterator[None]:
    """Print results and errors alone while the block runs: no notes, no progress."""
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


@contextmanager
def library_log_on_stderr(least: int = logging.INFO) -> Iterator[None]:
    """Show what the libraries log (from a level on) as plain lines on stderr while the block runs."""
    logger = logging.getLogger("eplb")
    handler, level = _NoteHandler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(least)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@final
class _NoteHandler(logging.Handler):
    """Every record is a line."""

    def emit(self, record: logging.LogRecord) -> None:
        _to_stderr(self.format(record))


def _text(cell: Cell) -> str:
    return f"{cell:.4f}" if isinstance(cell, float) else printable(str(cell))


def _looks_numeric(cell: Cell) -> bool:
    return not isinstance(cell, str) or cell[:1].isdigit() or cell in ("", "-")
