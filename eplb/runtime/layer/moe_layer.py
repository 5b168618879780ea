"""Executes a Mixture-of-Experts layer under expert parallelism: gate, replica choice, exchange, experts.

Letters: T tokens of this process, K choices, H hidden, M rows for the experts of this process, S its slots.

    x_TH -> gate -> slots -> plan exchange -> dispatch -> x_MH -> experts -> y_MH -> combine -> y_TH (+ shared experts)
                                   |____________ frozen handle ____________________|
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from eplb.runtime.exchange.protocol import Backend, ExchangeHandle, FixedBuffers
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.experts.slot_experts import SlotExperts
from eplb.runtime.layer.captured import CapturedLayers
from eplb.runtime.layer.gate import Gate, GateChoice
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.layer.replica_choice import TokenSource
from eplb.runtime.layer.routing import route


@final
@dataclass(frozen=True)
class MoeResult:
    """The output of a layer for one batch."""

    y_TH: Tensor
    choice: GateChoice
    """The router's choice, in logical experts; it is recorded for planning."""
    handle: ExchangeHandle


@final
@dataclass(frozen=True)
class MoeLayer:
    """One MoE layer of this process.

    Parameters
    ----------
    layer
        Its number in the tables.
    gate
        The router.
    tables
        The current maps, and the rule by which replicas are chosen.
    group
        The processes.
    backend
        Moves the tokens; of the same group.
    experts
        The experts in this process's slots.
    shared
        The shared experts, applied to every token on its own process. Their output is added.

    Raises
    ------
    InputError
        If tables and group have other slots.
    """

    layer: int
    gate: Gate
    tables: PlacementTables
    group: RankGroup
    backend: Backend
    experts: SlotExperts
    shared: Callable[[Tensor], Tensor] = torch.zeros_like

    def __post_init__(self) -> None:
        self.group.check_slots_of(self.tables.topology, "the placement of the tables")

    def __call__(self, x_TH: Tensor, token_ids_T: Tensor, source: TokenSource) -> MoeResult:
        """Route, dispatch, compute, combine.

        Raises
        ------
        ExchangeOverflowError
            If a buffer is too small and `Overflow` is RAISE.
        ExchangeEpochError
            If processes have maps of different epochs.
        """
        choice = self.gate(x_TH, token_ids_T)
        routing = route(choice, source, self.tables, self.layer, self.group)
        handle = self.backend.plan_exchange(routing)
        return MoeResult(self.execute(x_TH, handle) + self.shared(x_TH), choice, handle)

    def captured(self, source: TokenSource, x_TH: Tensor, exchange: FixedBuffers | None = None) -> CapturedLayers:
        """The layer in a CUDA graph, from router to output, for up to as many tokens as x_TH.

        See `CapturedLayers`, which also holds several layers. On a CPU the layer runs eagerly; `reason` is then set.
        """
        return CapturedLayers([self], source, x_TH, exchange)

    def execute(self, x_TH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[T, H] the sum of the routed experts, for a planned exchange; the handle can be used again."""
        x_MH = self.backend.dispatch(x_TH, handle)
        y_MH = self.experts.forward(self.layer, x_MH, handle.rows.rows_per_slot_S)
        return self.backend.combine(y_MH, handle)
