"""Converts all of a plan but its map to JSON fields and back.

The native format carries these fields beside the map, the sidecar of an engine's file without it.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb.core.placement import Placement
from eplb.core.problem import BindingBound, LayerCertificate, Plan, SolveStatus
from eplb.core.topology import Topology
from eplb.errors import FormatError
from eplb.formats.json_fields import (
    as_fields,
    as_int,
    as_list,
    as_number,
    as_number_row,
    as_object,
    as_text,
    error_context,
    stack_rows,
)
from eplb.version import eplb_version
from eplb_traces import ModelShape
from eplb_traces.files.shape_json import shape_from_json, shape_to_json

RECORD_VERSION = 2
"""Version of native files and sidecars. Version 1 held the wall time of planning too, which is read and left out."""

_PROVENANCE_KEYS = (
    "eplb_version",
    "strategy",
    "status",
    "seed",
    "load_digest",
    "notes",
    "shape",
    "topology",
    "replica_weights",
    "layers",
)
_ABSENT_RANKS_KEY = "absent_ranks"
"""Only in records of plans that have any."""
_TOPOLOGY_KEYS = (
    "num_nodes",
    "ranks_per_node",
    "slots_per_rank",
    "rank_speed",
    "intra_node_gbps",
    "inter_node_gbps",
)
_CERTIFICATE_KEYS = ("objective", "lower_bound", "binding_bound", "status")


@final
@dataclass(frozen=True, kw_only=True)
class Provenance:
    """A plan without its map: every field as in `Plan`, `Placement` and `Topology`; not the wall time of planning."""

    shape: ModelShape
    topology: Topology
    replica_weights: NDArray[np.float64] | None
    strategy: str
    status: SolveStatus
    seed: int
    layers: tuple[LayerCertificate, ...]
    notes: tuple[str, ...]
    load_digest: str
    absent_ranks: tuple[int, ...] = ()

    def with_map(self, phy2log: NDArray[np.int64], shape: ModelShape) -> Plan:
        """The whole plan again; `shape` may hold layer ids that the record does not."""
        placement = Placement(phy2log, shape.num_experts, self.topology, self.replica_weights)
        return Plan(
            placement=placement,
            shape=shape,
            strategy=self.strategy,
            status=self.status,
            seed=self.seed,
            layers=self.layers,
            notes=self.notes,
            load_digest=self.load_digest,
            absent_ranks=self.absent_ranks,
        )


def provenance_fields(plan: Plan) -> dict[str, object]:
    """The JSON fields of `plan`, with the keys of a record in this order."""
    weights = plan.placement.replica_weights
    absent = {_ABSENT_RANKS_KEY: list(plan.absent_ranks)} if plan.absent_ranks else {}
    return {
        "eplb_version": eplb_version(),
        "strategy": plan.strategy,
        "status": plan.status.value,
        "seed": int(plan.seed),
        "load_digest": plan.load_digest,
        "notes": list(plan.notes),
        "shape": shape_to_json(plan.shape),
        "topology": _topology_fields(plan.placement.topology),
        **absent,
        "replica_weights": None if weights is None else weights.tolist(),
        "layers": [_certificate_fields(layer) for layer in plan.layers],
    }


def _topology_fields(topology: Topology) -> dict[str, object]:
    slots, nodes = topology.rank_num_slots.tolist(), topology.node_num_ranks.tolist()
    speed = topology.rank_speed
    return {
        "num_nodes": int(topology.num_nodes),
        "ranks_per_node": nodes[0] if topology.has_equal_nodes else nodes,
        "slots_per_rank": slots[0] if topology.has_equal_slots else slots,
        "rank_speed": None if speed is None else [float(s) for s in speed],
        "intra_node_gbps": float(topology.intra_node_gbps),
        "inter_node_gbps": float(topology.inter_node_gbps),
    }


def _certificate_fields(layer: LayerCertificate) -> dict[str, object]:
    return {
        "objective": float(layer.objective),
        "lower_bound": float(layer.lower_bound),
        "binding_bound": layer.binding_bound.value,
        "status": layer.status.value,
    }


def record_fields(value: object, place: str, kind: str, other_keys: tuple[str, ...]) -> dict[str, object]:
    """Narrow to a record of this `kind`: an object with exactly the keys of its version and `other_keys`.

    Raises
    ------
    FormatError
        For another kind, an unknown version, or a key too many or too few.
    """
    fields = as_object(value, place)
    for key in ("format", "version"):
        if key not in fields:
            raise FormatError(f"{place}: key {key!r} is missing")
    if fields["format"] != kind:
        raise FormatError(f"{place}.format = {fields['format']!r}: expected {kind!r}")
    version = as_int(fields["version"], f"{place}.version", 1)
    if version > RECORD_VERSION:
        raise FormatError(f"{place}.version = {version}: expected 1 to {RECORD_VERSION}, which this eplb reads")
    old_keys = ("seconds",) if version == 1 else ()
    optional = (_ABSENT_RANKS_KEY,) if _ABSENT_RANKS_KEY in fields else ()
    as_fields(fields, place, ("format", "version", *other_keys, *_PROVENANCE_KEYS, *old_keys, *optional))
    for key in old_keys:
        as_number(fields[key], f"{place}.{key}")
    return fields


def provenance_from_json(fields: dict[str, object], place: str) -> Provenance:
    """Check and rebuild what `provenance_fields` gave; other keys of `fields` are left to the caller.

    Raises
    ------
    FormatError
        With the JSON path of the first field that is not what it has to be.
    """
    as_text(fields["eplb_version"], f"{place}.eplb_version")
    layers = as_list(fields["layers"], f"{place}.layers")
    notes = as_list(fields["notes"], f"{place}.notes")
    topology = _topology_from_json(fields["topology"], f"{place}.topology")
    with error_context(place):
        shape = shape_from_json(fields["shape"], "shape")
    return Provenance(
        shape=shape,
        topology=topology,
        replica_weights=_weights_from_json(fields["replica_weights"], f"{place}.replica_weights"),
        strategy=as_text(fields["strategy"], f"{place}.strategy"),
        status=_status_from_json(fields["status"], f"{place}.status"),
        seed=as_int(fields["seed"], f"{place}.seed"),
        layers=tuple(_certificate_from_json(layer, f"{place}.layers[{i}]") for i, layer in enumerate(layers)),
        notes=tuple(as_text(note, f"{place}.notes[{i}]") for i, note in enumerate(notes)),
        load_digest=as_text(fields["load_digest"], f"{place}.load_digest"),
        absent_ranks=_absent_ranks(fields.get(_ABSENT_RANKS_KEY, []), topology, f"{place}.{_ABSENT_RANKS_KEY}"),
    )


def _absent_ranks(value: object, topology: Topology, place: str) -> tuple[int, ...]:
    ranks = tuple(as_int(rank, f"{place}[{i}]", 0) for i, rank in enumerate(as_list(value, place)))
    num_ids = topology.num_ranks + len(ranks)
    if len(set(ranks)) < len(ranks) or max(ranks, default=0) >= num_ids:
        raise FormatError(f"{place} = {list(ranks)}: expected different ids, 0 <= id < {num_ids}")
    return ranks


def _topology_from_json(value: object, place: str) -> Topology:
    fields = as_fields(value, place, _TOPOLOGY_KEYS)
    speed = fields["rank_speed"]
    with error_context(place):
        return Topology(
            num_nodes=as_int(fields["num_nodes"], f"{place}.num_nodes", 1),
            ranks_per_node=_count_or_counts(fields["ranks_per_node"], f"{place}.ranks_per_node"),
            slots_per_rank=_count_or_counts(fields["slots_per_rank"], f"{place}.slots_per_rank"),
            rank_speed=None if speed is None else as_number_row(speed, f"{place}.rank_speed").tolist(),
            intra_node_gbps=as_number(fields["intra_node_gbps"], f"{place}.intra_node_gbps"),
            inter_node_gbps=as_number(fields["inter_node_gbps"], f"{place}.inter_node_gbps"),
        )


def _count_or_counts(value: object, place: str) -> int | list[int]:
    if isinstance(value, list):
        return [as_int(item, f"{place}[{i}]", 1) for i, item in enumerate(value)]
    return as_int(value, place, 1)


def _weights_from_json(value: object, place: str) -> NDArray[np.float64] | None:
    if value is None:
        return None
    rows = [as_number_row(row, f"{place}[{i}]") for i, row in enumerate(as_list(value, place))]
    if not rows:
        raise FormatError(f"{place} is empty: expected one list of shares a layer, or null")
    return stack_rows({f"{place}[{i}]": row for i, row in enumerate(rows)})


def _status_from_json(value: object, place: str) -> SolveStatus:
    try:
        return SolveStatus(as_text(value, place))
    except ValueError:
        raise FormatError(f"{place} = {value!r}: expected one of {', '.join(SolveStatus)}") from None


def _certificate_from_json(value: object, place: str) -> LayerCertificate:
    fields = as_fields(value, place, _CERTIFICATE_KEYS)
    objective = as_number(fields["objective"], f"{place}.objective")
    lower_bound = as_number(fields["lower_bound"], f"{place}.lower_bound")
    if objective < lower_bound * (1 - 1e-9):  # equal up to rounding is legal: the bound is met
        raise FormatError(f"{place}.objective = {objective}: expected at least lower_bound = {lower_bound}")
    bound = as_text(fields["binding_bound"], f"{place}.binding_bound")
    try:
        binding_bound = BindingBound(bound)
    except ValueError:
        expected = ", ".join(BindingBound)
        raise FormatError(f"{place}.binding_bound = {bound!r}: expected one of {expected}") from None
    status = _status_from_json(fields["status"], f"{place}.status")
    return LayerCertificate(objective, lower_bound, binding_bound, status)
