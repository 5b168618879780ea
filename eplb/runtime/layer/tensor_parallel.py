"""Executes a MoE layer whose experts are cut over tensor-parallel peers, alone or together with expert parallelism.

T tokens of this process   N tokens of all its peers, padded   K choices   H hidden   M rows

    own x_TH --gather over peers--> x_NH --dispatch in the EP group--> x_MH --each shard--> partial sums
    own y_TH <--reduce-scatter over peers-- y_NH <--combine in the EP group--------------------'

Peers hold cuts of the same experts and dispatch the same N tokens, each in its own EP group.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from eplb.runtime.exchange.protocol import Backend
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.experts.slot_experts import SlotExperts
from eplb.runtime.layer.gate import GateChoice
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.layer.replica_choice import TokenSource
from eplb.runtime.layer.routing import route


@final
@dataclass(frozen=True)
class TensorParallelLayer:
    """One layer of this process.

    Parameters
    ----------
    layer
        Its number in the tables.
    tables
        The placement over the ranks of an EP group.
    group
        The processes of this process's EP group.
    backend
        Moves tokens within the EP group.
    shards
        The cuts that this process executes, each with the slots of its EP ranks.
    peers
        The processes with other cuts of the same experts.

    Raises
    ------
    InputError
        If tables and group have other slots.
    """

    layer: int
    tables: PlacementTables
    group: RankGroup
    backend: Backend
    shards: tuple[SlotExperts, ...]
    peers: RankGroup

    def __post_init__(self) -> None:
        self.group.check_slots_of(self.tables.topology, "the placement of the tables")

    def __call__(self, x_TH: Tensor, choice: GateChoice) -> Tensor:
        """[T, H] the weighted sum of the chosen experts, for this process's tokens."""
        num_tokens, most = x_TH.shape[0], self._most_tokens(x_TH)
        x_NH = self._gathered(x_TH, most, 0)
        everyone = GateChoice(self._gathered(choice.expert_ids_TK, most, -1), self._gathered(choice.weight_TK, most, 0))
        source = TokenSource.divided(self.group.ranks, x_NH.shape[0], x_NH.device)  # alike on all peers
        handle = self.backend.plan_exchange(route(everyone, source, self.tables, self.layer, self.group))
        x_MH = self.backend.dispatch(x_NH, handle)
        partial_MH = torch.zeros_like(x_MH)
        for shard in self.shards:
            partial_MH += shard.forward(self.layer, x_MH, handle.rows.rows_per_slot_S)
        y_NH = self.backend.combine(partial_MH, handle)
        return self.peers.reduce_scatter(y_NH.view(self.peers.num_processes, most, x_TH.shape[1]))[:num_tokens]

    def _most_tokens(self, x_TH: Tensor) -> int:
        """The largest number of tokens of a peer; waits for the device."""
        own = torch.tensor([x_TH.shape[0]], device=x_TH.device)
        return int(self.peers.all_gather(own).max())

    def _gathered(self, own: Tensor, most: int, fill: int) -> Tensor:
        """[N, *] the rows of all peers, each padded to `most`."""
        padded = own.new_full((most, *own.shape[1:]), fill)
        padded[: own.shape[0]] = own
        return self.peers.all_gather(padded).flatten(0, 1)
