"""Executes a Mixture-of-Experts layer under expert parallelism: gate, replica choice, exchange, experts.

Letters: T tokens of this process, K choices, H hidden, M rows for the experts of this process, S its slots.

    x_TH -> gate -> slots -> plan exchange -> dispatch -> x_MH -> experts -> y_MH -> combine -> y_TH (+ shared experts)
                                   |____________ frozen handle ____________________|
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, final

import torch
from torch import Tensor

from eplb.core.dispatch_rule import DispatchRule
from eplb.runtime.exchange.protocol import Backend, ExchangeHandle, FixedBuffers, RoutingPlan
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.layer.gate import Gate, GateChoice
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.layer.replica_choice import TokenSource, choose_slots, no_quotas, online_quotas

if TYPE_CHECKING:
    from eplb.runtime.layer.captured import CapturedLayers


class SlotExperts(Protocol):
    """The experts in the slots of this process."""

    def forward(self, layer: int, x_RH: Tensor, rows_per_slot: Tensor) -> Tensor:
        """Apply each slot's expert to its rows.

        Parameters
        ----------
        layer
            The layer.
        x_RH
            [M, H] rows sorted by local slot.
        rows_per_slot
            [S] rows of each slot; sums to M.

        Returns
        -------
        Tensor
            [M, H] in the same order.
        """
        ...


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
    """

    layer: int
    gate: Gate
    tables: PlacementTables
    group: RankGroup
    backend: Backend
    experts: SlotExperts
    shared: Callable[[Tensor], Tensor] = torch.zeros_like

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

    def captured(self, source: TokenSource, x_TH: Tensor, exchange: FixedBuffers | None = None) -> "CapturedLayers":
        """The layer in a CUDA graph, from router to output, for up to as many tokens as x_TH.

        See `CapturedLayers`, which also holds several layers. On a CPU the layer runs eagerly; `reason` is then set.
        """
        from eplb.runtime.layer.captured import CapturedLayers

        return CapturedLayers([self], source, x_TH, exchange)

    def execute(self, x_TH: Tensor, handle: ExchangeHandle) -> Tensor:
        """[T, H] the sum of the routed experts, for a planned exchange; the handle can be used again."""
        x_MH = self.backend.dispatch(x_TH, handle)
        y_MH = self.experts.forward(self.layer, x_MH, handle.rows.rows_per_slot_S)
        return self.backend.combine(y_MH, handle)


def route(
    choice: GateChoice, source: TokenSource, tables: PlacementTables, layer: int, group: RankGroup
) -> RoutingPlan:
    """Choose a slot for every selection; communicates only under the rule `online`.

    Raises
    ------
    InputError
        For an expert without a replica.
    """
    quota_REX = no_quotas(choice.weight_TK.device)
    if tables.rule is DispatchRule.ONLINE:
        counts_RE = group.all_gather(source_counts(choice.expert_ids_TK, source, tables)).sum(dim=0)
        quota_REX = online_quotas(counts_RE, tables, layer)
    slot_TK = choose_slots(choice.expert_ids_TK, source, tables, layer, quota_REX)
    return RoutingPlan(slot_TK, choice.weight_TK, source, tables.epoch_L[layer].clone())


def source_counts(expert_ids_TK: Tensor, source: TokenSource, tables: PlacementTables) -> Tensor:
    """[R, E] int64 selections of this process's tokens by source rank and logical expert; the host does not wait."""
    num_ranks, num_experts = tables.topology.num_ranks, tables.num_experts
    key_TK = source.rank_T[:, None] * num_experts + expert_ids_TK
    key_N = torch.where(expert_ids_TK >= 0, key_TK, num_ranks * num_experts).reshape(-1)
    counts = torch.zeros(num_ranks * num_experts + 1, dtype=torch.int64, device=key_N.device)
    return counts.scatter_add_(0, key_N, torch.ones_like(key_N))[:-1].view(num_ranks, num_experts)
