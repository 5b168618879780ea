"""Reads and writes traces and loads as Parquet, in eplb's own schema.

A trace: one row per token; ``expert_ids``, layer by layer, in one of the layouts of `TraceLayout`, ``step`` and
``request`` int64, and if known ``source_rank`` and ``domain`` int32. A load: one row for each window, layer and expert
with tokens.
The kind of the file, its version and the model's shape are stored as JSON in the schema's metadata.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError, MissingExtraError, naming_place
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.files.atomic_file import atomic_write
from eplb_traces.files.limits import size_of
from eplb_traces.files.long_form import LONG_FORM_COLUMNS, LoadFrame, load_from_long_form, long_form
from eplb_traces.files.shape_json import shape_from_json, shape_to_json
from eplb_traces.model_shape import ModelShape
from eplb_traces.routing_trace import RoutingTrace, TokenBatch, checked_column

TRACE_KEY = b"eplb.routing_trace"
LOAD_KEY = b"eplb.expert_load"
_VERSION = 1
_IDS_PER_READ = 1 << 22  # 8 MB of ids: large against a batch's fixed costs, small enough for the cache
_IDS_PER_ROW_GROUP = 1 << 24
_BYTES_PER_READ = 1 << 23  # of a column on disk; without it pyarrow holds the column of a whole row group
_ROWS_PER_COLUMN_READ = 1 << 20
_OPTIONAL_COLUMNS = ("source_rank", "domain")
_COLUMNS = ("expert_ids", "step", "request", *_OPTIONAL_COLUMNS)


@final
class TraceLayout(StrEnum):
    """How the ids of a token are stored in a Parquet trace. Both are read alike, and hold the same."""

    LIST = "list"
    """A list of L * K uint16: every program that reads Parquet reads the ids."""
    PACKED = "packed"
    """L * K unsigned integers as bytes, one byte an id up to 256 experts, else two, low byte first: read by eplb, and
    several times as fast, because Parquet does not decode single ids."""


def import_pyarrow() -> tuple[ModuleType, ModuleType]:
    """Return (pyarrow, pyarrow.parquet).

    Raises
    ------
    MissingExtraError
        If pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("Parquet", "trace") from error
    return pyarrow, pyarrow.parquet


def read_parquet_trace(path: Path) -> RoutingTrace:
    """Open a token-level trace; its rows are read batch by batch at each iteration.

    Raises
    ------
    InputError
        If the file is not a Parquet file, is truncated, or has another schema.
    """
    header = _read_header(path, TRACE_KEY, "a token-level trace")
    shape = shape_from_json(header.fields.get("shape"), "$.shape")
    if shape.top_k is None:
        raise InputError("$.shape.top_k = null: expected an integer in a token-level trace")
    _check_trace_columns(header, shape)
    domain_names = _strings(header.fields.get("domain_names", []), "$.domain_names")
    return RoutingTrace(shape, _ParquetBatches(path, shape), header.num_rows, domain_names)


def read_parquet_load(path: Path) -> ExpertLoad:
    """Read a load written by eplb, with shape, weights and labels."""
    with parquet_file(path) as file:
        metadata = file.schema_arrow.metadata or {}
        if LOAD_KEY not in metadata:
            raise InputError(f"not a load of eplb: the schema has no metadata {LOAD_KEY.decode()!r}")
        missing = [name for name in LONG_FORM_COLUMNS if name not in file.schema_arrow.names]
        if missing:
            raise InputError(f"no column {missing[0]!r}: expected {', '.join(LONG_FORM_COLUMNS)}")
        table = file.read(columns=list(LONG_FORM_COLUMNS))
        columns = {name: _numbers(table.column(name).combine_chunks(), name) for name in LONG_FORM_COLUMNS}
    fields = _header_fields(metadata[LOAD_KEY], LOAD_KEY)
    shape = shape_from_json(fields.get("shape"), "$.shape")
    weights = fields.get("weights")
    if not isinstance(weights, list) or not all(isinstance(weight, int | float) for weight in weights):
        raise InputError(f"$.weights = {weights!r}: expected a list of numbers")
    labels = _strings(fields.get("labels", []), "$.labels")
    frame = LoadFrame(shape, tuple(float(weight) for weight in weights), labels, size_of(path))
    return load_from_long_form(columns, frame)


def key_of(path: Path) -> bytes | None:
    """TRACE_KEY or LOAD_KEY of a Parquet file of eplb; None for the table of another program."""
    with parquet_file(path) as file:
        return next((key for key in (TRACE_KEY, LOAD_KEY) if key in (file.schema_arrow.metadata or {})), None)


def write_parquet_trace(trace: RoutingTrace, path: str | Path, layout: TraceLayout = TraceLayout.LIST) -> None:
    """Write a trace as a stream, atomically."""
    import_pyarrow()
    first = next(trace.batches(), None)
    if first is None:
        raise InputError("the trace has no tokens")
    shape = replace(trace.shape, top_k=first.expert_ids.shape[2])
    optional = tuple(name for name in _OPTIONAL_COLUMNS if getattr(first, name) is not None)
    schema = _schema(optional, _ids_type(shape, layout))
    atomic_write(path, lambda beside: _stream_to(beside, trace, shape, schema))


def write_parquet_load(load: ExpertLoad, path: str | Path) -> None:
    """Write a load without loss: entries above zero as rows, shape, weights and labels as metadata."""
    pyarrow, parquet = import_pyarrow()
    header = {
        "version": _VERSION,
        "shape": shape_to_json(load.shape),
        "weights": load.weights.tolist(),
        "labels": list(load.labels),
    }
    table = pyarrow.table(long_form(load)).replace_schema_metadata({LOAD_KEY: json.dumps(header).encode()})
    atomic_write(path, lambda beside: parquet.write_table(table, beside, compression="zstd"))


@final
@dataclass(frozen=True)
class _Header:
    """The metadata and schema of a Parquet file."""

    fields: dict[str, object]
    schema: Any
    num_rows: int


@final
@dataclass(frozen=True)
class _ParquetBatches:
    """The rows of a trace file as checked batches; every iteration opens the file again."""

    path: Path
    shape: ModelShape

    def __iter__(self) -> Iterator[TokenBatch]:
        ids_per_token = self.shape.num_layers * (self.shape.top_k or 1)
        rows = max(1, _IDS_PER_READ // ids_per_token)
        row = 0
        with naming_place(self.path), parquet_file(self.path) as file:
            known = [name for name in _COLUMNS if name in file.schema_arrow.names]
            for rows_read in file.iter_batches(batch_size=rows, columns=known):
                with naming_place(f"rows from {row}"):
                    batch = _token_batch(rows_read, self.shape)
                yield batch
                row += batch.num_tokens

    def column(self, name: str) -> Iterator[NDArray[Any]]:
        """One column of numbers >= 0, some rows at a time; the others are not read."""
        row = 0
        with naming_place(self.path), parquet_file(self.path) as file:
            for rows_read in file.iter_batches(batch_size=_ROWS_PER_COLUMN_READ, columns=[name]):
                with naming_place(f"rows from {row}"):
                    values = checked_column(name, _numbers(rows_read.column(0), name), len(rows_read), np.int64)
                yield values
                row += len(values)


def _token_batch(rows: Any, shape: ModelShape) -> TokenBatch:  # noqa: ANN401  # pyarrow is untyped
    pyarrow, _ = import_pyarrow()
    columns = {name: rows.column(name) for name in rows.schema.names}
    chosen = columns["expert_ids"]
    if chosen.null_count:
        raise InputError(f"expert_ids has {chosen.null_count} nulls: expected none")
    is_packed = pyarrow.types.is_fixed_size_binary(chosen.type)
    ids = _unpacked(chosen, shape) if is_packed else _numbers(chosen.flatten(), "expert_ids")
    optional = [_numbers(columns[name], name) if name in columns else None for name in _OPTIONAL_COLUMNS]
    return TokenBatch(
        shape,
        ids.reshape(len(chosen), shape.num_layers, -1),
        _numbers(columns["step"], "step"),
        _numbers(columns["request"], "request"),
        *optional,
    )


def _unpacked(array: Any, shape: ModelShape) -> NDArray[Any]:  # noqa: ANN401  # pyarrow is untyped
    """A numpy view, read-only, of the ids of a packed column."""
    size = array.type.byte_width
    content = np.frombuffer(array.buffers()[1], np.uint8)[array.offset * size : (array.offset + len(array)) * size]
    ids = content.view(_packed_dtype(shape))
    ids.setflags(write=False)
    return ids


def _packed_dtype(shape: ModelShape) -> np.dtype[Any]:
    return np.dtype(np.uint8 if shape.num_experts <= 256 else "<u2")


def _numbers(array: Any, name: str) -> NDArray[Any]:  # noqa: ANN401  # pyarrow is untyped
    """Return a numpy view, read-only, of a pyarrow array of numbers."""
    if array.null_count:
        raise InputError(f"{name} has {array.null_count} nulls: expected none")
    dtype = np.dtype(array.type.to_pandas_dtype())  # a numpy type in spite of the name
    if dtype.kind not in "iuf":
        raise InputError(f"column {name} is {array.type}: expected numbers")
    # Not array.to_numpy(): that imports pandas, a quarter of a second.
    numbers = np.frombuffer(array.buffers()[1], dtype=dtype)[array.offset : array.offset + len(array)]
    numbers.setflags(write=False)
    return numbers


@contextmanager
def parquet_file(path: Path) -> Iterator[Any]:
    """Open a Parquet file to be read as a stream; errors of pyarrow, at opening or later, become InputError."""
    pyarrow, parquet = import_pyarrow()
    try:
        # pre_buffer would keep every column chunk that was read until the file is closed: the whole file in memory.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BYTES_PER_READ) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"not a whole Parquet file: {error}") from error


def _read_header(path: Path, key: bytes, what: str) -> _Header:
    with parquet_file(path) as file:
        schema = file.schema_arrow
        metadata = schema.metadata or {}
        if key not in metadata:
            raise InputError(f"not {what}: the schema has no metadata {key.decode()!r}")
        return _Header(_header_fields(metadata[key], key), schema, file.metadata.num_rows)


def _header_fields(text: bytes, key: bytes) -> dict[str, object]:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise InputError(f"metadata {key.decode()!r} is not JSON: {error}") from error
    if not isinstance(fields, dict) or fields.get("version") != _VERSION:
        raise InputError(f"metadata {key.decode()!r} = {text.decode()[:80]}: expected an object of version {_VERSION}")
    return fields


def _strings(values: object, place: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InputError(f"{place} = {values!r}: expected a list of strings")
    return tuple(values)


def _ids_type(shape: ModelShape, layout: TraceLayout) -> Any:  # noqa: ANN401  # pyarrow is untyped
    pyarrow, _ = import_pyarrow()
    ids_per_token = shape.num_layers * (shape.top_k or 1)
    if layout is TraceLayout.PACKED:
        return pyarrow.binary(ids_per_token * _packed_dtype(shape).itemsize)
    return pyarrow.list_(pyarrow.field("element", pyarrow.uint16(), nullable=False), ids_per_token)


def _schema(optional: tuple[str, ...], ids_type: Any) -> Any:  # noqa: ANN401  # pyarrow is untyped
    pyarrow, _ = import_pyarrow()
    types = {
        "expert_ids": ids_type,
        "step": pyarrow.int64(),
        "request": pyarrow.int64(),
        **{name: pyarrow.int32() for name in optional},
    }
    return pyarrow.schema([pyarrow.field(name, kind, nullable=False) for name, kind in types.items()])


def _check_trace_columns(header: _Header, shape: ModelShape) -> None:
    pyarrow, _ = import_pyarrow()
    names = set(header.schema.names)
    optional = tuple(name for name in _OPTIONAL_COLUMNS if name in names)
    is_packed = "expert_ids" in names and pyarrow.types.is_fixed_size_binary(header.schema.field("expert_ids").type)
    layout = TraceLayout.PACKED if is_packed else TraceLayout.LIST
    expected = _schema(optional, _ids_type(shape, layout))
    for field in expected:
        if field.name not in names:
            raise InputError(f"no column {field.name!r}: expected {', '.join(expected.names)}")
        found = header.schema.field(field.name).type
        if not _same_type(found, field.type):
            raise InputError(f"column {field.name} is {found}: expected {field.type}")


def _same_type(found: Any, expected: Any) -> bool:  # noqa: ANN401  # pyarrow is untyped
    """Compare types without nullability of list entries; nulls are checked when rows are read."""
    pyarrow, _ = import_pyarrow()
    if not (pyarrow.types.is_fixed_size_list(found) and pyarrow.types.is_fixed_size_list(expected)):
        return bool(found == expected)
    return bool(found.value_type == expected.value_type and found.list_size == expected.list_size)


def _stream_to(path: Path, trace: RoutingTrace, shape: ModelShape, schema: Any) -> None:  # noqa: ANN401  # untyped
    """Write the batches of a trace in row groups of equal size, independent of the sizes of the batches."""
    pyarrow, parquet = import_pyarrow()
    header = {"version": _VERSION, "shape": shape_to_json(shape), "domain_names": list(trace.domain_names)}
    schema = schema.with_metadata({TRACE_KEY: json.dumps(header).encode()})
    rows_per_group = max(1, _IDS_PER_ROW_GROUP // (shape.num_layers * (shape.top_k or 1)))
    is_packed = pyarrow.types.is_fixed_size_binary(schema.field("expert_ids").type)
    use_dictionary = [name for name in schema.names if name != "expert_ids"] if is_packed else True
    with parquet.ParquetWriter(path, schema, compression="zstd", use_dictionary=use_dictionary) as writer:
        waiting: list[Any] = []
        num_waiting = 0
        for batch in trace.batches():
            waiting.append(_record_batch(batch, schema))
            num_waiting += batch.num_tokens
            if num_waiting >= rows_per_group:
                table = pyarrow.Table.from_batches(waiting, schema)
                num_written = num_waiting - num_waiting % rows_per_group
                writer.write_table(table.slice(0, num_written), row_group_size=rows_per_group)
                waiting, num_waiting = table.slice(num_written).to_batches(), num_waiting - num_written
        writer.write_table(pyarrow.Table.from_batches(waiting, schema))


def _record_batch(batch: TokenBatch, schema: Any) -> Any:  # noqa: ANN401  # pyarrow is untyped
    pyarrow, _ = import_pyarrow()
    columns = []
    for field in schema:
        column = getattr(batch, field.name)
        if column is None:
            raise InputError(f"a batch has no {field.name}: the first batch of the trace has it")
        if field.name == "expert_ids":
            columns.append(_ids_column(column, batch.shape, field.type))
        else:
            columns.append(pyarrow.array(column))
    return pyarrow.record_batch(columns, schema=schema)


def _ids_column(ids: NDArray[np.uint16], shape: ModelShape, kind: Any) -> Any:  # noqa: ANN401  # pyarrow is untyped
    pyarrow, _ = import_pyarrow()
    if not pyarrow.types.is_fixed_size_binary(kind):
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(ids.reshape(-1)), type=kind)
    content = pyarrow.py_buffer(ids.astype(_packed_dtype(shape)).reshape(-1))
    return pyarrow.FixedSizeBinaryArray.from_buffers(kind, len(ids), [None, content])
