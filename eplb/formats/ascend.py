"""vllm-ascend's and MindIE's expert map, ``expert_map_path``.

From the loader (vllm-project/vllm-ascend@182b75ea, ``eplb/core/eplb_utils.py``): JSON with ``moe_layer_count`` and
``layer_list`` of ``{layer_id, device_count, device_list}``, each device ``{device_id, device_expert}``. Layers (MoE
layers only) and devices go by their order in the lists; ``layer_id``, ``device_id`` and ``device_count`` are
ignored, so they have to be what the order says. All devices hold equally many experts, none twice, every layer as
many redundant ones. The path has to end in ``.json``. MindIE's ``global_deployment.json`` is the same.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.problem import Plan
from eplb.errors import FormatError
from eplb.formats.engine_file import FileFacts, make_plan, open_foreign
from eplb.formats.engine_limits import (
    EFFECTS,
    Fault,
    check_equal_ranks,
    check_no_duplicates,
    check_no_empty_slots,
    check_suffix,
)
from eplb.formats.json_fields import as_fields, as_int, as_int_row, as_list, emit_json, load_json, stack_rows
from eplb.formats.protocol import ReadHints
from eplb.formats.sidecar import write_with_sidecar


@final
@dataclass(frozen=True)
class Ascend:
    """vllm-ascend's and MindIE's lists of layers and devices."""

    name: ClassVar[str] = "ascend"
    summary: ClassVar[str] = "vllm-ascend expert_map_path and MindIE global_deployment, JSON: MoE layers by list order"
    suffixes: ClassVar[tuple[str, ...]] = (".json",)

    def read(self, path: Path, hints: ReadHints) -> Plan:
        """The plan; the ranks are the file's devices."""
        raw = read_devices(path)
        file = open_foreign(path, self.name, raw, hints)
        return make_plan(file, raw.reshape(raw.shape[0], -1), FileFacts(num_ranks=raw.shape[1]))

    def check(self, plan: Plan) -> None:
        """Refuse empty slots, uneven ranks and doubled experts."""
        check_no_empty_slots(self.name, plan.placement)
        check_equal_ranks(self.name, plan.placement)
        check_no_duplicates(self.name, plan.placement)

    def write(self, plan: Plan, path: Path) -> None:
        """Write the JSON, one layer a line, and the sidecar."""
        check_suffix(self.name, path, self.suffixes)
        self.check(plan)
        placement = plan.placement
        shape = (placement.num_layers, placement.topology.num_ranks, -1)
        raw = placement.physical_to_logical_map.astype(np.int64).reshape(shape)
        layers = [_layer_fields(layer, devices) for layer, devices in enumerate(raw.tolist())]
        content = emit_json({"moe_layer_count": placement.num_layers, "layer_list": layers})
        write_with_sidecar(path, content, raw, self.name, plan)

    def server_flags(self, path: Path, plan: Plan) -> str:
        """vllm-ascend's configuration for the file."""
        return (
            "# vllm-ascend at 182b75ea; loading a file is announced to go in 0.25.1\n"
            f"""--enable-expert-parallel --additional-config '{{"eplb_config": {{"expert_map_path": "{path}"}}}}'"""
        )


def read_devices(path: Path) -> NDArray[np.int64]:
    """[L, R, S] of a file, ids not yet looked at."""
    place = f"{path}: $"
    fields = as_fields(load_json(path), place, ("moe_layer_count", "layer_list"))
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
        raise FormatError(f"{error}: {EFFECTS['ascend'][Fault.UNEVEN_RANKS]}") from error


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
