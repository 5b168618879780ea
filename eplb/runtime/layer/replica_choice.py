"""Chooses the replica that each token is sent to.

    T tokens of this process   K experts per token   E logical experts   X most replicas   R ranks

Every rule is a pure function of (token index, k, source rank, tables, epoch), so a CPU can replay the choices of a GPU
exactly. A selection of -1 (a masked token) stays -1 under every rule.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from eplb.core.dispatch_rule import DispatchRule
from eplb.dispatch.batch_split import source_quotas, split_counts
from eplb.errors import InputError
from eplb.runtime.layer.placement_tables import PlacementTables

_MASK = 0xFFFFFFFF
VLLM_MULTIPLIER = 2654435769
"""2**32 over the golden ratio, rounded down: the multiplier of vLLM's hash."""
_TRTLLM_BLOCK = 1024
"""Selections per block of TensorRT-LLM's kernel; the next block starts one replica later."""


@final
@dataclass(frozen=True)
class TokenSource:
    """The source rank and index of each token of a batch."""

    rank_T: Tensor
    """[T] int64 rank that held the token before dispatch, ascending."""
    index_T: Tensor
    """[T] int64 position of the token in its rank's batch."""

    @classmethod
    def consecutive(cls, first_rank: int, tokens_per_rank: list[int], device: torch.device | str) -> "TokenSource":
        """Tokens of consecutive ranks, the batch of one rank after the other."""
        counts = torch.tensor(tokens_per_rank, dtype=torch.int64, device=device)
        ranks = torch.arange(first_rank, first_rank + len(tokens_per_rank), device=device)
        total = sum(tokens_per_rank)
        rank_T = torch.repeat_interleave(ranks, counts, output_size=total)
        start_T = torch.repeat_interleave(counts.cumsum(0) - counts, counts, output_size=total)
        return cls(rank_T, torch.arange(total, device=device) - start_T)

    @classmethod
    def divided(cls, ranks: range, num_tokens: int, device: torch.device | str) -> "TokenSource":
        """Tokens of a process, divided evenly over the ranks that it executes."""
        ends = [num_tokens * (i + 1) // len(ranks) for i in range(len(ranks))]
        shares = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        return cls.consecutive(ranks.start, shares, device)

    def check_tokens(self, num_tokens: int) -> None:
        """Refuse a batch of another number of tokens.

        Raises
        ------
        InputError
            With both numbers.
        """
        if self.rank_T.shape != (num_tokens,):
            raise InputError(f"source of {self.rank_T.shape[0]} tokens: expected {num_tokens}, as the batch")


def choose_slots(
    expert_ids_TK: Tensor, source: TokenSource, tables: PlacementTables, layer: int, quota_REX: Tensor
) -> Tensor:
    """Replace logical experts by slots, under the rule of the tables.

    Parameters
    ----------
    expert_ids_TK
        [T, K] int64 logical experts; -1 is a masked selection.
    source
        Where the tokens came from.
    tables
        The maps in force.
    layer
        The layer.
    quota_REX
        [R, E, X] `online_quotas` of this batch; read under the rule `online` only, otherwise `no_quotas()`.

    Returns
    -------
    Tensor
        [T, K] int64 slots, -1 for masked selections.

    Raises
    ------
    InputError
        If the source has another number of tokens, and for an expert that does not exist or has no replica. Experts
        are checked on the CPU only; on a GPU the check would wait for the device.
    """
    source.check_tokens(expert_ids_TK.shape[0])
    if expert_ids_TK.device.type == "cpu" and bool((expert_ids_TK >= tables.num_experts).any()):
        raise InputError(f"layer {layer}, expert {int(expert_ids_TK.max())}: the tables hold {tables.num_experts}")
    valid_TK = expert_ids_TK >= 0
    expert_TK = expert_ids_TK.clamp(min=0)
    count_TK = tables.logcnt_LE[layer][expert_TK]
    if expert_ids_TK.device.type == "cpu" and bool((valid_TK & (count_TK == 0)).any()):
        expert = int(expert_TK[valid_TK & (count_TK == 0)][0])
        raise InputError(f"layer {layer}, expert {expert}: selected, but the tables hold no replica of it")
    if tables.rank_slot_LRE.shape[1]:  # ascend and sglang_static
        slot_TK = tables.rank_slot_LRE[layer][source.rank_T[:, None], expert_TK]
    elif tables.rule in (DispatchRule.LOCAL_FIRST, DispatchRule.SGLANG_DYNAMIC):
        slot_TK = _slot_by_place(expert_TK, source, tables, layer)
    else:
        replica_TK = _replica(expert_TK, valid_TK, count_TK, source, tables, layer, quota_REX)
        slot_TK = tables.log2phy_LEX[layer][expert_TK, replica_TK]
    return torch.where(valid_TK, slot_TK, -1)


def _replica(  # noqa: PLR0913  # one argument for each input of a rule
    expert_TK: Tensor,
    valid_TK: Tensor,
    count_TK: Tensor,
    source: TokenSource,
    tables: PlacementTables,
    layer: int,
    quota_REX: Tensor,
) -> Tensor:
    """[T, K] index of the replica of each selection, under the rules that number an expert's replicas."""
    match tables.rule:
        case DispatchRule.EVEN:
            hash_TK = selection_hash(source, expert_TK.shape[1], tables.epoch_L[layer])
            return (hash_TK * count_TK) >> 32
        case DispatchRule.WEIGHTED:
            hash_TK = selection_hash(source, expert_TK.shape[1], tables.epoch_L[layer])
            return (hash_TK[..., None] >= tables.weight_bound_LEX[layer][expert_TK]).sum(dim=2)
        case DispatchRule.SGLANG_BY_ROW:
            return source.index_T[:, None] % count_TK
        case DispatchRule.VLLM:
            return ((source.index_T * VLLM_MULTIPLIER) & _MASK)[:, None] % count_TK
        case DispatchRule.TRTLLM:
            return _round_robin(expert_TK, valid_TK, source, tables.num_experts) % count_TK
        case DispatchRule.ONLINE:
            arrival_TK = arrival(expert_TK, valid_TK, source.rank_T, tables.num_experts)
            bound_TKX = quota_REX.cumsum(dim=2)[source.rank_T[:, None], expert_TK]
            return (arrival_TK[..., None] >= bound_TKX).sum(dim=2).clamp(max=quota_REX.shape[2] - 1)
        case _:
            raise InputError(f"replica rule {tables.rule}: its slots are fixed by rank")


def selection_hash(source: TokenSource, top_k: int, epoch: Tensor) -> Tensor:
    """[T, K] int64 in [0, 2**32): a hash of token index, k, source rank and epoch (murmur3's finaliser)."""
    k_K = torch.arange(top_k, device=source.index_T.device)
    seed_T = source.index_T * 0x9E3779B1 + source.rank_T * 0x85EBCA77 + epoch * 0xC2B2AE3D
    hash_TK = (_mixed(seed_T & _MASK)[:, None] + k_K * 0x27D4EB2F) & _MASK
    return _mixed(hash_TK)


def _mixed(x: Tensor) -> Tensor:
    """Murmur3's finaliser over 32-bit numbers in int64; products may wrap, their low 32 bits are exact."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)


def arrival(expert_TK: Tensor, valid_TK: Tensor, group_T: Tensor, num_experts: int) -> Tensor:
    """[T, K] number of earlier selections (by token, then k) of the same group with the same expert."""
    key = torch.where(valid_TK, group_T[:, None] * num_experts + expert_TK, -1).reshape(-1)
    order = key.argsort(stable=True)
    position = torch.empty_like(key)
    position[order] = position_in_run(key[order])
    return position.reshape(expert_TK.shape)


def position_in_run(sorted_N: Tensor) -> Tensor:
    """[N] int64 number of earlier entries with the same value, in a sorted tensor."""
    return torch.arange(sorted_N.numel(), device=sorted_N.device) - torch.searchsorted(sorted_N, sorted_N)


def _round_robin(expert_TK: Tensor, valid_TK: Tensor, source: TokenSource, num_experts: int) -> Tensor:
    """[T, K] position within the block of the rank's kernel, plus the block's number, plus the rank."""
    top_k = expert_TK.shape[1]
    position_TK = source.index_T[:, None] * top_k + torch.arange(top_k, device=expert_TK.device)
    block_TK = position_TK // _TRTLLM_BLOCK
    num_blocks = expert_TK.numel() // _TRTLLM_BLOCK + 2
    # A block may end inside a token, so each selection counts as a token with one choice.
    group = (source.rank_T[:, None] * num_blocks + block_TK).reshape(-1)
    place = arrival(expert_TK.reshape(-1, 1), valid_TK.reshape(-1, 1), group, num_experts)
    return place.reshape(expert_TK.shape) + block_TK + source.rank_T[:, None]


def _slot_by_place(expert_TK: Tensor, source: TokenSource, tables: PlacementTables, layer: int) -> Tensor:
    """[T, K] the first replica on the token's rank, otherwise the rule's choice among those near it or all.

    `local_first`: by hash among the replicas on the token's node, if there are any, otherwise among all.
    `sglang_dynamic`: the first replica on the token's node, if there are others elsewhere, otherwise by hash among all.
    """
    slot_TKX = tables.log2phy_LEX[layer][expert_TK]
    exists_TKX = slot_TKX >= 0
    rank_TKX = tables.rank_of_slot_P[slot_TKX.clamp(min=0)]
    rank_T11 = source.rank_T[:, None, None]
    on_rank_TKX = exists_TKX & (rank_TKX == rank_T11)
    on_node_TKX = exists_TKX & (tables.node_of_rank_R[rank_TKX] == tables.node_of_rank_R[rank_T11])
    takes_first_TK = on_rank_TKX.any(dim=2)
    if tables.rule is DispatchRule.SGLANG_DYNAMIC:
        on_node_TKX = on_node_TKX & (exists_TKX & ~on_node_TKX).any(dim=2, keepdim=True)
        takes_first_TK = takes_first_TK | on_node_TKX.any(dim=2)
    near_TKX = torch.where(on_node_TKX.any(dim=2, keepdim=True), on_node_TKX, exists_TKX)
    hash_TK = selection_hash(source, expert_TK.shape[1], tables.epoch_L[layer])
    wanted_TK = torch.where(takes_first_TK, 0, (hash_TK * near_TKX.sum(dim=2)) >> 32)
    candidate_TKX = torch.where(on_rank_TKX.any(dim=2, keepdim=True), on_rank_TKX, near_TKX)
    # The candidate number `wanted` is the first whose running count exceeds `wanted`.
    replica_TK = ((candidate_TKX.cumsum(dim=2) > wanted_TK[..., None]).to(torch.int8)).argmax(dim=2)
    return slot_TKX.gather(2, replica_TK[..., None])[..., 0]


def no_quotas(device: torch.device | str) -> Tensor:
    """[0, 0, 0]: quotas for rules other than `online`."""
    return torch.empty((0, 0, 0), dtype=torch.int64, device=device)


def online_quotas(counts_RE: Tensor, tables: PlacementTables, layer: int) -> Tensor:
    """[R, E, X] tokens that each source rank sends to each replica, balancing the ranks of this batch.

    Parameters
    ----------
    counts_RE
        [R, E] selections of this batch by source rank and logical expert, the same on every rank. Equal counts give an
        equal split on all ranks without further communication.
    tables
        The maps in force.
    layer
        The layer.
    """
    counts = counts_RE.cpu().numpy()
    log2phy = tables.log2phy_LEX[layer].cpu().numpy()
    rank_of_slot = tables.topology.rank_of_slot
    split = split_counts(counts.sum(axis=0), log2phy.astype(np.int32), rank_of_slot)
    quota = torch.zeros((*counts.shape, log2phy.shape[1]), dtype=torch.int64)
    quota[:, :, 0] = torch.from_numpy(counts)
    for expert in np.flatnonzero((log2phy >= 0).sum(axis=1) > 1):
        slots = log2phy[expert][log2phy[expert] >= 0]
        here = source_quotas(split[expert, : slots.size], counts[:, expert], rank_of_slot[slots])
        quota[:, expert, : slots.size] = torch.from_numpy(here)
    return quota.to(counts_RE.device)
