"""Alone prints. The result goes to stdout, talk and progress to stderr; rich is loaded when a table or a bar is due."""

import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, final

if TYPE_CHECKING:
    from rich.console import RenderableType


_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
Cell = str | int | float
_QUIET: Final = ContextVar("quiet", default=False)
_RESULT_IS_TALK: Final = ContextVar("result_is_talk", default=False)
_SHOWN_AS: Final = ContextVar[Mapping[str, str] | None]("shown_as", default=None)


def line(text: str) -> None:
    """Print a line of the result, never wrapped: it may be a path or a command to copy."""
    _to_stdout(f"{printable(text)}\n")


def printable(text: str) -> str:
    """The text with control characters of a terminal as escapes: names come from files."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), renamed(text))


def show_as(names: Mapping[str, str]) -> None:
    """From now on, print these names in place of the paths of temporary files: {path: name}."""
    _SHOWN_AS.set(names)


def shown_as() -> Mapping[str, str]:
    """The names that `show_as` was given."""
    return _SHOWN_AS.get() or {}


def renamed(text: str) -> str:
    """The text with the names of `show_as`."""
    for path, name in shown_as().items():
        text = text.replace(path, name)
    return text


def print_any_text() -> None:
    """Let stdout print characters that its encoding lacks as escapes."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def json_object(fields: Mapping[str, object]) -> None:
    """Print the whole result as one JSON object."""
    _to_stdout(renamed(json.dumps(fields, indent=2, allow_nan=False)) + "\n")


def csv_rows(rows: Sequence[Mapping[str, object]]) -> None:
    """Print the rows of the result as CSV."""
    from eplb_cli.views.csv_rows import csv_text

    _to_stdout(renamed(csv_text(rows)))


def bytes_of(path: Path) -> None:
    """Print the file as it is: it is the whole result."""
    from shutil import copyfileobj

    with path.open("rb") as file, _named_stdout():
        sys.stdout.flush()
        copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


@contextmanager
def result_on_stderr() -> Iterator[None]:
    """Print results as talk while the block runs: stdout is kept for a file."""
    token = _RESULT_IS_TALK.set(True)
    try:
        yield
    finally:
        _RESULT_IS_TALK.reset(token)


def _to_stdout(text: str) -> None:
    if _RESULT_IS_TALK.get():
        if sys.stderr is not None and not _QUIET.get():
            sys.stderr.write(text)
        return
    with _named_stdout():
        sys.stdout.write(text)


@contextmanager
def _named_stdout() -> Iterator[None]:
    from eplb_traces.errors import IncompleteOutputError

    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise IncompleteOutputError(
            f"stdout: {error.strerror or error}: the result is not printed; files that were to be written are there"
        ) from error


def is_closed() -> bool:
    """Whether stdout is closed, as in `eplb plan ... >&-`: the next file that is opened would get its number."""
    return sys.stdout is None


def is_terminal() -> bool:
    """Whether stdout is a terminal, which shows text alone."""
    return sys.stdout.isatty()


def flush() -> None:
    """Print what is buffered; where that fails, the rest goes nowhere when Python flushes again at its end.

    Raises
    ------
    BrokenPipeError
        If the reader of stdout went away.
    IncompleteOutputError
        If stdout cannot be written.
    """
    from eplb_traces.errors import IncompleteOutputError

    try:
        with _named_stdout():
            sys.stdout.flush()
    except (BrokenPipeError, IncompleteOutputError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise


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
    if sys.stderr is not None:  # None where it is closed
        sys.stderr.write(f"{printable(text)}\n")
        sys.stderr.flush()


def error(sentence: str) -> None:
    """Say why the command ended."""
    _to_stderr(f"error: {sentence}")


def table(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[Cell]], *, legend: str = "", num_keys: int = 1
) -> None:
    """Print rows under headings, at most as wide as the terminal (80 columns where there is none), and the legend.

    A column of numbers is aligned right. Integers get no separators, floats four decimals; other wishes come as text
    that is ready to print, which counts as a number if it begins like one. Columns for which the terminal is too narrow
    are printed below the others, with the first `num_keys` columns again.
    """
    from eplb_cli.table_layout import blocks

    texts = [[_text(cell) for cell in row] for row in rows]
    numeric = [all(_looks_numeric(row[i]) for row in rows) for i in range(len(headings))]
    _title(title)
    for block in blocks(headings, texts, numeric, num_keys, width()):
        chosen = [[row[column] for column in block.columns] for row in texts]
        _print_block([headings[i] for i in block.columns], chosen, [numeric[i] for i in block.columns], block.widths)
    if legend:
        _wrapped(legend)
        line("")


def facts(title: str, pairs: Sequence[tuple[str, Cell]]) -> None:
    """Print name and value pairs, one a line."""
    from eplb_cli.table_layout import blocks

    texts = [[printable(name), _text(value)] for name, value in pairs]
    _title(title)
    (block,) = blocks(("", ""), texts, (False, False), 1, width())
    _print_block((), texts, (False, False), block.widths)


def _title(title: str) -> None:
    _styled_line(_printed(printable(title), style="bold"))


def _styled_line(text: str) -> None:
    """Print a line of rich, whose styles are control characters; what is in it is printable."""
    _to_stdout(f"{text.rstrip()}\n")


def _print_block(
    headings: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool], widths: Sequence[int]
) -> None:
    """Print the rows, and an empty line; without headings if there are none."""
    from rich import box
    from rich.table import Column, Table

    # Versions of rich pad the columns of a table differently: the spaces between columns are part of their widths here.
    gaps = [1] * (len(widths) - 1) + [0]
    titles = zip(headings or [""] * len(widths), numeric, widths, strict=True)
    columns = [
        Column(header=_in_column(heading, width, right=number), width=width + gap)
        for (heading, number, width), gap in zip(titles, gaps, strict=True)
    ]
    body = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, padding=0, pad_edge=False, show_header=bool(headings))
    for row in rows:
        cells = zip(row, numeric, widths, strict=True)
        body.add_row(*(_in_column(cell, width, right=number) for cell, number, width in cells))
    for text in _printed(body, sum(widths) + 2 * len(widths)).splitlines():
        _styled_line(text)
    line("")


def _in_column(text: str, width: int, *, right: bool) -> str:
    """The text wrapped to so many columns, and at their right if asked."""
    from textwrap import wrap

    lines = wrap(text, width, break_on_hyphens=False) if len(text) > width else [text]
    return "\n".join(part.rjust(width) if right else part for part in lines)


def _printed(body: "RenderableType", width: int | None = None, style: str | None = None) -> str:
    """The text that rich prints on a terminal like stdout, which it would flush itself."""
    from rich.console import Console

    stream = sys.stderr if _RESULT_IS_TALK.get() and sys.stderr is not None else sys.stdout
    memory = io.TextIOWrapper(io.BytesIO(), stream.encoding, newline="\n")
    Console(
        file=memory, force_terminal=stream.isatty() or None, width=width, highlight=False, markup=False, emoji=False
    ).print(body, style=style, soft_wrap=width is None)
    memory.seek(0)
    return memory.read()


def _wrapped(text: str) -> None:
    """Print sentences, wrapped at spaces to the width of the terminal."""
    from textwrap import wrap

    for sentence in text.splitlines():
        for part in wrap(sentence, width(), break_long_words=False, break_on_hyphens=False) or [""]:
            line(part)


def written(path: Path, format: str, server_flags: str) -> None:
    """Say which file is there now, and below it what makes its engine load it."""
    line(f"wrote {path} ({format})")
    for text in server_flags.splitlines():
        line(f"  {text.replace(str(path), 'FILE') if _RESULT_IS_TALK.get() else text}")


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


class Advance(Protocol):
    """What a block calls when it is further."""

    def __call__(self, count: int = 1) -> None:
        """Advance the bar by `count` steps."""
        ...


@contextmanager
def progress(doing: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
    """A bar on stderr while the block runs, gone afterwards; nothing where stderr is no terminal.

    Parameters
    ----------
    doing
        What the user waits for: "planning".
    total
        Steps of the block, shown beside those that are done, with the time left; None where unknown, which gives a bar
        without an end.
    unit
        What the steps are, "tokens", to show how many a second; "" for steps of which there are few.

    Yields
    ------
    Advance
        To be called after each step, or with the number of steps.
    """
    if _QUIET.get() or sys.stderr is None or not sys.stderr.isatty():
        yield lambda count=1: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn())
    known = (TextColumn("{task.completed:,.0f} of {task.total:,.0f}{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(
        *columns, *((TimeElapsedColumn(),) if total is None else known), console=Console(stderr=True), transient=True
    ) as bar:
        number = bar.add_task(doing, total=total, rate="")

        def advance(count: int = 1) -> None:
            bar.advance(number, count)
            bar.update(number, rate=_rate(bar.tasks[0].speed, unit))

        yield advance


def _rate(speed: float | None, unit: str) -> str:
    """How many steps a second; "" for steps of which there are few, and before the first ones."""
    return f", {speed:,.0f} {unit} a second" if speed is not None and unit else ""


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
