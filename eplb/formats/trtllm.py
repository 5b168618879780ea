"""TensorRT-LLM's load balancer configuration, YAML.

From the loader (NVIDIA/TensorRT-LLM 1.2.1, ``MoeLoadBalancerConfig``): ``num_slots``, ``layer_updates_per_iter`` (0
is a static placement) and ``initial_global_assignments``, a list of ``num_slots`` ids under the absolute index of
each MoE layer; slot j is on rank ``j // (num_slots / ep_size)``. Any other key is refused, and a MoE layer without
a list is a KeyError. The engine reads the file with PyYAML's safe loader, so JSON is accepted too, its layer ids as
strings.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, cast, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.problem import Plan
from eplb.errors import FormatError
from eplb.formats.engine_file import EngineFile, FileFacts
from eplb.formats.engine_limits import (
    Consequences,
    MapDefect,
    check_equal_ranks,
    check_no_empty_slots,
    required_layer_ids,
)
from eplb.formats.json_fields import as_int, as_int_row, as_object, stack_rows
from eplb.formats.loader_map import LoaderMap
from eplb.formats.protocol import EncodedFile, ReadHints, RecordStatus
from eplb.formats.quoting import yaml_scalar
from eplb.formats.source_file import SourceFile
from eplb_traces import ModelShape

_ASSIGNMENTS = "initial_global_assignments"
_KEYS = ("num_slots", "layer_updates_per_iter", _ASSIGNMENTS)
_LAYER_ID = re.compile(r"0|[1-9][0-9]{0,8}")
# Far more than any model has; YAML aliases can name a list many times.
_MAX_SLOTS_OF_ALL_LAYERS = 1 << 25

# Tried on the configuration class of TensorRT-LLM 1.2.1; uneven ranks follow from how it cuts the list.
CONSEQUENCES: Final[Consequences] = {
    MapDefect.MISSING_EXPERT: "TensorRT-LLM's configuration accepts it",
    MapDefect.ID_TOO_LARGE: "TensorRT-LLM's configuration accepts it",
    MapDefect.EMPTY_SLOT: "TensorRT-LLM's configuration accepts -1 as an id",
    MapDefect.INDIVISIBLE: "TensorRT-LLM refuses it with a ValueError",
    MapDefect.UNEVEN_RANKS: "TensorRT-LLM cuts the list into equal parts, so slots land on other ranks",
}


@final
@dataclass(frozen=True)
class Trtllm:
    """TensorRT-LLM's lists under absolute layer ids."""

    name: ClassVar[str] = "trtllm"
    summary: ClassVar[str] = "TensorRT-LLM moe load_balancer, YAML: lists under absolute layer ids"
    suffixes: ClassVar[tuple[str, ...]] = (".yaml", ".yml")
    consequences: ClassVar[Consequences] = CONSEQUENCES

    def recognises(self, source: SourceFile) -> bool:
        """By the suffix."""
        return source.path.suffix in self.suffixes

    def parse(self, source: SourceFile) -> "TrtllmFile":
        """Layer ids and rows."""
        layer_ids, rows = _read_assignments(source)
        return TrtllmFile(EngineFile(source.path, self.name, _digested(layer_ids, rows)), layer_ids, rows)

    def encode(self, plan: Plan, suffix: str) -> EncodedFile:
        """The YAML of a static placement; refuses empty slots, uneven ranks and a plan without absolute layer ids."""
        check_no_empty_slots(CONSEQUENCES, plan.placement)
        check_equal_ranks(CONSEQUENCES, plan.placement)
        layer_ids = required_layer_ids(self.name, plan.shape)
        rows = plan.placement.physical_to_logical_map.astype(np.int64)
        lines = [f"  {layer}: {row}" for layer, row in zip(layer_ids, rows.tolist(), strict=True)]
        head = [f"num_slots: {rows.shape[1]}", "layer_updates_per_iter: 0", "initial_global_assignments:"]
        content = "\n".join([*head, *lines, ""]).encode("ascii")
        return EncodedFile(content, _digested(layer_ids, rows), plan)

    def server_flags(self, path: Path, plan: Plan) -> str:
        """The lines of TensorRT-LLM's own configuration file that name this one."""
        return (
            "# TensorRT-LLM 1.2, in the file given to trtllm-serve --extra_llm_api_options, "
            f"with --ep_size {plan.placement.topology.num_ranks}\n"
            "enable_attention_dp: true\n"
            "moe_config:\n"
            "  backend: WideEP\n"
            f"  load_balancer: {yaml_scalar(path)}"
        )


@final
@dataclass(frozen=True, eq=False)
class TrtllmFile:
    """A parsed file: ascending layer ids, and their rows [L, P]."""

    file: EngineFile
    layer_ids: tuple[int, ...]
    rows: NDArray[np.int64]

    @property
    def record_status(self) -> RecordStatus:
        """See `ParsedFile.record_status`."""
        return self.file.sidecar.status

    def plan(self, hints: ReadHints) -> Plan:
        """The plan with its layer ids; the number of ranks has to be given."""
        return self.file.plan(self.rows, FileFacts(moe_layer_ids=self.layer_ids), self.file.merged(hints))

    def loader_map(self, num_ranks: int, shape: ModelShape | None) -> LoaderMap:
        """The rows of the layers; each MoE layer of the model needs one."""
        labels = tuple(f"layer {i}" for i in self.layer_ids)
        if shape is None or shape.moe_layer_ids is None:
            note = f"layers {self.layer_ids[0]} to {self.layer_ids[-1]}: expected the absolute ids of all MoE layers"
            return LoaderMap(self.rows, labels, None, (note,))
        _check_layer_ids(self.file.path, self.layer_ids, shape.moe_layer_ids)
        return LoaderMap(self.rows, labels, None, ())


def _read_assignments(source: SourceFile) -> tuple[tuple[int, ...], NDArray[np.int64]]:
    """Layer ids, ascending, and the rows [L, P] under them, expert ids not yet checked."""
    place = f"{source.path}: $"
    fields = as_object(source.yaml, place)
    for key in fields:
        if key not in _KEYS:
            raise FormatError(
                f"{place}: key {str(key)[:40]!r}: TensorRT-LLM refuses keys other than {', '.join(_KEYS)}; expected "
                "one of these"
            )
    if "num_slots" not in fields:
        raise FormatError(f"{place}: key 'num_slots' is missing")
    num_slots = as_int(fields["num_slots"], f"{place}.num_slots")
    as_int(fields.get("layer_updates_per_iter", 0), f"{place}.layer_updates_per_iter")
    if _ASSIGNMENTS not in fields:
        raise FormatError(f"{place}: key {_ASSIGNMENTS!r} is missing: the file holds no placement")
    lists = _lists_of_layers(fields[_ASSIGNMENTS], f"{place}.{_ASSIGNMENTS}")
    if len(lists) * num_slots > _MAX_SLOTS_OF_ALL_LAYERS:
        raise FormatError(
            f"{place}: {len(lists)} layers of {num_slots} slots: expected {_MAX_SLOTS_OF_ALL_LAYERS} slots at most"
        )
    rows = {}
    for layer, value in sorted(lists.items()):
        here = f"{place}.{_ASSIGNMENTS}.{layer}"
        if isinstance(value, list) and len(value) != num_slots:
            raise FormatError(f"{here}: layer {layer} has {len(value)} slots: expected num_slots = {num_slots}")
        rows[here] = as_int_row(value, here)
    return tuple(sorted(lists)), stack_rows(rows)


def _lists_of_layers(value: object, place: str) -> dict[int, object]:
    """{layer id: its list}; JSON writes the ids as strings, which the engine turns into integers."""
    lists: dict[int, object] = {}
    members = cast(dict[object, object], as_object(value, place))  # keys of YAML have any type
    for key, entry in members.items():
        is_id = (type(key) is int and key >= 0) or (isinstance(key, str) and _LAYER_ID.fullmatch(key))
        if not is_id:
            raise FormatError(f"{place}: key {str(key)[:40]!r}: expected the absolute index of a layer before its list")
        layer = int(str(key))
        if layer in lists:
            raise FormatError(
                f"{place}: layer {layer} is given as a number and as a string: expected layer {layer} once"
            )
        lists[layer] = entry
    if not lists:
        raise FormatError(f"{place} is empty: expected a list of expert ids under each layer's index")
    return lists


def _check_layer_ids(path: Path, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing:
        what = f"layer {missing[0]} has no list: TensorRT-LLM crashes with a KeyError"
    elif extra:
        what = f"layer {extra[0]} is no MoE layer: TensorRT-LLM never reads its list"
    else:
        return
    raise FormatError(f"{path}: {what}; expected one list for each absolute id of a MoE layer")


def _digested(layer_ids: tuple[int, ...], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """[L, 1 + P]: the layer id before each row, so that the same map under other layer ids has another digest."""
    return np.column_stack([np.array(layer_ids, dtype=np.int64), rows])
