"""eplb's own dialect: a whole plan in JSON, with its certificates, one layer a line.

The only format that holds everything a Plan holds: model shape, topology, map (-1 is an empty slot), replica weights,
and objective and bound of every layer. Equal plans give equal bytes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.problem import Plan
from eplb.formats.engine_file import merge_hints
from eplb.formats.json_fields import as_int_rows, emit_json, error_context
from eplb.formats.protocol import EncodedFile, ReadHints, RecordStatus
from eplb.formats.provenance import RECORD_VERSION, Provenance, provenance_fields, provenance_from_json, record_fields
from eplb.formats.quoting import shell_word
from eplb.formats.source_file import SourceFile

_KIND = "eplb"


@final
@dataclass(frozen=True)
class Native:
    """Our own JSON."""

    name: ClassVar[str] = "native"
    summary: ClassVar[str] = "eplb's own JSON: the whole plan with its certificate, topology and model"
    suffixes: ClassVar[tuple[str, ...]] = (".json",)

    def recognises(self, source: SourceFile) -> bool:
        """By the value of ``format``."""
        return source.json_members.get("format") == _KIND

    def parse(self, source: SourceFile) -> "NativeFile":
        """The record and the map."""
        place = f"{source.path}: $"
        fields = record_fields(source.json, place, _KIND, ("physical_to_logical_map",))
        provenance = provenance_from_json(fields, place)
        phy2log = as_int_rows(fields["physical_to_logical_map"], f"{place}.physical_to_logical_map")
        return NativeFile(source.path, provenance, phy2log)

    def encode(self, plan: Plan, suffix: str) -> EncodedFile:
        """The JSON; every plan can be written."""
        fields = {"format": _KIND, "version": RECORD_VERSION, **provenance_fields(plan)}
        fields["physical_to_logical_map"] = plan.placement.physical_to_logical_map.tolist()
        return EncodedFile(emit_json(fields), None, plan)

    def server_flags(self, path: Path, plan: Plan) -> str:
        """No engine loads the file; the command that converts it."""
        return (
            f"# no engine loads native files: eplb convert {shell_word(path)} OUT --to sglang|ascend|trtllm|vllm|omni"
        )


@final
@dataclass(frozen=True, eq=False)
class NativeFile:
    """A parsed native file; hints may only add layer ids that it does not have."""

    path: Path
    provenance: Provenance
    rows: NDArray[np.int64]
    record_status: ClassVar[RecordStatus] = RecordStatus.IN_FILE

    def plan(self, hints: ReadHints) -> Plan:
        """The plan as it was written."""
        known = merge_hints(self.provenance.topology, self.provenance.shape, hints, str(self.path))
        with error_context(f"{self.path}: $"):
            return self.provenance.with_map(self.rows, known.shape or self.provenance.shape)
