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
from typing import ClassVar, Final, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.problem import Plan
from eplb.errors import FormatError
from eplb.formats.engine_file import EngineFile, FileFacts
from eplb.formats.engine_limits import Consequences, MapDefect, check_equal_ranks, check_no_empty_slots
from eplb.formats.json_fields import as_fields, as_int, as_int_row, as_int_rows, as_object, stack_rows
from eplb.formats.loader_map import LoaderMap, check_num_layers, numbered_layers
from eplb.formats.protocol import EncodedFile, ReadHints, RecordStatus
from eplb.formats.quoting import shell_json
from eplb.formats.source_file import SourceFile
from eplb_traces import ModelShape

NO_RELEASE: Final = "the form is that of an open pull request; no vLLM release up to 0.33.0 loads such a file"
_RECORD_TYPE = "eplb_initial_mapping"
_VERSION = 1
_KEYS = ("record_type", "version", "num_redundant_experts", "num_slots", "initial_global_assignments")

# Tried on vLLM 0.32.0's own tables, but for indivisible slots, which was read from its source; uneven ranks follow
# from how it cuts the list.
CONSEQUENCES: Final[Consequences] = {
    MapDefect.MISSING_EXPERT: "vLLM accepts it, with no place for the expert's tokens",
    MapDefect.ID_TOO_LARGE: "vLLM refuses it",
    MapDefect.EMPTY_SLOT: "vLLM skips the slot, for which the file has no form",
    MapDefect.INDIVISIBLE: "vLLM accepts it until weights move",
    MapDefect.UNEVEN_RANKS: "vLLM cuts the list into equal parts, so slots land on other ranks",
}


@final
@dataclass(frozen=True)
class Vllm:
    """vLLM's two proposals, distinguished by the suffix when writing and by the content when reading."""

    name: ClassVar[str] = "vllm"
    summary: ClassVar[str] = (
        "vLLM's proposed initial maps (no release loads them): .json as in #49572, .jsonl as in #41141"
    )
    suffixes: ClassVar[tuple[str, ...]] = (".json", ".jsonl")
    consequences: ClassVar[Consequences] = CONSEQUENCES

    def recognises(self, source: SourceFile) -> bool:
        """By the suffix ``.jsonl``, a JSON list, or the type of the record."""
        suffix = source.path.suffix
        is_list = suffix == ".json" and isinstance(source.json, list)
        return suffix == ".jsonl" or is_list or source.json_members.get("record_type") == _RECORD_TYPE

    def parse(self, source: SourceFile) -> "VllmFile":
        """Either form."""
        text = source.text.strip()
        if "\n" in text and text.startswith("{") and text.splitlines()[0].endswith("}"):
            raise FormatError(f"{source.path}: line 2: expected one record, the {_RECORD_TYPE}")
        value, place = source.json, f"{source.path}: $"
        if not isinstance(value, list):
            rows, num_experts = _read_record(value, place)
            return VllmFile(EngineFile(source.path, self.name, rows), num_experts)
        many = bool(value) and isinstance(value[0], list)
        rows = as_int_rows(value, place) if many else as_int_row(value, place)
        return VllmFile(EngineFile(source.path, self.name, rows), None)

    def encode(self, plan: Plan, suffix: str) -> EncodedFile:
        """A list a layer, or for ``.jsonl`` the record; refuses empty slots and uneven ranks."""
        check_no_empty_slots(CONSEQUENCES, plan.placement)
        check_equal_ranks(CONSEQUENCES, plan.placement)
        rows = plan.placement.physical_to_logical_map.astype(np.int64)
        text = _record_text(rows, plan.placement.num_experts) if suffix == ".jsonl" else _list_text(rows)
        return EncodedFile(text.encode("ascii"), rows, plan)

    def server_flags(self, path: Path, plan: Plan) -> str:
        """The options that the pull requests propose."""
        redundant = plan.placement.num_slots - plan.placement.num_experts
        jsonl = path.suffix == ".jsonl"
        option = "initial_mapping_path" if jsonl else "initial_expert_map_path"
        return (
            f"# proposed in vllm-project/vllm#{41141 if jsonl else 49572}, in no release up to 0.33.0\n"
            f"--enable-expert-parallel --enable-eplb --eplb-config "
            f"{shell_json({'num_redundant_experts': redundant, option: str(path)})}"
        )


@final
@dataclass(frozen=True, eq=False)
class VllmFile:
    """A parsed file: rows [L, P], or one row [P] for all layers; the number of experts where the file holds it."""

    file: EngineFile
    num_experts: int | None

    @property
    def record_status(self) -> RecordStatus:
        """See `ParsedFile.record_status`."""
        return self.file.sidecar.status

    def plan(self, hints: ReadHints) -> Plan:
        """The plan; one list for all layers needs a shape, which gives their number."""
        known, rows = self.file.merged(hints), self.file.digested
        if rows.ndim == 1:
            if known.shape is None:
                raise FormatError(
                    f"{self.file.path}: one list for all layers, which does not give their number: "
                    "give --num-layers and --num-experts"
                )
            rows = np.repeat(rows[None], known.shape.num_layers, axis=0)
        return self.file.plan(rows, FileFacts(num_experts=self.num_experts), known)

    def loader_map(self, num_ranks: int, shape: ModelShape | None) -> LoaderMap:
        """The rows; one list for all layers is one row."""
        rows = self.file.digested
        if rows.ndim == 1:
            return LoaderMap(rows[None], ("every layer",), self.num_experts, (NO_RELEASE, "one list for all layers"))
        notes = (NO_RELEASE, *check_num_layers(self.file.path, rows.shape[0], shape))
        return LoaderMap(rows, numbered_layers(rows.shape[0]), self.num_experts, notes)


def _read_record(value: object, place: str) -> tuple[NDArray[np.int64], int]:
    """The rows [L, P] of a record, and its number of experts."""
    fields = as_fields(value, place, _KEYS)
    if fields["record_type"] != _RECORD_TYPE:
        raise FormatError(f"{place}.record_type = {fields['record_type']!r}: expected {_RECORD_TYPE!r}")
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
    return stack_rows(rows), num_slots - num_redundant


def _list_text(rows: NDArray[np.int64]) -> str:
    return "[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows.tolist()) + "\n]\n"


def _record_text(rows: NDArray[np.int64], num_experts: int) -> str:
    record = {
        "record_type": _RECORD_TYPE,
        "version": _VERSION,
        "num_redundant_experts": rows.shape[1] - num_experts,
        "num_slots": rows.shape[1],
        "initial_global_assignments": {str(layer): row for layer, row in enumerate(rows.tolist())},
    }
    return json.dumps(record, separators=(",", ":")) + "\n"
