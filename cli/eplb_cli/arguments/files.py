"""Reads the input files of commands, of any dialect, with a progress bar."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eplb_cli import output

if TYPE_CHECKING:
    from eplb.core.problem import Plan
    from eplb.formats import ReadHints
    from eplb_traces import ExpertLoad, RoutingTrace


def read_load(path: Path, num_experts: int | None, window: int | None = None) -> "ExpertLoad":
    """The load in a file of any dialect; the tokens of a token-level trace are counted, `window` steps a window."""
    import eplb_traces

    if window is not None:
        from eplb_traces.statistics import load_by_window

        return load_by_window(read_load_or_trace(path, num_experts), window)
    with output.progress(f"reading {path.name}"):
        return eplb_traces.read_load(path, num_experts=num_experts)


def read_load_or_trace(path: Path, num_experts: int | None) -> "ExpertLoad | RoutingTrace":
    """What a file of any dialect holds: a token-level trace where it can be read as one, else a load."""
    import eplb_traces

    try:
        return eplb_traces.read_trace(path, num_experts)
    except eplb_traces.InputError:
        return read_load(path, num_experts)


def read_loads(paths: Sequence[Path], num_experts: int | None, window: int | None) -> "ExpertLoad":
    """The loads of several files as windows of one, in order, labelled by file; their tokens are left as they are."""
    loads = [read_load(path, num_experts, window) for path in paths]
    return loads[0] if len(loads) == 1 else _side_by_side(loads, paths)


def _side_by_side(loads: "Sequence[ExpertLoad]", paths: Sequence[Path]) -> "ExpertLoad":
    import numpy as np

    import eplb_traces
    from eplb_traces.errors import naming_place
    from eplb_traces.model_shape import merge_shapes

    shape = loads[0].shape
    for load, path in zip(loads, paths, strict=True):
        with naming_place(f"{path}, beside {paths[0]}"):
            shape = merge_shapes(shape, load.shape)
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    labels = [label for load, name in zip(loads, names, strict=True) for label in _labels(load, name)]
    tokens = np.concatenate([load.tokens for load in loads])
    return eplb_traces.ExpertLoad(tokens, np.concatenate([load.weights for load in loads]), labels, shape)


def _labels(load: "ExpertLoad", name: str) -> list[str]:
    if load.num_windows == 1:
        return [name]
    return [f"{name}, {window_name(load, window)}" for window in range(load.num_windows)]


def window_name(load: "ExpertLoad", window: int) -> str:
    """The label of a window, or its number."""
    return load.labels[window] if load.labels else f"window {window}"


def read_plan_for(load: "ExpertLoad | RoutingTrace", path: Path, format: str | None, hints: "ReadHints") -> "Plan":
    """The plan in a file; where an engine's dialect does not name the layers, those of the load are taken.

    Our own files hold the model; one for another model is refused when it is evaluated.
    """
    from eplb.formats import RecordStatus, parse_file

    parsed = parse_file(path, format)
    holds_model = parsed.record_status is RecordStatus.IN_FILE
    return parsed.plan(hints if holds_model else replace(hints, shape=load.shape))
