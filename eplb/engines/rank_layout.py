"""Knows what one rank of an engine needs of a plan when it starts: its experts, the maps, what to read in which order.

`for_engine` refuses a plan of another model or machine before a weight is read. It knows no weights; tensors in the
form of each engine are made by `engine_tensors`.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError, InputError
from eplb.formats import ReadHints, read_plan
from eplb.formats.sidecar import map_digest, sidecar_path, stale_note
from eplb.placement import EMPTY_SLOT, Placement, PlacementMaps
from eplb.plan import Plan
from eplb_traces import ModelShape

if TYPE_CHECKING:
    from eplb.engines.engine_tensors import EngineTensors


class ExpertRead(NamedTuple):
    """One expert of a checkpoint, and the slots of the rank that it fills."""

    layer: int
    """Position among the MoE layers."""
    layer_id: int
    """Absolute index of the layer in the model, as in the names of a checkpoint's tensors."""
    expert: int
    slots: tuple[int, ...]
    """Local slots, ascending; more than one where the rank holds the expert twice."""


@final
@dataclass(frozen=True, eq=False)
class RankLayout:
    """A plan as one rank sees it; made by `for_engine`. Arrays are read-only.

    Parameters
    ----------
    placement
        Where all experts live.
    shape
        The model.
    ep_rank
        The rank.
    """

    placement: Placement
    shape: ModelShape
    ep_rank: int

    @property
    def ep_size(self) -> int:
        """R, ranks of the expert-parallel group."""
        return self.placement.topology.num_ranks

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """[L] absolute index of each MoE layer; 0 to L - 1 where neither plan nor caller says it."""
        ids = self.shape.moe_layer_ids
        return tuple(range(self.placement.num_layers)) if ids is None else ids

    @cached_property
    def local_experts(self) -> NDArray[np.int32]:
        """[L, S] logical expert of each slot of the rank, -1 for an empty one."""
        first, last = self.placement.topology.rank_first_slot[self.ep_rank : self.ep_rank + 2]
        return self.placement.physical_to_logical_map[:, first:last]

    @cached_property
    def expert_map(self) -> NDArray[np.int32]:
        """[L, E] first local slot of each logical expert, -1 for experts that live elsewhere."""
        local_map = self.placement.local_expert_map(self.ep_rank)
        local_map.setflags(write=False)
        return local_map

    def layer_index(self, layer_id: int) -> int:
        """Position among the MoE layers of the layer with an absolute index.

        Raises
        ------
        InputError
            For a dense layer, or one that the model has not.
        """
        if layer_id not in self.layer_ids:
            raise InputError(f"layer {layer_id} has no experts: the MoE layers are {_ranges(self.layer_ids)}")
        return self.layer_ids.index(layer_id)

    def expert_map_of(self, layer_id: int) -> NDArray[np.int32]:
        """[E] the row of `expert_map` for the layer with an absolute index; errors as in `layer_index`."""
        row: NDArray[np.int32] = self.expert_map[self.layer_index(layer_id)]
        return row

    @cached_property
    def maps(self) -> PlacementMaps:
        """phy2log [L, P], log2phy [L, E, X] and logcnt [L, E] of all ranks, int64."""
        maps = self.placement.maps()
        for array in maps:
            array.setflags(write=False)
        return maps

    @cached_property
    def loading_order(self) -> tuple[ExpertRead, ...]:
        """What to read from a checkpoint: layer by layer in slot order, every expert once with all slots it fills."""
        reads = []
        for layer, row in enumerate(self.local_experts.tolist()):
            slots_of: dict[int, list[int]] = {}
            for slot, expert in enumerate(row):
                if expert != EMPTY_SLOT:
                    slots_of.setdefault(expert, []).append(slot)
            layer_id = self.layer_ids[layer]
            reads += [ExpertRead(layer, layer_id, expert, tuple(slots)) for expert, slots in slots_of.items()]
        return tuple(reads)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the map: ranks that agree on it have read the same plan."""
        return map_digest(self.placement.physical_to_logical_map.astype(np.int64))

    def torch(self, engine: str) -> "EngineTensors":
        """The maps as tensors on the CPU, in the types, shapes and padding of an engine; see `engine_tensors`.

        Raises
        ------
        UnknownNameError
            For an engine that has no such tensors.
        MissingExtraError
            If torch is not installed.
        """
        from eplb.engines.engine_tensors import engine_tensors

        return engine_tensors(self, engine)


def for_engine(
    plan_or_path: Plan | Placement | str | Path,
    *,
    ep_size: int,
    ep_rank: int,
    model_shape: ModelShape | None = None,
    digest: str | None = None,
) -> RankLayout:
    """What a rank of an engine needs when it starts.

    Parameters
    ----------
    plan_or_path
        A plan, a placement, or a file of any format.
    ep_size, ep_rank
        Ranks of the engine's expert-parallel group, and this one.
    model_shape
        The model that the engine runs, with the absolute ids of its MoE layers if it has dense ones; what the plan does
        not say is taken from it. None to take the plan's.
    digest
        `RankLayout.digest` of another rank; None not to compare.

    Returns
    -------
    RankLayout
        Checked; what it holds is derived on demand.

    Raises
    ------
    InputError
        If the plan is for another model, another number of ranks or not the one with the digest, if a file's record
        is of another map, or if there is no such rank. FormatError for a file that is no placement.
    """
    if ep_size < 1:
        raise InputError(f"ep_size = {ep_size}: expected >= 1")
    place, plan = _find_plan(plan_or_path, ep_size, model_shape)
    num_ranks = plan.placement.topology.num_ranks
    if num_ranks != ep_size:
        raise InputError(
            f"{place} is for {num_ranks} ranks: the engine runs ep_size = {ep_size}, expected a plan for it"
        )
    if not 0 <= ep_rank < ep_size:
        raise InputError(f"ep_rank = {ep_rank}: expected 0 <= ep_rank < ep_size = {ep_size}")
    shape = plan.shape if model_shape is None else _joined(plan.shape, model_shape, place)
    layout = RankLayout(plan.placement, shape, ep_rank)
    if digest is not None and layout.digest != digest:
        raise InputError(f"{place} has the digest {layout.digest}: expected {digest}, as another rank has it")
    return layout


def _find_plan(given: Plan | Placement | str | Path, ep_size: int, model_shape: ModelShape | None) -> tuple[str, Plan]:
    """What to call the plan in messages, and the plan."""
    if isinstance(given, Plan):
        return "the plan", given
    if isinstance(given, Placement):
        return "the placement", Plan(given, ModelShape(given.num_layers, given.num_experts), "given")
    path = Path(given)
    plan = _read(path, ep_size, model_shape)
    if stale_note(path) in plan.notes:
        raise InputError(
            f"{path}: its record {sidecar_path(path).name} is about another map, so one of the two files was changed: "
            "write the plan again, or remove the record if the map is meant"
        )
    return str(path), plan


def _read(path: Path, ep_size: int, model_shape: ModelShape | None) -> Plan:
    """Read what the file says; only what it does not say is taken from the engine, so that the two can be compared."""
    try:
        return read_plan(path)
    except FormatError as error:
        try:
            return read_plan(path, hints=ReadHints(num_ranks=ep_size, shape=model_shape))
        except FormatError as error_with_hints:
            raise error_with_hints from error


def _joined(planned: ModelShape, model: ModelShape, place: str) -> ModelShape:
    """The engine's model with what only the plan knows of it."""
    for name, ours, theirs in (
        ("MoE layers", planned.num_layers, model.num_layers),
        ("experts a layer", planned.num_experts, model.num_experts),
        ("experts a token", planned.top_k, model.top_k),
        ("MoE layers at", planned.moe_layer_ids, model.moe_layer_ids),
        ("hidden layers", planned.num_hidden_layers, model.num_hidden_layers),
    ):
        if ours is not None and theirs is not None and ours != theirs:
            raise InputError(
                f"{place} is for another model: {name} {_said(ours)}, the engine's model has {_said(theirs)}"
            )
    return replace(
        model,
        top_k=planned.top_k if model.top_k is None else model.top_k,
        moe_layer_ids=planned.moe_layer_ids if model.moe_layer_ids is None else model.moe_layer_ids,
        num_hidden_layers=planned.num_hidden_layers if model.num_hidden_layers is None else model.num_hidden_layers,
    )


def _said(value: int | tuple[int, ...]) -> str:
    return _ranges(value) if isinstance(value, tuple) else str(value)


def _ranges(ids: tuple[int, ...]) -> str:
    """Ascending ids as runs: "3 to 60, 62"."""
    array = np.array(ids)
    runs = np.split(array, np.nonzero(np.diff(array) > 1)[0] + 1)
    return ", ".join(str(run[0]) if run.size == 1 else f"{run[0]} to {run[-1]}" for run in runs)
