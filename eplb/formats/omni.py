"""omni-infer's placement pattern, a .npy of zeros and ones.

From the loader (omni-infer, omni_placement ``expert_mapping.py``): an array [ranks, MoE layers, experts] whose
shape has to be exactly (world size, ``max_moe_layer_num``, experts); 1: the rank holds the expert. The
local position of an expert is the number of lower ids on the rank, so a rank's slots have no order of their own,
and an expert cannot be twice on a rank. A layer may have more redundant experts than another, but in one layer
every rank holds equally many: the engine sizes a rank by its layer's mean. Read into a Placement, a rank has as
many slots as in its fullest layer; in the others the last ones are empty (-1).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.core.problem import Plan
from eplb.errors import FormatError
from eplb.formats.array_file import load_npy, npy_bytes
from eplb.formats.engine_file import EngineFile, FileFacts
from eplb.formats.engine_limits import Consequences, MapDefect, check_no_duplicates
from eplb.formats.loader_map import LoaderMap, check_num_layers, check_num_ranks, numbered_layers
from eplb.formats.protocol import EncodedFile, ReadHints, RecordStatus
from eplb.formats.quoting import yaml_scalar
from eplb.formats.source_file import SourceFile
from eplb_traces import ModelShape

# Read from the source of omni-infer's ExpertMapping, not run.
CONSEQUENCES: Final[Consequences] = {
    MapDefect.MISSING_EXPERT: "omni-infer accepts it, with no place for the expert's tokens",
    MapDefect.DUPLICATE: "omni-infer has one bit for an expert on a rank and loses the second replica",
    MapDefect.ID_TOO_LARGE: "omni-infer refuses a pattern of another shape",
    MapDefect.UNEVEN_RANKS: "omni-infer sizes every rank by the layer's mean and the fuller rank overflows",
}


@final
@dataclass(frozen=True)
class Omni:
    """omni-infer's bit for every rank, layer and expert."""

    name: ClassVar[str] = "omni"
    summary: ClassVar[str] = "omni-infer pattern_path, .npy of 0/1 [ranks, MoE layers, experts]; slot order is lost"
    suffixes: ClassVar[tuple[str, ...]] = (".npy",)
    consequences: ClassVar[Consequences] = CONSEQUENCES

    def recognises(self, source: SourceFile) -> bool:
        """By the suffix."""
        return source.path.suffix in self.suffixes

    def parse(self, source: SourceFile) -> "OmniFile":
        """[R, L, E] zeros and ones."""
        return OmniFile(EngineFile(source.path, self.name, _read_pattern(source)))

    def encode(self, plan: Plan, suffix: str) -> EncodedFile:
        """The pattern as int32, and the plan in its slot order: experts of a rank ascend.

        Refuses duplicates, and layers in which one rank holds more experts than another.
        """
        check_no_duplicates(CONSEQUENCES, plan.placement)
        pattern = _pattern(plan.placement)
        digested = pattern.astype(np.int64)
        _check_equal_experts("the plan", digested)
        return EncodedFile(npy_bytes(pattern), digested, replace(plan, placement=ascending(plan.placement)))

    def server_flags(self, path: Path, plan: Plan) -> str:
        """omni-infer's configuration for the file."""
        return (
            "# omni-infer, in the model's additional configuration\n"
            "enable_omni_placement: true\n"
            "omni_placement_config:\n"
            f"  pattern_path: {yaml_scalar(path)}\n"
            f"  max_moe_layer_num: {plan.placement.num_layers}\n"
            "  enable_dynamic: false"
        )


@final
@dataclass(frozen=True, eq=False)
class OmniFile:
    """A parsed file: the pattern [R, L, E]."""

    file: EngineFile

    @property
    def record_status(self) -> RecordStatus:
        """See `ParsedFile.record_status`."""
        return self.file.sidecar.status

    def plan(self, hints: ReadHints) -> Plan:
        """The plan, each rank's experts in ascending order, its empty slots last."""
        known, path, pattern = self.file.merged(hints), self.file.path, self.file.digested
        held = pattern.sum(axis=2)  # [R, L] experts of each rank
        most = held.max(axis=1)
        if not most.all():
            raise FormatError(f"{path}: rank {int(np.argmin(most))} holds no expert in any layer")
        slots = most if known.topology is None else known.topology.rank_num_slots
        if slots.shape != most.shape or (slots < most).any():
            raise FormatError(
                f"{path}: ranks hold up to {most.tolist()} experts: the topology has {slots.tolist()} slots"
            )
        facts = FileFacts(
            num_ranks=pattern.shape[0], num_experts=pattern.shape[2], slots_per_rank=tuple(int(s) for s in slots)
        )
        return self.file.plan(_lay_out(pattern, slots), facts, known)

    def loader_map(self, num_ranks: int, shape: ModelShape | None) -> LoaderMap:
        """Each rank's experts and, up to the fullest layer, -1."""
        path, pattern = self.file.path, self.file.digested
        check_num_ranks(path, pattern.shape[0], num_ranks, "the array")
        _check_equal_experts(str(path), pattern)
        notes = check_num_layers(path, pattern.shape[1], shape)
        rows = _lay_out(pattern, pattern.sum(axis=2).max(axis=1))
        if rows.shape[1] == 0:
            raise FormatError(f"{path}: every entry is 0: expected every expert in every layer")
        labels = numbered_layers(pattern.shape[1])
        return LoaderMap(rows, labels, pattern.shape[2], notes, may_have_empty_slots=True)


def _read_pattern(source: SourceFile) -> NDArray[np.int64]:
    """[R, L, E] zeros and ones of a file."""
    path, array = source.path, load_npy(source)
    if array.ndim != 3 or array.size == 0:
        raise FormatError(f"{path}: the array has shape {array.shape}: expected [ranks, layers, experts]")
    if array.dtype.kind not in "biuf":
        raise FormatError(f"{path}: the array holds {array.dtype}: expected zeros and ones")
    strange = (array != 0) & (array != 1)
    if strange.any():
        rank, layer, expert = (int(i) for i in np.argwhere(strange)[0])
        value = array[rank, layer, expert]
        raise FormatError(
            f"{path}: [rank {rank}, layer {layer}, expert {expert}] = {value}: expected 0 or 1; omni-infer adds the "
            "entries of lower ids up to a position on the rank, and any other number moves the experts behind it"
        )
    return array.astype(np.int64)


def _check_equal_experts(place: str, pattern: NDArray[np.int64]) -> None:
    """Refuse a layer in which ranks hold different numbers of experts."""
    held = pattern.sum(axis=2)  # [R, L]
    uneven = held != held[0]
    if uneven.any():
        layer, rank = (int(i) for i in np.argwhere(uneven.T)[0])
        raise FormatError(
            f"{place}: layer {layer}: rank {rank} holds {held[rank, layer]} experts and rank 0 holds {held[0, layer]}: "
            f"{CONSEQUENCES[MapDefect.UNEVEN_RANKS]}; expected the same number on every rank of a layer"
        )


def ascending(placement: Placement) -> Placement:
    """The same experts on the same ranks, in each rank ascending and empty slots last; weights move along."""
    phy2log = placement.physical_to_logical_map
    key = np.where(phy2log == EMPTY_SLOT, placement.num_experts, phy2log).astype(np.int64)
    order = np.argsort(
        placement.topology.rank_of_slot * np.int64(placement.num_experts + 1) + key, axis=1, kind="stable"
    )
    weights = placement.replica_weights
    return Placement(
        np.take_along_axis(phy2log, order, axis=1),
        placement.num_experts,
        placement.topology,
        None if weights is None else np.take_along_axis(weights, order, axis=1),
    )


def _pattern(placement: Placement) -> NDArray[np.int32]:
    """[R, L, E] one where the rank holds the expert."""
    pattern = np.zeros((placement.topology.num_ranks, placement.num_layers, placement.num_experts), dtype=np.int32)
    layers, slots = np.nonzero(placement.physical_to_logical_map != EMPTY_SLOT)
    experts = placement.physical_to_logical_map[layers, slots]
    pattern[placement.topology.rank_of_slot[slots], layers, experts] = 1
    return pattern


def _lay_out(pattern: NDArray[np.int64], slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """[L, P] slots of a pattern: rank r has slots[r] of them, filled in ascending order."""
    rank, layer, expert = np.nonzero(pattern)
    position = (np.cumsum(pattern, axis=2) - 1)[rank, layer, expert]
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(slots)])
    phy2log = np.full((pattern.shape[1], int(first[-1])), EMPTY_SLOT, dtype=np.int64)
    phy2log[layer, first[rank] + position] = expert
    return phy2log
