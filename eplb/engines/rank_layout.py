"""Derives what one rank of an engine needs of a plan when it starts: its experts, its maps, its loading order.

Made by `for_engine`. Tensors in the form of each engine are made by `engine_tensors`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.placement import EMPTY_SLOT, Placement, PlacementMaps
from eplb.engines.engine_tensors import EngineTensors, PlacementOfRank, engine_tensors
from eplb.errors import InputError
from eplb.formats.sidecar import map_digest
from eplb_traces import ModelShape
from eplb_traces.display import counted, facts_html
from eplb_traces.model_shape import id_ranges


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
        The placement of all experts.
    shape
        The model.
    ep_rank
        The rank.
    """

    placement: Placement
    shape: ModelShape
    ep_rank: int

    def __repr__(self) -> str:
        return f"RankLayout(rank {self.ep_rank} of {self.ep_size}, {counted(self.placement.num_layers, 'layer')})"

    def _repr_html_(self) -> str:
        facts = {"rank": f"{self.ep_rank} of {self.ep_size}", "model": self.shape, "placement": self.placement}
        return facts_html("RankLayout", facts)

    @property
    def ep_size(self) -> int:
        """R, ranks of the expert-parallel group."""
        return self.placement.topology.num_ranks

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """[L] absolute index of each MoE layer; 0 to L - 1 where neither plan nor caller gives it."""
        ids = self.shape.moe_layer_ids
        return tuple(range(self.placement.num_layers)) if ids is None else ids

    @cached_property
    def local_experts(self) -> NDArray[np.int32]:
        """[L, S] logical expert of each slot of the rank, -1 for an empty one."""
        first, last = self.placement.topology.rank_first_slot[self.ep_rank : self.ep_rank + 2]
        return self.placement.physical_to_logical_map[:, first:last]

    @cached_property
    def expert_map(self) -> NDArray[np.int32]:
        """[L, E] first local slot of each logical expert, -1 for experts of other ranks."""
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
            raise InputError(f"layer {layer_id} has no experts: the MoE layers are {id_ranges(self.layer_ids)}")
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

    def torch(self, engine: str) -> EngineTensors:
        """The maps as tensors on the CPU, in the types, shapes and padding of an engine; see `engine_tensors`.

        Raises
        ------
        UnknownNameError
            For an engine that has no such tensors.
        MissingExtraError
            If torch is not installed.
        """
        of_rank = PlacementOfRank(self.placement, self.shape, self.layer_ids, self.ep_rank, self.maps, self.expert_map)
        return engine_tensors(of_rank, engine)
