"""vLLM's proposed initial placements. No release loads a file: these are the forms of two open pull requests.

vllm-project/vllm#49572, ``eplb_config.initial_expert_map_path``: a JSON list of slots for all layers, or a list of
such lists, one a MoE layer in order. vllm-project/vllm#41141, ``initial_mapping_path``: a line of JSON
``{"record_type": "eplb_initial_mapping", "version": 1, "num_redundant_experts", "num_slots",
"initial_global_assignments": {"0": [...], "1": [...]}}`` with the MoE layers' positions as keys. In both slot j is
on rank ``j // (slots / ep_size)``.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.problem import Plan
from eplb.errors import FormatError
from eplb.formats.engine_file import FileFacts, make_plan, open_foreign
from eplb.formats.engine_limits import check_equal_ranks, check_no_empty_slots, check_suffix
from eplb.formats.json_fields import (
    as_fields,
    as_int,
    as_int_row,
    as_int_rows,
    as_object,
    parse_json,
    read_text,
    stack_rows,
)
from eplb.formats.protocol import ReadHints
from eplb.formats.sidecar import write_with_sidecar

RECORD_TYPE = "eplb_initial_mapping"
_VERSION = 1
_KEYS = ("record_type", "version", "num_redundant_experts", "num_slots", "initial_global_assignments")


@final
@dataclass(frozen=True)
class RawMap:
    """What a file holds: [L, P] rows, or one row [P] for all layers; experts where the file says them."""

    rows: NDArray[np.int64]
    num_experts: int | None


@final
@dataclass(frozen=True)
class Vllm:
    """vLLM's two proposals, told apart by the suffix when writing and by the content when reading."""

    name: ClassVar[str] = "vllm"
    summary: ClassVar[str] = (
        "vLLM's proposed initial maps (no release loads them): .json as in #49572, .jsonl as in #41141"
    )
    suffixes: ClassVar[tuple[str, ...]] = (".json", ".jsonl")

    def read(self, path: Path, hints: ReadHints) -> Plan:
        """The plan; one list for all layers needs a shape that says how many they are."""
        raw = read_map(path)
        file = open_foreign(path, self.name, raw.rows, hints)
        rows = raw.rows
        if rows.ndim == 1:
            if file.hints.shape is None:
                raise FormatError(
                    f"{path}: one list for all layers does not say how many there are: give --layers and --experts"
                )
            rows = np.repeat(rows[None], file.hints.shape.num_layers, axis=0)
        return make_plan(file, rows, FileFacts(num_experts=raw.num_experts))

    def check(self, plan: Plan) -> None:
        """Refuse empty slots and uneven ranks."""
        check_no_empty_slots(self.name, plan.placement)
        check_equal_ranks(self.name, plan.placement)

    def write(self, plan: Plan, path: Path) -> None:
        """Write a list a layer, or for ``.jsonl`` the record, and the sidecar."""
        check_suffix(self.name, path, self.suffixes)
        self.check(plan)
        rows = plan.placement.physical_to_logical_map.astype(np.int64)
        text = _record_text(rows, plan.placement.num_experts) if path.suffix == ".jsonl" else _list_text(rows)
        write_with_sidecar(path, text.encode("ascii"), rows, self.name, plan)

    def server_flags(self, path: Path, plan: Plan) -> str:
        """The options that the pull requests propose."""
        redundant = plan.placement.num_slots - plan.placement.num_experts
        jsonl = path.suffix == ".jsonl"
        option = "initial_mapping_path" if jsonl else "initial_expert_map_path"
        return (
            f"# proposed in vllm-project/vllm#{41141 if jsonl else 49572}, in no release up to 0.33.0\n"
            f"--enable-expert-parallel --enable-eplb --eplb-config "
            f"""'{{"num_redundant_experts": {redundant}, "{option}": "{path}"}}'"""
        )


def read_map(path: Path) -> RawMap:
    """The rows of a file in either form, ids not yet looked at."""
    text = read_text(path).strip()
    if "\n" in text and text.startswith("{") and text.splitlines()[0].endswith("}"):
        raise FormatError(f"{path}: line 2: expected one record, the {RECORD_TYPE}")
    value = parse_json(text, str(path))
    if isinstance(value, list):
        if value and isinstance(value[0], list):
            return RawMap(as_int_rows(value, f"{path}: $"), None)
        return RawMap(as_int_row(value, f"{path}: $"), None)
    return _read_record(value, f"{path}: $")


def _read_record(value: object, place: str) -> RawMap:
    fields = as_fields(value, place, _KEYS)
    if fields["record_type"] != RECORD_TYPE:
        raise FormatError(f"{place}.record_type = {fields['record_type']!r}: expected {RECORD_TYPE!r}")
    version = as_int(fields["version"], f"{place}.version")
    if version != _VERSION:
        raise FormatError(f"{place}.version = {version}: expected {_VERSION}")
    num_slots = as_int(fields["num_slots"], f"{place}.num_slots", 1)
    num_redundant = as_int(fields["num_redundant_experts"], f"{place}.num_redundant_experts")
    if num_redundant >= num_slots:
        raise FormatError(
            f"{place}.num_redundant_experts = {num_redundant}: expected less than num_slots = {num_slots}"
        )
    here = f"{place}.initial_global_assignments"
    assignments = as_object(fields["initial_global_assignments"], here)
    if not assignments:
        raise FormatError(f"{here} is empty: expected a list for each MoE layer")
    for key in assignments:
        if not key.isascii() or not key.isdigit() or str(int(key)) != key or int(key) >= len(assignments):
            raise FormatError(f'{here}: key {key!r}: expected "0" to "{len(assignments) - 1}", the MoE layers in order')
    rows = {f"{here}.{i}": as_int_row(assignments[str(i)], f"{here}.{i}") for i in range(len(assignments))}
    for where, row in rows.items():
        if row.size != num_slots:
            raise FormatError(f"{where} has {row.size} slots: expected num_slots = {num_slots}")
    return RawMap(stack_rows(rows), num_slots - num_redundant)


def _list_text(rows: NDArray[np.int64]) -> str:
    return "[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows.tolist()) + "\n]\n"


def _record_text(rows: NDArray[np.int64], num_experts: int) -> str:
    record = {
        "record_type": RECORD_TYPE,
        "version": _VERSION,
        "num_redundant_experts": rows.shape[1] - num_experts,
        "num_slots": rows.shape[1],
        "initial_global_assignments": {str(layer): row for layer, row in enumerate(rows.tolist())},
    }
    return json.dumps(record, separators=(",", ":")) + "\n"
