"""Knows how a map from an engine's file, its sidecar and the user's hints become one Plan; knows no dialect."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.placement import Placement
from eplb.core.problem import Plan
from eplb.core.topology import Topology
from eplb.errors import FormatError
from eplb.formats.json_fields import located
from eplb.formats.protocol import ReadHints
from eplb.formats.provenance import Provenance
from eplb.formats.sidecar import find_provenance, sidecar_path, stale_note
from eplb_traces import ModelShape
from eplb_traces.model_shape import merge_shapes

_Value = TypeVar("_Value")


@final
@dataclass(frozen=True)
class ForeignFile:
    """An engine's file and all that is known beside its map: `hints` are the user's and the sidecar's together."""

    path: Path
    format_name: str
    hints: ReadHints
    provenance: Provenance | None
    notes: tuple[str, ...]


@final
@dataclass(frozen=True)
class FileFacts:
    """What the dialect itself says, None where it does not."""

    num_ranks: int | None = None
    num_nodes: int | None = None
    num_experts: int | None = None
    slots_per_rank: tuple[int, ...] | None = None
    moe_layer_ids: tuple[int, ...] | None = None
    num_hidden_layers: int | None = None


def open_foreign(path: Path, format_name: str, raw: NDArray[np.int64], hints: ReadHints) -> ForeignFile:
    """Look for the sidecar of a file whose map is `raw` and join it with the hints.

    Raises
    ------
    FormatError
        If a hint contradicts the sidecar.
    """
    provenance = find_provenance(path, format_name, raw)
    if provenance is None:
        notes = (stale_note(path),) if sidecar_path(path).exists() else ()
        return ForeignFile(path, format_name, hints, None, notes)
    known = join_hints(provenance.topology, provenance.shape, hints, str(sidecar_path(path)))
    return ForeignFile(path, format_name, known, provenance, ())


def join_hints(topology: Topology, shape: ModelShape, hints: ReadHints, place: str) -> ReadHints:
    """The hints that a full record gives, with what the user knows beyond it.

    Raises
    ------
    FormatError
        If the user says something else than the record.
    """
    agree("topology", topology, hints.topology, place)
    agree("ranks", topology.num_ranks, hints.num_ranks, place)
    agree("nodes", topology.num_nodes, hints.num_nodes, place)
    agree("experts", shape.num_experts, hints.num_experts, place)
    return ReadHints(topology=topology, shape=_join_shapes(shape, hints.shape, place))


def agree(name: str, first: _Value | None, second: _Value | None, place: str | Path) -> _Value | None:
    """The value of the two that is known; both known and different is an error at `place`, which says `first`."""
    if first is not None and second is not None and first != second:
        raise FormatError(f"{place}: {name} = {first}, but {second} was given: give no other value than the file's")
    return second if first is None else first


def make_plan(file: ForeignFile, phy2log: NDArray[np.int64], facts: FileFacts) -> Plan:
    """The plan of a foreign file: its provenance restored where there is one, else "imported:<format>".

    Raises
    ------
    FormatError
        For a missing or contradicting hint, or a map that is no placement.
    """
    shape, derived = _resolve_shape(file, phy2log, facts)
    topology = _resolve_topology(file, phy2log.shape[1], facts)
    with located(file.path):
        if file.provenance is not None:
            return file.provenance.with_map(phy2log, shape)
        placement = Placement(phy2log, shape.num_experts, topology)
        return Plan(placement, shape, f"imported:{file.format_name}", notes=file.notes + derived)


def _resolve_shape(
    file: ForeignFile, phy2log: NDArray[np.int64], facts: FileFacts
) -> tuple[ModelShape, tuple[str, ...]]:
    hints = file.hints
    known = agree("experts", facts.num_experts, hints.num_experts, file.path)
    known = agree("experts", known, None if hints.shape is None else hints.shape.num_experts, file.path)
    num_experts = int(phy2log.max()) + 1 if known is None else known
    notes = () if known is not None else (f"the file does not say how many experts: {num_experts} by the largest id",)
    with located(file.path):
        shape = ModelShape(
            phy2log.shape[0],
            num_experts,
            moe_layer_ids=facts.moe_layer_ids,
            num_hidden_layers=facts.num_hidden_layers,
        )
        if hints.shape is None:
            return shape, notes
        joined = _join_shapes(shape, hints.shape, str(file.path))
        joined = replace(hints.shape, moe_layer_ids=joined.moe_layer_ids, num_hidden_layers=joined.num_hidden_layers)
        return joined, notes


def _join_shapes(shape: ModelShape, other: ModelShape | None, place: str) -> ModelShape:
    """`shape` with the values that it does not have taken from `other`, if there is another one."""
    with located(place):
        return shape if other is None else merge_shapes(shape, other)


def _resolve_topology(file: ForeignFile, num_slots: int, facts: FileFacts) -> Topology:
    hints, topology = file.hints, file.hints.topology
    num_ranks = agree("ranks", facts.num_ranks, hints.num_ranks, file.path)
    num_nodes = agree("nodes", facts.num_nodes, hints.num_nodes, file.path)
    if topology is not None:
        agree("ranks", num_ranks, topology.num_ranks, file.path)
        agree("nodes", num_nodes, topology.num_nodes, file.path)
        agree("slots", num_slots, topology.num_slots, file.path)
        return topology
    if num_ranks is None:
        raise FormatError(f"{file.path}: {file.format_name} files do not say how many ranks: give --ranks")
    num_nodes = 1 if num_nodes is None else num_nodes
    with located(file.path):
        if facts.slots_per_rank is None:
            return Topology.for_experts(num_slots, num_ranks=num_ranks, num_nodes=num_nodes)
        uniform = Topology.for_experts(num_ranks, num_ranks=num_ranks, num_nodes=num_nodes)  # checks the nodes
        return replace(uniform, slots_per_rank=facts.slots_per_rank)
