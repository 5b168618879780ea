"""vllm-ascend's and MindIE's expert map, ``expert_map_path``.

From the loader (vllm-project/vllm-ascend@182b75ea, ``eplb/core/eplb_utils.py``): JSON with ``moe_layer_count`` and
``layer_list`` of ``{layer_id, device_count, device_list}``, each device ``{device_id, device_expert}``. Layers (MoE
layers only) and devices go by their order in the lists; ``layer_id``, ``device_id`` and ``device_count`` are
ignored, so each has to be its position. All devices hold equally many experts, none twice; every layer has as many
redundant ones. The path has to end in ``.json``. MindIE's ``global_deployment.json`` is the same.
"""

from dataclasses import dataclass
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
from eplb.formats.json_fields import as_fields, as_int, as_int_row, as_list, emit_json, stack_rows
from eplb.formats.loader_map import LoaderMap, check_num_layers, check_num_ranks, numbered_layers
from eplb.formats.protocol import EncodedFile, ReadHints, RecordStatus, check_suffix
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
        return AscendFile(EngineFile(source.path, self.name, _read_devices(source)))

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
            f"""--enable-expert-parallel --additional-config '{{"eplb_config": {{"expert_map_path": "{path}"}}}}'"""
        )


@final
@dataclass(frozen=True, eq=False)
class AscendFile:
    """A parsed file: [L, R, S] experts of each device."""

    file: EngineFile

    @property
    def record_status(self) -> RecordStatus:
        """See `ParsedFile.record_status`."""
        return self.file.sidecar.status

    def plan(self, hints: ReadHints) -> Plan:
        """The plan; the ranks are the file's devices."""
        raw = self.file.digested
        facts = FileFacts(num_ranks=raw.shape[1])
        return self.file.plan(raw.reshape(raw.shape[0], -1), facts, self.file.merged(hints))

    def loader_map(self, num_ranks: int, shape: ModelShape | None) -> LoaderMap:
        """The devices' lists, one after another."""
        check_suffix(Ascend(), self.file.path)
        raw = self.file.digested
        check_num_ranks(self.file.path, raw.shape[1], num_ranks, "device_list")
        notes = check_num_layers(self.file.path, raw.shape[0], shape)
        return LoaderMap(raw.reshape(raw.shape[0], -1), numbered_layers(raw.shape[0]), None, notes)


def _read_devices(source: SourceFile) -> NDArray[np.int64]:
    """[L, R, S] of a file, ids not yet checked."""
    place = f"{source.path}: $"
    fields = as_fields(source.json, place, ("moe_layer_count", "layer_list"))
    layers = as_list(fields["layer_list"], f"{place}.layer_list")
    count = as_int(fields["moe_layer_count"], f"{place}.moe_layer_count", 1)
    if count != len(layers):
        raise FormatError(f"{place}.moe_layer_count = {count}: layer_list has {len(layers)} layers, expected as many")
    devices = [_read_layer(layer, i, f"{place}.layer_list[{i}]") for i, layer in enumerate(layers)]
    for i, found in enumerate(devices):
        if found.shape != devices[0].shape:
            raise FormatError(
                f"{place}.layer_list[{i}] has {found.shape[0]} devices of {found.shape[1]} experts: expected "
                f"{devices[0].shape[0]} of {devices[0].shape[1]} as in layer 0; vllm-ascend takes the redundancy of "
                "all layers from one"
            )
    return np.stack(devices)


def _read_layer(value: object, index: int, place: str) -> NDArray[np.int64]:
    """[R, S] of one layer."""
    fields = as_fields(value, place, ("layer_id", "device_count", "device_list"))
    _check_order(fields["layer_id"], index, f"{place}.layer_id")
    devices = as_list(fields["device_list"], f"{place}.device_list")
    count = as_int(fields["device_count"], f"{place}.device_count", 1)
    if count != len(devices):
        raise FormatError(f"{place}.device_count = {count}: device_list has {len(devices)} devices, expected as many")
    rows = {}
    for rank, device in enumerate(devices):
        here = f"{place}.device_list[{rank}]"
        device_fields = as_fields(device, here, ("device_id", "device_expert"))
        _check_order(device_fields["device_id"], rank, f"{here}.device_id")
        rows[f"{here}.device_expert"] = as_int_row(device_fields["device_expert"], f"{here}.device_expert")
    try:
        return stack_rows(rows)
    except FormatError as error:
        raise FormatError(f"{error}: {CONSEQUENCES[MapDefect.UNEVEN_RANKS]}") from error


def _check_order(value: object, index: int, place: str) -> None:
    found = as_int(value, place)
    if found != index:
        raise FormatError(
            f"{place} = {found}: expected {index}, its position; vllm-ascend ignores the id and goes by the order"
        )


def _layer_fields(layer: int, devices: list[list[int]]) -> dict[str, object]:
    return {
        "layer_id": layer,
        "device_count": len(devices),
        "device_list": [{"device_id": rank, "device_expert": experts} for rank, experts in enumerate(devices)],
    }
