"""The dialect of eplb itself: a whole plan in JSON, with its certificate, one layer a line.

The only format that holds everything a Plan holds: model shape, machine, map (-1 is an empty slot), replica
weights, and the claim and proof of every layer. Equal plans give equal bytes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from eplb.core.problem import Plan
from eplb.errors import FormatError
from eplb.formats.engine_file import join_hints
from eplb.formats.engine_limits import check_suffix
from eplb.formats.json_fields import as_fields, as_int, as_int_rows, emit_json, load_json, located
from eplb.formats.protocol import ReadHints
from eplb.formats.provenance import PROVENANCE_KEYS, provenance_fields, provenance_from_json
from eplb_traces.files.atomic_file import atomic_write

NATIVE_KIND = "eplb"
_VERSION = 1
_KEYS = ("format", "version", *PROVENANCE_KEYS, "physical_to_logical_map")


@final
@dataclass(frozen=True)
class Native:
    """Our own JSON."""

    name: ClassVar[str] = "native"
    summary: ClassVar[str] = "eplb's own JSON: the whole plan with its certificate, machine and model"
    suffixes: ClassVar[tuple[str, ...]] = (".json",)

    def read(self, path: Path, hints: ReadHints) -> Plan:
        """The plan as it was written; hints may only add layer ids that it did not know."""
        place = f"{path}: $"
        fields = as_fields(load_json(path), place, _KEYS)
        if fields["format"] != NATIVE_KIND:
            raise FormatError(f"{place}.format = {fields['format']!r}: expected {NATIVE_KIND!r}")
        version = as_int(fields["version"], f"{place}.version")
        if version != _VERSION:
            raise FormatError(f"{place}.version = {version}: this eplb reads version {_VERSION}")
        provenance = provenance_from_json(fields, place)
        phy2log = as_int_rows(fields["physical_to_logical_map"], f"{place}.physical_to_logical_map")
        known = join_hints(provenance.topology, provenance.shape, hints, str(path))
        with located(place):
            return provenance.with_map(phy2log, known.shape or provenance.shape)

    def check(self, plan: Plan) -> None:
        """Everything that a Plan can be can be written."""

    def write(self, plan: Plan, path: Path) -> None:
        """Write the plan, whole or not at all."""
        check_suffix(self.name, path, self.suffixes)
        fields = {"format": NATIVE_KIND, "version": _VERSION, **provenance_fields(plan)}
        fields["physical_to_logical_map"] = plan.placement.physical_to_logical_map.tolist()
        atomic_write(path, emit_json(fields))

    def server_flags(self, path: Path, plan: Plan) -> str:
        """No engine loads it; say what to do."""
        return f"# no engine loads native files: eplb convert {path} OUT --to sglang|ascend|trtllm|vllm|omni"
