"""Makes one plan of an engine's file: its map, the record beside it and the hints of the user."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.placement import Placement
from eplb.core.problem import Plan
from eplb.core.topology import Nodes, Topology
from eplb.errors import FormatError
from eplb.formats.json_fields import error_context
from eplb.formats.protocol import ReadHints, RecordStatus
from eplb.formats.sidecar import Sidecar, read_sidecar, sidecar_path
from eplb_traces import ModelShape
from eplb_traces.model_shape import merge_shapes

_Value = TypeVar("_Value")


@final
@dataclass(frozen=True)
class FileFacts:
    """What the file itself holds beside the map; None for what it does not."""

    num_ranks: int | None = None
    num_nodes: int | None = None
    num_experts: int | None = None
    slots_per_rank: tuple[int, ...] | None = None
    moe_layer_ids: tuple[int, ...] | None = None
    num_hidden_layers: int | None = None


@final
@dataclass(frozen=True, eq=False)
class EngineFile:
    """An engine's file and the sidecar beside it, which is read on first use.

    Parameters
    ----------
    path
        The engine's file.
    format_name
        Its dialect.
    digested
        The integers of the file by which its sidecar recognises it.
    """

    path: Path
    format_name: str
    digested: NDArray[np.int64]

    @cached_property
    def sidecar(self) -> Sidecar:
        """What lies beside the file; FormatError for a sidecar that cannot be read."""
        return read_sidecar(self.path, self.format_name, self.digested)

    def merged(self, hints: ReadHints) -> ReadHints:
        """The hints of the user together with the sidecar.

        Raises
        ------
        FormatError
            If a hint contradicts the sidecar.
        """
        record = self.sidecar.provenance
        if record is None:
            return hints
        return merge_hints(record.topology, record.shape, hints, str(sidecar_path(self.path)))

    def plan(self, phy2log: NDArray[np.int64], facts: FileFacts, hints: ReadHints) -> Plan:
        """The plan of the map [L, P], with the hints of `merged`: its record restored, else "imported:<format>".

        Raises
        ------
        FormatError
            For a missing or contradicting hint, or a map that is no placement.
        """
        shape, notes = _resolve_shape(self.path, phy2log, facts, hints)
        topology = self._resolve_topology(phy2log.shape[1], facts, hints)
        with error_context(self.path):
            if self.sidecar.provenance is not None:
                return self.sidecar.provenance.with_map(phy2log, shape)
            placement = Placement(phy2log, shape.num_experts, topology)
            return Plan(placement, shape, f"imported:{self.format_name}", notes=self._stale_notes() + notes)

    def _stale_notes(self) -> tuple[str, ...]:
        if self.sidecar.status is not RecordStatus.STALE:
            return ()
        return (f"{sidecar_path(self.path).name} is about another map and was not used",)

    def _resolve_topology(self, num_slots: int, facts: FileFacts, hints: ReadHints) -> Topology:
        topology = hints.topology
        num_ranks = merge("ranks", facts.num_ranks, hints.num_ranks, self.path)
        merge("nodes", facts.num_nodes, hints.num_nodes, self.path)
        num_nodes: Nodes | None = hints.num_nodes if facts.num_nodes is None else facts.num_nodes
        if topology is not None:
            merge("ranks", num_ranks, topology.num_ranks, self.path)
            merge("nodes", num_nodes, topology.nodes, self.path)
            merge("slots", num_slots, topology.num_slots, self.path)
            return topology
        if num_ranks is None:
            raise FormatError(f"{self.path}: {self.format_name} files do not hold the number of ranks: give --ranks")
        nodes: Nodes = 1 if num_nodes is None else num_nodes
        with error_context(self.path):
            if facts.slots_per_rank is None:
                return Topology.for_experts(num_slots, num_ranks=num_ranks, num_nodes=nodes)
            uniform = Topology.for_experts(num_ranks, num_ranks=num_ranks, num_nodes=nodes)  # checks the nodes
            return replace(uniform, slots_per_rank=facts.slots_per_rank)


def merge_hints(topology: Topology, shape: ModelShape, hints: ReadHints, place: str) -> ReadHints:
    """The hints that a full record gives, with the layer ids that only the user gives.

    Raises
    ------
    FormatError
        If a hint contradicts the record.
    """
    merge("topology", topology, hints.topology, place)
    merge("ranks", topology.num_ranks, hints.num_ranks, place)
    merge("nodes", topology.nodes, hints.num_nodes, place)
    merge("experts", shape.num_experts, hints.num_experts, place)
    return ReadHints(topology=topology, shape=_merge_shapes(shape, hints.shape, place))


def merge(name: str, first: _Value | None, second: _Value | None, place: str | Path) -> _Value | None:
    """The value of the two that is not None; two different values are an error at `place`, which holds `first`."""
    if first is not None and second is not None and first != second:
        raise FormatError(f"{place}: {name} = {first}, but {second} was given: give no other value than the file's")
    return second if first is None else first


def _merge_shapes(shape: ModelShape, other: ModelShape | None, place: str) -> ModelShape:
    """`shape`, with values that it does not have taken from `other`.

    Groups are not compared: a shape that a user gives for its layers has the default 1 there.
    """
    with error_context(place):
        return shape if other is None else merge_shapes(shape, other)


def _resolve_shape(
    path: Path, phy2log: NDArray[np.int64], facts: FileFacts, hints: ReadHints
) -> tuple[ModelShape, tuple[str, ...]]:
    """The model of file and hints, and a note where the number of experts had to be taken from the largest id."""
    known = merge("experts", facts.num_experts, hints.num_experts, path)
    known = merge("experts", known, None if hints.shape is None else hints.shape.num_experts, path)
    num_experts = int(phy2log.max()) + 1 if known is None else known
    guess = f"the file does not hold the number of experts: {num_experts} by the largest id"
    notes = (guess,) if known is None else ()
    with error_context(path):
        shape = ModelShape(
            phy2log.shape[0],
            num_experts,
            moe_layer_ids=facts.moe_layer_ids,
            num_hidden_layers=facts.num_hidden_layers,
        )
        if hints.shape is None:
            return shape, notes
        ids = _merge_shapes(shape, hints.shape, str(path))
        return replace(hints.shape, moe_layer_ids=ids.moe_layer_ids, num_hidden_layers=ids.num_hidden_layers), notes
