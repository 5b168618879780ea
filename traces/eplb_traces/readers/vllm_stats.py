"""Reads the expert loads that vLLM writes as JSON lines, as proposed in vllm-project/vllm#41141.

A record ``{"record_type": "eplb_load_stats", "version": 1, "step": 7, "num_ranks": 2, "expert_load": [L][P],
"p2l_map": [L][P]}`` is a window. The load is counted by slot and made logical with the record's own map, so that a file
that spans a rebalance reads right. Lines of another record_type are left out, and so are steps without a token.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError, naming_place
from eplb_traces.expert_load import ExpertLoad, logical_counts
from eplb_traces.files.limits import check_size, size_of
from eplb_traces.readers.arrays import reading_of_rows
from eplb_traces.readers.dialect import Reading, ReadOptions, first_bytes
from eplb_traces.readers.json_fields import parsed_json
from eplb_traces.readers.slot_counts import agreeing_map, check_every_expert, exact_counts

SUFFIXES: tuple[str, ...] = (".jsonl",)
RECOGNISED_BY = "lines with record_type eplb_load_stats"
BECOMES = "load, one window a record"
REFUSES = "records without a map; unlike numbers of layers or slots"
RECORD_TYPE = "eplb_load_stats"


def recognises(path: Path) -> bool:
    """Take anything that begins like a JSON object of our record type."""
    head = first_bytes(path).lstrip()
    return head.startswith(b"{") and b'"record_type"' in head and b'"eplb_' in head


def read(path: Path, options: ReadOptions) -> Reading:
    """Read the windows in the order of the file."""
    windows: list[tuple[str, NDArray[np.float64]]] = []
    num_silent = 0
    for place, record in _records(path):
        with naming_place(place):
            counts = _logical(record, options, size_of(path))
            if windows and counts.shape != windows[0][1].shape:
                raise InputError(f"has {counts.shape} layers x experts: expected {windows[0][1].shape} as before")
            if counts.any():
                windows.append((f"step {_step(record)}", counts))
            else:
                num_silent += 1
    if not windows:
        raise InputError(f"no {RECORD_TYPE!r} record with a token: an empty recording")
    tokens = np.stack([counts for _, counts in windows])
    load = ExpertLoad(tokens, labels=[label for label, _ in windows])
    left_out = (f"{num_silent} records without a token left out",) if num_silent else ()
    form = "vLLM eplb_load_stats, physical counts made logical by each record's map"
    used = frozenset[str]() if options.recorded_under is None else frozenset({"recorded_under"})
    return reading_of_rows(Reading(content=load, form=form, notes=left_out, used=used), options, None)


def _records(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield (place, record) of every load record."""
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                with naming_place(f"line {number}"):
                    record = _parsed(line)
                if record.get("record_type") == RECORD_TYPE:
                    yield f"line {number}", record
        except UnicodeDecodeError as error:
            raise InputError(f"not JSON lines: {error}") from error


def _parsed(line: str) -> dict[str, object]:
    record = parsed_json(line)
    if not isinstance(record, dict):
        raise InputError(f"is a {type(record).__name__}: expected an object")
    return record


def _step(record: dict[str, object]) -> int:
    step = record.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise InputError(f"$.step = {step!r}: expected an integer >= 0")
    return step


def _logical(record: dict[str, object], options: ReadOptions, num_bytes: int) -> NDArray[np.float64]:
    """Return [L, E]; E is what the caller says, else the largest id of the map + 1."""
    if record.get("version") != 1:
        raise InputError(f"$.version = {record.get('version')!r}: expected 1")
    physical = exact_counts(_matrix(record, "expert_load"), "$.expert_load")
    logical_of_slot = _matrix(record, "p2l_map")
    if physical.shape != logical_of_slot.shape:
        raise InputError(f"$.expert_load is {physical.shape} and $.p2l_map {logical_of_slot.shape}: expected the same")
    countable = np.isfinite(physical) & (physical >= 0)
    if not countable.all():
        layer, slot = (int(i) for i in np.argwhere(~countable)[0])
        raise InputError(f"$.expert_load[{layer}][{slot}] = {physical[layer, slot]}: expected finite and >= 0")
    named = np.isfinite(logical_of_slot)
    largest = int(logical_of_slot.max(initial=-1, where=named))
    num_slots = physical.shape[1]
    if options.num_experts is None and largest >= num_slots:
        raise InputError(f"$.p2l_map has the id {largest} and {num_slots} slots a layer: expected one of each expert")
    num_experts = options.num_experts if options.num_experts is not None else largest + 1
    wrong = ~named | (logical_of_slot < 0) | (logical_of_slot >= num_experts) | (logical_of_slot % 1 != 0)
    if wrong.any():
        layer, slot = (int(i) for i in np.argwhere(wrong)[0])
        value = logical_of_slot[layer, slot]
        raise InputError(f"$.p2l_map[{layer}][{slot}] = {value}: expected an id from 0 to {num_experts - 1}")
    agreeing_map(logical_of_slot.astype(np.int64), options)
    check_size((len(physical), num_experts), num_bytes, "the load of num_experts (--num-experts)")
    check_every_expert(logical_of_slot.astype(np.int64), largest + 1, "$.p2l_map")
    return logical_counts(physical, logical_of_slot.astype(np.int64), num_experts)


def _matrix(record: dict[str, object], key: str) -> NDArray[np.float64] | NDArray[np.int64]:
    """Return [L, P] of a record."""
    try:
        matrix = np.array(record.get(key))
    except ValueError as error:
        raise InputError(f"$.{key} is ragged: {error}") from error
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.dtype.kind not in "iuf":
        raise InputError(f"$.{key} is {matrix.dtype} of shape {matrix.shape}: expected numbers [layers][slots]")
    return matrix
