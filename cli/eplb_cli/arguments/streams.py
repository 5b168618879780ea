"""Gives a command files in place of `-`: stdin for a file to read, stdout for the file to write."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import typer
import typer.core

from eplb_cli import output

_DASH: Final = "-"
_LOADS: Final = ("LOAD", "TRACE")
_PLACEMENTS: Final = ("PLAN", "IN", "OLD", "NEW")
_PLACEMENT_FILES: Final = ("check",)
"""Commands whose FILE is a placement."""
_NOT_READ: Final = ("trace reduce",)
"""Commands that come back to their files after an interruption."""
_PLANS_OUT: Final = ("plan", "convert")
_TRACES_OUT: Final = ("trace convert", "trace merge", "trace synth")
_BINARY: Final = (".npz", ".npy", ".parquet", ".pt")
_STDOUT: Final = ContextVar[Path | None]("stdout", default=None)


# Any: parameters are those of whichever click the installed typer brings.
@contextmanager
def dashes_are_streams(params: Iterable[Any], values: dict[str, Any], command: str) -> Iterator[None]:
    """Replace each `-` among the values by a temporary file; what was written for stdout is printed at the end.

    Parameters
    ----------
    params
        The arguments and options of the command.
    values
        {name of the parameter: value as typed}; changed in place.
    command
        The words that name the command: "trace info".

    Raises
    ------
    typer.BadParameter
        For a second `-` to read, a `-` where no stream can be, a terminal, or --json beside a file on stdout.
    """
    dashes = [param for param in params for value in _listed(values.get(param.name)) if str(value) == _DASH]
    inputs = [param for param in dashes if _is_input(param)]
    outputs = [param for param in dashes if _is_output(param)]
    output.show_as({})
    if not inputs and not outputs:
        yield
        return
    from tempfile import TemporaryDirectory

    _refuse(inputs, outputs, values, command)
    with _ended_by_term(), TemporaryDirectory(prefix="eplb-") as name:
        folder = Path(name)
        if inputs:
            _read_stdin(inputs[0], values, folder, command)
        if not outputs:
            yield
            return
        out = folder / "out" / f"stdout{_suffix_to_write(values, command)}"
        out.parent.mkdir()
        _refuse_binary(out, outputs[0])
        output.show_as({**output.shown_as(), str(out): "stdout"})
        values[outputs[0].name] = out
        with _written_to(out), output.result_on_stderr():
            yield
        _print_written(out)


def stdout_of_kind(out: Path, *, is_trace: bool) -> Path:
    """The path with the suffix in which stdout gets a trace (.parquet) or a load (.csv); another path as it is."""
    if out != _STDOUT.get():
        return out
    found = out.with_suffix(".parquet" if is_trace else ".csv")
    output.show_as({str(found): "stdout", **output.shown_as()})
    _refuse_binary(found, None)
    return found


@contextmanager
def _ended_by_term() -> Iterator[None]:
    """Let SIGTERM leave the block, so that temporary files are deleted; the exit code is 128 + SIGTERM."""
    import signal
    import threading

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _refuse(inputs: list[Any], outputs: list[Any], values: dict[str, Any], command: str) -> None:
    if len(inputs) > 1:
        hint = " and ".join(dict.fromkeys(_name(param) for param in inputs))
        raise typer.BadParameter("stdin (-) can be read once: give a file for the others", param_hint=hint)
    if inputs and command in _NOT_READ:
        raise typer.BadParameter("stdin (-) cannot be read again after an interruption: give files", param_hint="FILE")
    if not outputs:
        return
    (to,) = outputs
    if command not in (*_PLANS_OUT, *_TRACES_OUT):
        raise typer.BadParameter(f"eplb {command} does not write to stdout (-): give a path", param_hint=_name(to))
    if values.get("as_json"):
        raise typer.BadParameter(f"cannot be combined with {_name(to)} -: stdout gets the file", param_hint="--json")
    if values.get("decode_load") is not None:
        raise typer.BadParameter("two plans, of prefill and decode, do not go to stdout (-): give a path",
                                 param_hint=_name(to))  # fmt: skip


def _read_stdin(param: Any, values: dict[str, Any], folder: Path, command: str) -> None:  # noqa: ANN401
    """Put stdin in a file of the folder, which takes the place of `-`."""
    if sys.stdin is None or sys.stdin.isatty():
        where = "closed" if sys.stdin is None else "a terminal"
        raise typer.BadParameter(f"stdin (-) is {where}: pipe a file, as in `cat FILE | eplb {command} - ...`, or name "
                                 "the file", param_hint=_name(param))  # fmt: skip
    from shutil import copyfileobj

    from eplb_cli.arguments.content_suffix import load_suffix, placement_suffix

    raw = folder / "stdin"
    with raw.open("wb") as file:
        copyfileobj(sys.stdin.buffer, file)
    if not raw.stat().st_size:
        raise typer.BadParameter("stdin (-) is empty", param_hint=_name(param))
    is_placement = param.metavar in _PLACEMENTS or command in _PLACEMENT_FILES
    path = raw.with_suffix(placement_suffix(raw) if is_placement else load_suffix(raw))
    if path != raw:
        raw.rename(path)
    output.show_as({str(path): "stdin"})
    typed = values[param.name]
    if isinstance(typed, list | tuple):
        values[param.name] = [path if str(value) == _DASH else value for value in typed]
    else:
        values[param.name] = path


def _suffix_to_write(values: dict[str, Any], command: str) -> str:
    """The usual suffix of the dialect of a plan; nothing for traces and loads, see `stdout_of_kind`."""
    if command in _TRACES_OUT:
        return ""
    from eplb.formats import detect_format, find_format
    from eplb_cli.arguments.engine import dispatch_of

    to, previous = values.get("format") or values.get("to"), values.get("previous")
    if to is None and values.get("engine") is not None:
        to = dispatch_of(None, values["engine"], values.get("engine_options")).format_to_write(None)
    if to is None and previous is not None:
        to = detect_format(previous).name
    return find_format(to or "native").suffixes[0]


def _refuse_binary(out: Path, param: Any) -> None:  # noqa: ANN401
    if out.suffix in _BINARY and output.is_terminal():
        raise typer.BadParameter(f"stdout (-) is a terminal, and a {out.suffix} is not text: pipe it, or give a path",
                                 param_hint="OUT" if param is None else _name(param))  # fmt: skip


@contextmanager
def _written_to(out: Path) -> Iterator[None]:
    token = _STDOUT.set(out)
    try:
        yield
    finally:
        _STDOUT.reset(token)


def _print_written(out: Path) -> None:
    """Print the bytes of the file; what was written beside it is named, and lost."""
    written = sorted(out.parent.iterdir())
    main = next(path for path in written if path.stem == out.stem and path.is_file())
    for path in written:
        if path != main:
            what = "record of the plan (sidecar)" if path.name.endswith(".eplb.json") else path.name
            output.note(f"note: the {what} is not written to stdout: give a path to keep it")
    output.bytes_of(main)


def _is_input(param: Any) -> bool:  # noqa: ANN401
    if isinstance(param, typer.core.TyperArgument):
        return param.metavar in (*_LOADS, *_PLACEMENTS, "FILE")
    return param.metavar in (*_LOADS, *_PLACEMENTS)


def _is_output(param: Any) -> bool:  # noqa: ANN401
    return param.metavar == "OUT" or "--output" in param.opts


def _name(param: Any) -> str:  # noqa: ANN401
    """LOAD for an argument, --previous for an option."""
    return str(param.metavar if isinstance(param, typer.core.TyperArgument) else param.opts[0])


def _listed(value: Any) -> Iterable[Any]:  # noqa: ANN401
    return value if isinstance(value, list | tuple) else [value]
