"""Chooses replicas on the device, without a wait of the host, so that a CUDA graph can hold the choice.

T tokens   K choices   R ranks   E logical experts   X most replicas

    every rule but online    one kernel over the tables
    online                   counts [R, E], summed over processes, -> quotas [R, E, X] in two kernels -> sort by expert
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from eplb.core.dispatch_rule import DispatchRule
from eplb.errors import InputError
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.kernels.launch import interpreted
from eplb.runtime.kernels.online_quotas import online_quotas_on_device
from eplb.runtime.kernels.replica_choice import choose_slots_on_device
from eplb.runtime.layer.gate import GateChoice
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.layer.replica_choice import TokenSource, choose_slots, no_quotas
from eplb.runtime.layer.routing import route, source_counts


def device_slots(
    choice: GateChoice, source: TokenSource, tables: PlacementTables, layer: int, group: RankGroup
) -> Tensor:
    """[T, K] the slots that `route` chooses; communicates only under the rule `online`.

    Without Triton the choice is made in torch, which does not wait for the device either, except under `online`.

    Raises
    ------
    InputError
        On a GPU under `online` without Triton, or with too many ranks and replicas for its kernels.
    """
    has_kernels = find_spec("triton") is not None and (tables.device.type == "cuda" or interpreted())
    is_online = tables.rule is DispatchRule.ONLINE
    if not has_kernels and is_online and tables.device.type == "cuda":
        raise InputError(f"layer {layer}: the replica rule online needs Triton on a GPU: its split waits for the host")
    if not has_kernels:
        if is_online:
            return route(choice, source, tables, layer, group).slot_TK
        return choose_slots(choice.expert_ids_TK, source, tables, layer, no_quotas(tables.device))
    if is_online:
        counts_RE = group.all_gather(source_counts(choice.expert_ids_TK, source, tables)).sum(dim=0)
        quota_REX = online_quotas_on_device(counts_RE, tables, layer)
        return choose_slots(choice.expert_ids_TK, source, tables, layer, quota_REX)
    slot_TK = torch.empty(choice.expert_ids_TK.shape, dtype=torch.int64, device=tables.device)
    choose_slots_on_device(choice.expert_ids_TK, source, tables, layer, slot_TK)
    return slot_TK
