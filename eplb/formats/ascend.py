"""vllm-ascend's and MindIE's expert map, ``expert_map_path``.

From the loader (vllm-project/vllm-ascend@182b75ea, ``eplb/core/eplb_utils.py``): JSON with ``moe_layer_count`` and
``layer_list`` of ``{layer_id, device_count, device_list}``, each device ``{device_id, device_expert}``. Layers (MoE
layers only) and devices go by their order in the lists; ``layer_id``, ``device_id`` and ``device_count`` are
ignored, so each has to be its position. All devices hold equally many experts, none twice; every layer has as many
redundant ones. The path has to end in ``.json``. MindIE's ``global_deployment.json`` is the same.

Maps of MindIE and msit may count layers, devices or experts from 1, or have no ``device_id``. Expert ids count from 1
where no layer has 0 and every layer has 1 to E; such a map can be converted, but vllm-ascend would misread it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.problem import Plan
from eplb.errors import FormatError
from eplb.formats.engine_file import EngineFile, FileFacts
from eplb.formats.engine_limits import (
    Consequences,
    MapDefect,
    check_equal_ranks,
    check_no_duplicates,
    check_no_empty_slots,
)
from eplb.formats.json_fields import as_fields, as_int, as_int_row, as_list, as_object, emit_json, stack_rows
from eplb.formats.loader_map import LoaderMap, check_num_layers, check_num_ranks, numbered_layers
from eplb.formats.protocol import EncodedFile, ReadHints, RecordStatus, check_suffix
from eplb.formats.quoting import shell_json
from eplb.formats.source_file import SourceFile
from eplb_traces import ModelShape

# Tried on vllm-ascend 0.23.0's own loader; uneven ranks follow from how it stacks the devices.
CONSEQUENCES: Final[Consequences] = {
    MapDefect.MISSING_EXPERT: "vllm-ascend crashes with a RuntimeError, or gives the last experts no place",
    MapDefect.DUPLICATE: "vllm-ascend keeps one of the two and hides the other",
    MapDefect.ID_TOO_LARGE: "vllm-ascend crashes with an IndexError",
    MapDefect.EMPTY_SLOT: "vllm-ascend reads -1 as the last expert",
    MapDefect.INDIVISIBLE: "vllm-ascend crashes with a RuntimeError",
    MapDefect.UNEVEN_RANKS: "vllm-ascend crashes with a ValueError",
}


@final
@dataclass(frozen=True)
class Ascend:
    """vllm-ascend's and MindIE's lists of layers and devices."""

    name: ClassVar[str] = "ascend"
    summary: ClassVar[str] = "vllm-ascend expert_map_path and MindIE global_deployment, JSON: MoE layers by list order"
    suffixes: ClassVar[tuple[str, ...]] = (".json",)
    consequences: ClassVar[Consequences] = CONSEQUENCES

    def recognises(self, source: SourceFile) -> bool:
        """By the key ``layer_list``."""
        return "layer_list" in source.json_members

    def parse(self, source: SourceFile) -> "AscendFile":
        """[L, R, S] of the devices."""
        devices, notes = _read_devices(source)
        return AscendFile(EngineFile(source.path, self.name, devices), notes)

    def encode(self, plan: Plan, suffix: str) -> EncodedFile:
        """The JSON, one layer a line; refuses empty slots, uneven ranks and duplicates."""
        check_no_empty_slots(CONSEQUENCES, plan.placement)
        check_equal_ranks(CONSEQUENCES, plan.placement)
        check_no_duplicates(CONSEQUENCES, plan.placement)
        placement = plan.placement
        shape = (placement.num_layers, placement.topology.num_ranks, -1)
        raw = placement.physical_to_logical_map.astype(np.int64).reshape(shape)
        layers = [_layer_fields(layer, devices) for layer, devices in enumerate(raw.tolist())]
        content = emit_json({"moe_layer_count": placement.num_layers, "layer_list": layers})
        return EncodedFile(content, raw, plan)

    def server_flags(self, path: Path, plan: Plan) -> str:
        """vllm-ascend's configuration for the file."""
        return (
            "# vllm-ascend at 182b75ea; loading a file is announced to go in 0.25.1\n"
            "--enable-expert-parallel --additional-config "
            f"{shell_json({'eplb_config': {'expert_map_path': str(path)}})}"
        )


@final
@dataclass(frozen=True, eq=False)
class AscendFile:
    """A parsed file: [L, R, S] experts of each device, as the file numbers them, and what it counts from 1."""

    file: EngineFile
    notes: tuple[str, ...]

    @property
    def record_status(self) -> RecordStatus:
        """See `ParsedFile.record_status`."""
        return self.file.sidecar.status

    def plan(self, hints: ReadHints) -> Plan:
        """The plan; the ranks are the file's devices."""
        raw, notes = self.file.digested, self.notes
        if _counts_experts_from_1(raw):
            notes = (*notes, f"expert ids are 1 to {raw.max()} and never 0: read as 0 to {raw.max() - 1}")
            raw = raw - 1
        facts = FileFacts(num_ranks=raw.shape[1])
        plan = self.file.plan(raw.reshape(raw.shape[0], -1), facts, self.file.merged(hints))
        return replace(plan, notes=plan.notes + notes) if notes else plan

    def loader_map(self, num_ranks: int, shape: ModelShape | None) -> LoaderMap:
        """The devices' lists, one after another."""
        check_suffix(Ascend(), self.file.path)
        raw = self.file.digested
        check_num_ranks(self.file.path, raw.shape[1], num_ranks, "device_list")
        if _counts_experts_from_1(raw):
            raise FormatError(
                f"{self.file.path}: expert ids are 1 to {raw.max()} and never 0: vllm-ascend counts experts from 0; "
                "expected ids from 0, as `eplb convert --to ascend` writes them"
            )
        notes = check_num_layers(self.file.path, raw.shape[0], shape)
        return LoaderMap(raw.reshape(raw.shape[0], -1), numbered_layers(raw.shape[0]), None, self.notes + notes)


def _counts_experts_from_1(raw: NDArray[np.int64]) -> bool:
    """Return whether the ids of every layer are exactly 1 to E, E the largest of the file."""
    everyone = np.arange(1, raw.max() + 1) if 0 < raw.max() <= raw[0].size else np.zeros(0)
    return everyone.size > 0 and all(np.array_equal(np.unique(layer), everyone) for layer in raw)


def _read_devices(source: SourceFile) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """[L, R, S] of a file, ids not yet checked, and notes on what counts from 1."""
    place = f"{source.path}: $"
    fields = as_fields(source.json, place, ("moe_layer_count", "layer_list"))
    layers = as_list(fields["layer_list"], f"{place}.layer_list")
    count = as_int(fields["moe_layer_count"], f"{place}.moe_layer_count", 1)
    if count != len(layers):
        raise FormatError(f"{place}.moe_layer_count = {count}: layer_list has {len(layers)} layers, expected as many")
    read = [_read_layer(layer, f"{place}.layer_list[{i}]") for i, layer in enumerate(layers)]
    ids = {f"{place}.layer_list[{i}].layer_id": layer.layer_id for i, layer in enumerate(read)}
    notes = [*_check_order(ids, "layer_id"), *(note for layer in read for note in layer.notes)]
    devices = [layer.devices for layer in read]
    for i, found in enumerate(devices):
        if found.shape != devices[0].shape:
            raise FormatError(
                f"{place}.layer_list[{i}] has {found.shape[0]} devices of {found.shape[1]} experts: expected "
                f"{devices[0].shape[0]} of {devices[0].shape[1]} as in layer 0; vllm-ascend takes the redundancy of "
                "all layers from one"
            )
    return np.stack(devices), tuple(dict.fromkeys(notes))


@final
@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer of a file: its devices [R, S]."""

    layer_id: object
    devices: NDArray[np.int64]
    notes: tuple[str, ...]


def _read_layer(value: object, place: str) -> _Layer:
    fields = as_fields(value, place, ("layer_id", "device_count", "device_list"))
    devices = as_list(fields["device_list"], f"{place}.device_list")
    count = as_int(fields["device_count"], f"{place}.device_count", 1)
    if count != len(devices):
        raise FormatError(f"{place}.device_count = {count}: device_list has {len(devices)} devices, expected as many")
    rows, ids = {}, {}
    for rank, device in enumerate(devices):
        here = f"{place}.device_list[{rank}]"
        has_id = "device_id" in as_object(device, here)
        device_fields = as_fields(device, here, ("device_id", "device_expert") if has_id else ("device_expert",))
        if has_id:
            ids[f"{here}.device_id"] = device_fields["device_id"]
        rows[f"{here}.device_expert"] = as_int_row(device_fields["device_expert"], f"{here}.device_expert")
    if len(ids) not in (0, len(devices)):
        raise FormatError(
            f"{place}.device_list: {len(ids)} of {len(devices)} devices have device_id: expected all or none"
        )
    notes = _check_order(ids, "device_id") if ids else ("no device_id: devices by their position",)
    try:
        return _Layer(fields["layer_id"], stack_rows(rows), notes)
    except FormatError as error:
        raise FormatError(f"{error}: {CONSEQUENCES[MapDefect.UNEVEN_RANKS]}") from error


def _check_order(id_of_place: dict[str, object], name: str) -> tuple[str, ...]:
    """Refuse ids that are not positions from 0 or, with a note, all from 1."""
    ids = {place: as_int(value, place) for place, value in id_of_place.items()}
    if list(ids.values()) == list(range(1, len(ids) + 1)):
        return (f"{name} counts from 1: taken by position",)
    for index, (place, found) in enumerate(ids.items()):
        if found != index:
            raise FormatError(
                f"{place} = {found}: expected {index}, its position; vllm-ascend ignores the id and goes by the order"
            )
    return ()


def _layer_fields(layer: int, devices: list[list[int]]) -> dict[str, object]:
    return {
        "layer_id": layer,
        "device_count": len(devices),
        "device_list": [{"device_id": rank, "device_expert": experts} for rank, experts in enumerate(devices)],
    }
