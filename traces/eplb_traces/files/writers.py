"""Writing loads and traces: which suffix means which format; every file appears whole or not at all."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.files.atomic_file import atomic_write
from eplb_traces.files.long_form import long_form
from eplb_traces.files.parquet_file import write_parquet_load, write_parquet_trace
from eplb_traces.files.shape_json import shape_to_json
from eplb_traces.readers.sglang_counts import with_dense_layers
from eplb_traces.routing_trace import RoutingTrace


def write_trace(trace: RoutingTrace, path: str | Path) -> None:
    """Write a token-level trace as Parquet, streaming.

    Raises
    ------
    InputError
        If the suffix is not .parquet, the trace has no tokens, or the file cannot be written.
    MissingExtraError
        If pyarrow is not installed.
    """
    check_trace_path(path)
    write_parquet_trace(trace, path)


def check_trace_path(path: str | Path) -> None:
    """Refuse a path that `write_trace` would refuse, before there is a trace.

    Raises
    ------
    InputError
        If the suffix is not .parquet or the folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() != ".parquet":
        raise InputError(f"{path}: a trace is written as .parquet")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")


def write_load(load: ExpertLoad, path: str | Path) -> None:
    """Write a load in the format of the suffix, a key of LOAD_WRITERS.

    .npz and .parquet lose nothing. .csv (long form) and .json (SGLang's ``logical_count``, dense layers restored as
    zero rows) keep the tokens of each window; they have no place for weights and labels.

    Raises
    ------
    InputError
        If the suffix is unknown, the load does not fit the format, or the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in LOAD_WRITERS:
        raise InputError(f"{path}: suffix {suffix!r} is unknown: expected one of {', '.join(LOAD_WRITERS)}")
    LOAD_WRITERS[suffix](load, Path(path))


def _write_npz(load: ExpertLoad, path: Path) -> None:
    memory = io.BytesIO()
    shape = np.array(json.dumps(shape_to_json(load.shape)))
    if load.labels:
        labels = np.array(load.labels)
        np.savez_compressed(memory, tokens=load.tokens, weights=load.weights, shape=shape, labels=labels)
    else:
        np.savez_compressed(memory, tokens=load.tokens, weights=load.weights, shape=shape)
    atomic_write(path, memory.getvalue())


def _write_csv(load: ExpertLoad, path: Path) -> None:
    """Write entries above zero, and the last one whatever it is, since it alone says how large the load is."""
    columns = [column.tolist() for column in long_form(load).values()]
    rows = list(zip(*columns, strict=True))
    last = (load.num_windows - 1, load.num_layers - 1, load.num_experts - 1)
    if load.tokens[last] == 0:
        rows.append((*last, 0.0))
    memory = io.StringIO(newline="")
    writer = csv.writer(memory, lineterminator="\n")
    writer.writerow(("window", "layer", "expert", "tokens"))
    writer.writerows((w, layer, expert, _shortest(tokens)) for w, layer, expert, tokens in rows)
    atomic_write(path, memory.getvalue().encode())


def _write_sglang(load: ExpertLoad, path: Path) -> None:
    _check_sglang_can_say(load, path)
    counts = with_dense_layers(load)
    matrices = [[[_shortest(tokens) for tokens in row] for row in matrix] for matrix in counts.tolist()]
    logical_count = matrices[0] if len(matrices) == 1 else matrices
    atomic_write(path, json.dumps({"logical_count": logical_count}, separators=(",", ":")).encode())


def _check_sglang_can_say(load: ExpertLoad, path: Path) -> None:
    """Refuse a load that would read back as another one: SGLang's zero rows mean dense layers and unused steps."""
    silent_layers = np.flatnonzero(~load.tokens.any(axis=(0, 2)))
    silent_windows = np.flatnonzero(~load.tokens.any(axis=(1, 2)))
    if len(silent_layers):
        raise InputError(f"{path}: layer {silent_layers[0]} has no tokens: SGLang's format would call it dense")
    if len(silent_windows):
        raise InputError(f"{path}: window {silent_windows[0]} has no tokens: SGLang's format would drop it")


def _shortest(tokens: float) -> int | float:
    """Return a whole number as an int, so that it is written without a point."""
    return int(tokens) if tokens.is_integer() else tokens


LOAD_WRITERS: dict[str, Callable[[ExpertLoad, Path], None]] = {
    ".npz": _write_npz,
    ".csv": _write_csv,
    ".json": _write_sglang,
    ".parquet": write_parquet_load,
}
