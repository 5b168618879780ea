"""Launches the split of the rule `online` on the device, without a wait of the host, for captured graphs."""

import torch
from torch import Tensor

from eplb.dispatch.batch_split import SWEEPS
from eplb.errors import InputError
from eplb.runtime.kernels.launch import power_of_two
from eplb.runtime.layer.placement_tables import PlacementTables

MOST_PAIRS = 8192
"""Ranks x replicas, both rounded up to powers of two: a tile in the registers of a program."""


def quotas_refusal(tables: PlacementTables) -> str:
    """Why the kernels cannot split under these tables; empty if they can."""
    num_ranks, most = tables.topology.num_ranks, tables.log2phy_LEX.shape[2]
    ranks, replicas = power_of_two(num_ranks), power_of_two(most)
    if max(ranks, replicas) * ranks <= MOST_PAIRS and replicas * replicas <= 2 * MOST_PAIRS:
        return ""
    return (
        f"replica rule online on the device: {num_ranks} ranks and up to {most} replicas, expected at most "
        f"{MOST_PAIRS} pairs; give PlacementTables a smaller max_replicas"
    )


def online_quotas_on_device(counts_RE: Tensor, tables: PlacementTables, layer: int) -> Tensor:
    """[R, E, X] what `online_quotas` returns, token by token.

    One program fills in the replicated experts one after the other, so its time grows with their number.

    Parameters
    ----------
    counts_RE
        [R, E] int64 selections of this batch by source rank and logical expert, the same on every rank.
    tables
        The maps in force.
    layer
        The layer.

    Raises
    ------
    InputError
        With the reason of `quotas_refusal`.
    """
    from eplb.runtime.kernels.online_quotas_kernel import assign_sources_kernel, fill_ranks_kernel

    (num_ranks, num_experts), most = counts_RE.shape, tables.log2phy_LEX.shape[2]
    sizes = {"RP": power_of_two(num_ranks), "XP": power_of_two(most)}
    if refusal := quotas_refusal(tables):
        raise InputError(refusal)
    log2phy_EX, count_E, counts_RE = tables.log2phy_LEX[layer], tables.logcnt_LE[layer], counts_RE.contiguous()
    total_E = counts_RE.sum(dim=0)
    is_split_E = (count_E > 1) & (total_E > 0)
    order_E = torch.where(is_split_E, total_E, -1).argsort(descending=True, stable=True)
    rank_E = tables.rank_of_slot_P[log2phy_EX[:, 0].clamp(min=0)]
    load_R = torch.zeros(num_ranks, dtype=torch.int64, device=counts_RE.device)
    load_R.scatter_add_(0, rank_E, torch.where(count_E == 1, total_E, 0))
    tokens_ER = torch.zeros((num_experts, num_ranks), dtype=torch.int64, device=counts_RE.device)
    quota_REX = torch.empty((num_ranks, num_experts, most), dtype=torch.int64, device=counts_RE.device)
    fill_ranks_kernel[(1,)](
        order_E,
        is_split_E.sum(),
        total_E,
        load_R,
        log2phy_EX,
        tables.rank_of_slot_P,
        tokens_ER,
        most,
        num_ranks,
        SWEEPS=SWEEPS,
        **sizes,
        num_warps=4,
    )
    assign_sources_kernel[(num_experts,)](
        counts_RE,
        count_E,
        tokens_ER,
        log2phy_EX,
        tables.rank_of_slot_P,
        quota_REX,
        num_experts,
        most,
        num_ranks,
        **sizes,
        num_warps=4,
    )
    return quota_REX
