"""Reads eplb's own Parquet files; `files.parquet_file` defines the schema."""

from pathlib import Path

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.files.parquet_file import holds_trace, read_parquet_load, read_parquet_trace
from eplb_traces.readers.dialect import ReadOptions, first_bytes, loads_only
from eplb_traces.routing_trace import RoutingTrace

SUFFIXES: tuple[str, ...] = (".parquet",)


def recognises(path: Path) -> bool:
    """Look for Parquet's magic number."""
    return first_bytes(path, 4) == b"PAR1"


def read_load(path: Path, options: ReadOptions) -> ExpertLoad:
    """Read a load, or stream a trace and count it."""
    return read_trace(path, options).load(options.window) if holds_trace(path) else read_parquet_load(path)


def read_trace(path: Path, options: ReadOptions) -> RoutingTrace:
    """Open a trace; `options.num_experts` may only repeat what the file says."""
    if not holds_trace(path):
        raise loads_only("this Parquet file")
    trace = read_parquet_trace(path)
    if options.num_experts not in (None, trace.shape.num_experts):
        raise InputError(f"num_experts = {options.num_experts}: the file says {trace.shape.num_experts}")
    return trace
