"""Knows how a command reads its files, with a bar while it lasts; knows no dialect."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eplb_cli import output

if TYPE_CHECKING:
    from eplb.formats import ReadHints
    from eplb.plan import Plan
    from eplb_traces import ExpertLoad, RoutingTrace


def read_load(path: Path, num_experts: int | None) -> "ExpertLoad":
    """The load in a file of any dialect; the tokens of a token-level trace are counted."""
    import eplb_traces

    with output.progress(f"reading {path.name}"):
        return eplb_traces.read_load(path, num_experts=num_experts)


def read_load_or_trace(path: Path, num_experts: int | None) -> "ExpertLoad | RoutingTrace":
    """What a file of any dialect holds: a token-level trace where it can be read as one, else a load."""
    import eplb_traces

    try:
        return eplb_traces.read_trace(path, num_experts)
    except eplb_traces.InputError:
        return read_load(path, num_experts)


def read_plan_for(load: "ExpertLoad", path: Path, format: str | None, hints: "ReadHints") -> "Plan":
    """The plan in a file; where an engine's dialect does not say which layers it means, the load does.

    Our own files say everything, so one for another model is left for the judge to refuse.
    """
    from eplb.formats import detect_format, find_format, read_plan

    entry = detect_format(path) if format is None else find_format(format)
    says_all = entry.name == "native"
    return read_plan(path, entry.name, hints if says_all else replace(hints, shape=load.shape))
