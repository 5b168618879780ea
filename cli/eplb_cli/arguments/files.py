"""Reads the input files of commands, of any dialect, with a progress bar."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

from eplb_cli import output
from eplb_cli.arguments.kind_of_file import expecting_load, expecting_placement
from eplb_cli.arguments.parse import check_at_least
from eplb_cli.arguments.watched_trace import watched_trace

if TYPE_CHECKING:
    from eplb.core.problem import Plan
    from eplb.formats import ParsedFile, ReadHints
    from eplb_cli.arguments.reading import Reading
    from eplb_traces import ExpertLoad, RoutingTrace


@final
@dataclass(frozen=True, eq=False)
class Source:
    """What the files LOAD of a command hold together."""

    content: "ExpertLoad | RoutingTrace"
    """Loads with their windows summed as the user said; a trace as it is."""
    read_as: tuple[str, ...]
    """How each file was understood; files of our own formats, which say so themselves, are left out."""
    window: int | None = None
    """Steps of a window in which a trace is to be counted; None: as `eplb_traces.windows` cuts it."""
    num_counted_traces: int = 0
    """Token-level traces that had to be counted to be put together."""
    parts: "ExpertLoad | None" = None
    """Of several files of different traffic: the load of each, one window labelled by its file."""

    def load(self) -> "ExpertLoad":
        """The load; a trace is counted.

        Raises
        ------
        InputError
            If no expert has a token.
        """
        from eplb_traces import ExpertLoad, InputError
        from eplb_traces.windows import load_by_window

        load = self.content if isinstance(self.content, ExpertLoad) else load_by_window(self.content, self.window)
        if not load.tokens.any():
            raise InputError(f"every count is zero: an empty recording ({load.num_layers} layers)")
        return load


def read_source(paths: Sequence[Path], reading: "Reading") -> Source:
    """What the files hold: a token-level trace where all are traces and can be joined as such, else a load.

    Raises
    ------
    InputError
        If a file cannot be read, contradicts an option, or does not fit the others.
    """
    from eplb_traces import RoutingTrace
    from eplb_traces.combine import Combine, combine_loads, combine_traces
    from eplb_traces.files.named_once import check_named_once
    from eplb_traces.readers import read

    check_at_least(1, {"--window": reading.window})
    how, options = reading.how(len(paths)), reading.options()
    if how is Combine.SUM:
        check_named_once(paths)
    readings = []
    for path in paths:
        with output.progress(f"reading {path.name}"), expecting_load(path):
            readings.append(read(path, options, format=reading.dialect))
    several = len(paths) > 1
    read_as = tuple(
        f"{path.name}: {one.summary}" if several else one.summary
        for path, one in zip(paths, readings, strict=True)
        if not one.is_own
    )
    names = names_of(paths)
    traces = [one.content for one in readings if isinstance(one.content, RoutingTrace)]
    if len(traces) == len(paths) and (not several or how in (Combine.SUM, Combine.TIME)):
        return Source(combine_traces(traces, names, how) if several else traces[0], read_as, reading.window)
    with output.progress("counting"):
        is_one = several and how is not Combine.TIME  # a trace is one workload, or one part
        loads = [
            _windowed(one.content, reading.window, path, is_one=is_one)
            for path, one in zip(paths, readings, strict=True)
        ]
    parts = None
    if how is Combine.WORKLOADS and several:
        parts = combine_loads([load.merged(load.num_windows) for load in loads], names, how)
    return Source(combine_loads(loads, names, how), read_as, num_counted_traces=len(traces), parts=parts)


def _windowed(content: "ExpertLoad | RoutingTrace", window: int | None, path: Path, *, is_one: bool) -> "ExpertLoad":
    from eplb_traces import ExpertLoad, InputError, RoutingTrace
    from eplb_traces.routing_trace import ALL_STEPS
    from eplb_traces.windows import load_by_window

    if window is not None and isinstance(content, ExpertLoad) and content.num_windows == 1:
        shown = "sum" if window == ALL_STEPS else window
        raise InputError(f"{path}: window = {shown} (--window) has no effect: the load has one window")
    if window is None and is_one and isinstance(content, RoutingTrace):
        return content.load()
    return load_by_window(content, window)


def read_load(paths: Sequence[Path], reading: "Reading") -> "ExpertLoad":
    """The load of the files, of any dialect; how they were understood is printed as notes."""
    source = read_source(paths, reading)
    note_reading(source)
    load = _counted(source)
    note_windows(source, load)
    return load


def _counted(source: Source) -> "ExpertLoad":
    """The load, with a bar over the tokens of a trace."""
    from eplb_traces import ExpertLoad

    content = source.content
    if isinstance(content, ExpertLoad):
        return source.load()
    with output.progress("counting", content.num_tokens, "tokens") as step:
        return replace(source, content=watched_trace(content, step)).load()


def note_reading(source: Source) -> None:
    """Tell the user how the files were understood."""
    for sentence in source.read_as:
        output.note(f"read as {sentence}")


def note_windows(source: Source, load: "ExpertLoad") -> None:
    """Tell the user that a trace was cut into windows that nobody asked for."""
    if source.window is None and load is not source.content and load.num_windows > 1:
        output.note(f"the steps of the trace are cut into {load.num_windows} windows; --window sum: one window")


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each file: without its folder, or the whole path where that would name two alike."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def listed(paths: Sequence[Path]) -> str:
    """The whole paths."""
    return ", ".join(str(path) for path in paths)


def title_of(paths: Sequence[Path]) -> str:
    """The names of the files, the first three of many."""
    shown = ", ".join(path.name for path in paths[:3])
    return shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more"


def window_name(load: "ExpertLoad", window: int) -> str:
    """The label of a window, or its number."""
    return load.labels[window] if load.labels else f"window {window}"


def read_plan_for(load: "ExpertLoad | RoutingTrace", path: Path, format: str | None, hints: "ReadHints") -> "Plan":
    """The plan in a file; where an engine's dialect does not name the layers, those of the load are taken.

    Our own files hold the model; one for another model is refused when it is evaluated.
    """
    from eplb.formats import parse_file

    with expecting_placement(path):
        return plan_for(load, parse_file(path, format), hints)


def plan_for(load: "ExpertLoad | RoutingTrace", parsed: "ParsedFile", hints: "ReadHints") -> "Plan":
    """The plan of a parsed file, layers as in `read_plan_for`."""
    from eplb.formats import RecordStatus

    holds_model = parsed.record_status is RecordStatus.IN_FILE
    return parsed.plan(hints if holds_model else replace(hints, shape=load.shape))


def dialect_to_write(out: Path, previous: Path | None) -> str:
    """The dialect of a placement file without --format: that of the live file, else what the suffix says, else native.

    Parameters
    ----------
    out
        The file to write; a dialect that is not written under its suffix does not count.
    previous
        The live placement; None for a plan from nothing.
    """
    from eplb.formats import FORMATS, detect_format

    known = [name for name, entry in FORMATS.items() if out.suffix in entry.suffixes]
    live = None if previous is None else detect_format(previous).name
    if live is not None and live in known:
        return live
    return known[0] if known else "native"
