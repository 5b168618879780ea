"""Writes loads and traces in the format of the file suffix; every file is written atomically."""

import csv
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from eplb_traces.errors import InputError, naming_place
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.files.atomic_file import atomic_write
from eplb_traces.files.limits import LARGEST_EXACT
from eplb_traces.files.parquet_file import TraceLayout, write_parquet_load, write_parquet_trace
from eplb_traces.files.remote import url_of
from eplb_traces.files.shape_json import shape_to_json
from eplb_traces.model_shape import required_hidden_layers
from eplb_traces.routing_trace import RoutingTrace

_LOSSLESS = (".npz", ".parquet")

_logger = logging.getLogger("eplb")


def write_trace(trace: RoutingTrace, path: str | Path, layout: str = TraceLayout.LIST) -> None:
    """Write a token-level trace as Parquet, streaming.

    Parameters
    ----------
    trace
        Read once, and its first batch twice.
    path
        A .parquet.
    layout
        A `TraceLayout`: "list", ids that every program reads, or "packed", bytes that eplb reads several times as fast.

    Raises
    ------
    InputError
        If the suffix is not .parquet, the trace has no tokens, or the file cannot be written.
    MissingExtraError
        If pyarrow is not installed.
    """
    check_trace_path(path)
    write_parquet_trace(trace, path, _layout_named(layout))


def _layout_named(name: str) -> TraceLayout:
    try:
        return TraceLayout(name)
    except ValueError:
        raise InputError(f"layout = {name!r}: expected one of {', '.join(TraceLayout)}") from None


def check_trace_path(path: str | Path) -> None:
    """Check a path as `write_trace` does, before there is a trace.

    Raises
    ------
    InputError
        If the suffix is not .parquet or the folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() != ".parquet":
        raise InputError(f"{path}: a trace is written as .parquet")
    if url_of(path) is None and not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist")


def write_load(load: ExpertLoad, path: str | Path) -> None:
    """Write a load in the format of the suffix, a key of LOAD_WRITERS.

    .npz and .parquet lose nothing. .csv (wide form) and .json (SGLang's ``logical_count``, dense layers restored as
    zero rows) store the tokens of each window: weights are refused there, and a warning names labels, choices a token,
    expert groups and, in .csv, the number of all layers that are lost. .json needs the ids of the MoE layers and the
    number of all layers.

    Raises
    ------
    InputError
        If the suffix is unknown, the load does not fit the format, or the file cannot be written.
    """
    check_load_suffix(path)
    suffix = Path(path).suffix.lower()
    if suffix not in _LOSSLESS and (load.weights != 1).any():
        raise InputError(f"{path}: windows have weights, which a {suffix} does not hold: write .npz or .parquet")
    LOAD_WRITERS[suffix](load, Path(path))
    if suffix not in _LOSSLESS:
        _name_lost(load, path, suffix)


def check_load_suffix(path: str | Path) -> None:
    """Check a path as `write_load` does, before there is a load; InputError for an unknown suffix."""
    suffix = Path(path).suffix.lower()
    if suffix not in LOAD_WRITERS:
        raise InputError(f"{path}: suffix {suffix!r} is unknown: expected one of {', '.join(LOAD_WRITERS)}")


def _name_lost(load: ExpertLoad, path: str | Path, suffix: str) -> None:
    """Warn of what the file does not hold."""
    shape = load.shape
    lost = {
        "labels of windows": bool(load.labels),
        "choices a token (top_k)": shape.top_k is not None,
        "expert groups": shape.num_expert_groups > 1,
        "the number of all layers": suffix == ".csv" and shape.num_hidden_layers is not None,
    }
    if any(lost.values()):
        names = ", ".join(name for name, is_lost in lost.items() if is_lost)
        _logger.warning("%s: a %s does not hold %s: write .npz or .parquet to keep them", path, suffix, names)


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
    """Write the wide form: a row for each layer of each window, with absolute layer ids where they are known."""
    ids = load.shape.moe_layer_ids
    silent = np.flatnonzero(~load.tokens.any(axis=(0, 2)))
    if ids is not None and len(silent):
        raise InputError(
            f"{path}: layer {ids[silent[0]]} has no tokens, and a .csv does not tell it from a dense layer: write .npz "
            "or .parquet"
        )
    names = ["moe_layer" if ids is None else "layer", *range(load.num_experts)]
    memory = io.StringIO(newline="")
    writer = csv.writer(memory, lineterminator="\n")
    is_one = load.num_windows == 1
    writer.writerow(names if is_one else ["window", *names])
    for window, matrix in enumerate(load.tokens.tolist()):
        for layer, row in zip(ids or range(load.num_layers), matrix, strict=True):
            writer.writerow([*([] if is_one else [window]), layer, *map(_shortest, row)])
    atomic_write(path, memory.getvalue().encode())


def _write_sglang(load: ExpertLoad, path: Path) -> None:
    with naming_place(path):
        ids, num_hidden_layers = required_hidden_layers("SGLang logical_count", load.shape)
    _check_sglang_can_represent(load, path)
    counts = np.zeros((load.num_windows, num_hidden_layers, load.num_experts))
    counts[:, list(ids)] = load.tokens
    matrices = [[[_shortest(tokens) for tokens in row] for row in matrix] for matrix in counts.tolist()]
    logical_count = matrices[0] if len(matrices) == 1 else matrices
    atomic_write(path, json.dumps({"logical_count": logical_count}, separators=(",", ":")).encode())


def _check_sglang_can_represent(load: ExpertLoad, path: Path) -> None:
    """Refuse a load with zero rows: in SGLang's format they mean dense layers and unused steps."""
    empty_layers = np.flatnonzero(~load.tokens.any(axis=(0, 2)))
    empty_windows = np.flatnonzero(~load.tokens.any(axis=(1, 2)))
    if len(empty_layers):
        raise InputError(f"{path}: layer {empty_layers[0]} has no tokens: SGLang's format would make it dense")
    if len(empty_windows):
        raise InputError(f"{path}: window {empty_windows[0]} has no tokens: SGLang's format would omit it")


def _shortest(tokens: float) -> int | float:
    """Return an integer value as int, so that it is written without a decimal point; above 2^53 it is read as float."""
    return int(tokens) if tokens.is_integer() and tokens <= LARGEST_EXACT else tokens


LOAD_WRITERS: dict[str, Callable[[ExpertLoad, Path], None]] = {
    ".npz": _write_npz,
    ".csv": _write_csv,
    ".json": _write_sglang,
    ".parquet": write_parquet_load,
}
