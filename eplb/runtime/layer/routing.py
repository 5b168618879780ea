"""Turns the experts that a router chose into slots.

T tokens of this process   K choices   R ranks   E logical experts
"""

import torch
from torch import Tensor

from eplb.core.dispatch_rule import DispatchRule
from eplb.runtime.exchange.protocol import RoutingPlan
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.layer.gate import GateChoice
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.layer.replica_choice import TokenSource, choose_slots, no_quotas, online_quotas


def route(
    choice: GateChoice, source: TokenSource, tables: PlacementTables, layer: int, group: RankGroup
) -> RoutingPlan:
    """Choose a slot for every selection; communicates only under the rule `online`.

    Raises
    ------
    InputError
        If the source has another number of tokens, and for an expert without a replica.
    """
    source.check_tokens(choice.expert_ids_TK.shape[0])
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
