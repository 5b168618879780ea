"""Chooses replicas on the device, without a wait of the host, so that a CUDA graph can hold the choice.

T tokens   K choices   R ranks   E logical experts   X most replicas

    every rule but online    one kernel over the tables
    online                   counts [R, E], summed over processes, -> quotas [R, E, X] in two kernels -> sort by expert

Where that is impossible (`host_reason`) the host splits the batch, and the layer cannot be captured.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from eplb.core.dispatch_rule import DispatchRule
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.kernels.launch import interpreted
from eplb.runtime.kernels.online_quotas import online_quotas_on_device, quotas_refusal
from eplb.runtime.kernels.replica_choice import choose_slots_on_device
from eplb.runtime.layer.gate import GateChoice
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.layer.replica_choice import TokenSource, choose_slots, no_quotas, online_quotas
from eplb.runtime.layer.routing import route, source_counts


def host_reason(tables: PlacementTables) -> str:
    """Why the host must take part in the choice; empty if it is made on the device alone."""
    if tables.rule is not DispatchRule.ONLINE:
        return ""
    if not _has_kernels(tables):
        return "the replica rule online needs Triton on a GPU: otherwise its split waits for the host"
    return quotas_refusal(tables)


def device_slots(
    choice: GateChoice, source: TokenSource, tables: PlacementTables, layer: int, group: RankGroup
) -> Tensor:
    """[T, K] the slots that `route` chooses; communicates only under the rule `online`.

    Without Triton the choice is made in torch, which does not wait for the device either, except under `online`.
    """
    if tables.rule is DispatchRule.ONLINE:
        return _online_slots(choice, source, tables, layer, group)
    if not _has_kernels(tables):
        return choose_slots(choice.expert_ids_TK, source, tables, layer, no_quotas(tables.device))
    slot_TK = torch.empty(choice.expert_ids_TK.shape, dtype=torch.int64, device=tables.device)
    choose_slots_on_device(choice.expert_ids_TK, source, tables, layer, slot_TK)
    return slot_TK


def _online_slots(
    choice: GateChoice, source: TokenSource, tables: PlacementTables, layer: int, group: RankGroup
) -> Tensor:
    if not _has_kernels(tables):
        return route(choice, source, tables, layer, group).slot_TK
    counts_RE = group.all_gather(source_counts(choice.expert_ids_TK, source, tables)).sum(dim=0)
    split = online_quotas if quotas_refusal(tables) else online_quotas_on_device
    return choose_slots(choice.expert_ids_TK, source, tables, layer, split(counts_RE, tables, layer))


def _has_kernels(tables: PlacementTables) -> bool:
    return find_spec("triton") is not None and (tables.device.type == "cuda" or interpreted())
