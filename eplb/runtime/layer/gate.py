"""Gates: the router functions that choose the experts of each token.

Letters: T tokens, E logical experts, G expert groups, K choices, H hidden, V token ids, R ranks, P slots.

    scores_TE --bias--> choose --> expert_ids_TK          choices use biased scores, ties to the lowest id;
    scores_TE ----------gather---> weight_TK              weights use unbiased scores
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor

from eplb.errors import InputError
from eplb.runtime.layer.placement_tables import PlacementTables


class GateChoice(NamedTuple):
    """The experts and weights that a router chose."""

    expert_ids_TK: Tensor
    """[T, K] int64 logical experts, distinct within a token; -1 if a limit leaves fewer than K."""
    weight_TK: Tensor
    """[T, K] float32."""


class Gate(Protocol):
    """A router."""

    def __call__(self, x_TH: Tensor, token_ids_T: Tensor) -> GateChoice:
        """Choose experts by hidden states or token ids."""
        ...


@final
@dataclass(frozen=True)
class GroupLimit:
    """Group-limited choice: experts come from the best `top_k_groups` of `num_groups` contiguous groups."""

    num_groups: int = 1
    top_k_groups: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.top_k_groups <= self.num_groups:
            raise InputError(f"top_k_groups = {self.top_k_groups}: expected 1 to num_groups = {self.num_groups}")


@final
@dataclass(frozen=True)
class SoftmaxGate:
    """Top-k of a softmax, as Mixtral (normalised) and Qwen-MoE route.

    Raises
    ------
    InputError
        If the router has fewer than K experts.
    """

    router_EH: Tensor
    top_k: int
    normalise: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.router_EH.shape[0]:
            raise InputError(f"top_k = {self.top_k}: expected 1 to {self.router_EH.shape[0]}, the router's experts")

    def __call__(self, x_TH: Tensor, token_ids_T: Tensor) -> GateChoice:  # routes by hidden state
        """Choose the K most probable experts."""
        return softmax_top_k(x_TH.float() @ self.router_EH.float().T, self.top_k, normalise=self.normalise)


@final
@dataclass(frozen=True)
class SigmoidGroupGate:
    """Sigmoid scores, selection bias and group limit, as DeepSeek-V3 routes."""

    router_EH: Tensor
    bias_E: Tensor
    top_k: int
    limit: GroupLimit
    scale: float = 1.0

    def __call__(self, x_TH: Tensor, token_ids_T: Tensor) -> GateChoice:  # routes by hidden state
        """Choose by biased scores within the best groups."""
        logits_TE = x_TH.float() @ self.router_EH.float().T
        return sigmoid_group_top_k(logits_TE, self.bias_E, self.top_k, self.limit, scale=self.scale)


@final
@dataclass(frozen=True)
class HashGate:
    """A fixed choice for each token id, with weights from the router, as in DeepSeek-V4's first layers."""

    router_EH: Tensor
    table_VK: Tensor
    scale: float = 1.0

    def __call__(self, x_TH: Tensor, token_ids_T: Tensor) -> GateChoice:
        """Look up the experts and weight them by their scores."""
        scores_TE = (x_TH.float() @ self.router_EH.float().T).sigmoid()
        expert_ids_TK = self.table_VK[token_ids_T]
        return GateChoice(expert_ids_TK, _normalised(scores_TE.gather(1, expert_ids_TK)) * self.scale)


def softmax_top_k(logits_TE: Tensor, top_k: int, *, normalise: bool) -> GateChoice:
    """The K largest probabilities; `normalise` divides them by their sum."""
    scores_TE = logits_TE.float().softmax(dim=1)
    expert_ids_TK = best(scores_TE, top_k)
    weight_TK = scores_TE.gather(1, expert_ids_TK)
    return GateChoice(expert_ids_TK, _normalised(weight_TK) if normalise else weight_TK)


def sigmoid_group_top_k(
    logits_TE: Tensor, bias_E: Tensor, top_k: int, limit: GroupLimit, *, scale: float = 1.0
) -> GateChoice:
    """DeepSeek-V3's choice (technical report, section 2.1.2).

    A group's score is the sum of its two best biased scores; the top-k is taken within the best groups. Weights are
    the unbiased scores of the chosen experts over their sum, times `scale`.

    Raises
    ------
    InputError
        If the groups do not divide the experts, or the chosen groups hold fewer than K experts.
    """
    group_size = check_groups(logits_TE.shape[1], top_k, limit)
    scores_TE = logits_TE.float().sigmoid()
    biased_TE = scores_TE + bias_E
    if limit.top_k_groups < limit.num_groups:
        grouped_TGE = biased_TE.view(-1, limit.num_groups, group_size)
        group_score_TG = grouped_TGE.topk(min(2, group_size), dim=2).values.sum(dim=2)
        open_TG = torch.zeros_like(group_score_TG, dtype=torch.bool)
        open_TG.scatter_(1, best(group_score_TG, limit.top_k_groups), True)
        biased_TE = biased_TE.masked_fill(~open_TG.repeat_interleave(group_size, dim=1), -torch.inf)
    expert_ids_TK = best(biased_TE, top_k)
    return GateChoice(expert_ids_TK, _normalised(scores_TE.gather(1, expert_ids_TK)) * scale)


def check_groups(num_experts: int, top_k: int, limit: GroupLimit) -> int:
    """Experts of a group.

    Raises
    ------
    InputError
        If the groups do not divide the experts, or the chosen groups hold fewer than K experts.
    """
    group_size = num_experts // limit.num_groups
    if num_experts % limit.num_groups or group_size * limit.top_k_groups < top_k:
        raise InputError(
            f"{limit.top_k_groups} of {limit.num_groups} groups of {num_experts} experts: expected equal groups with "
            f"at least top_k = {top_k} experts together"
        )
    return group_size


def hash_table(vocabulary: int, *, num_experts: int, top_k: int, seed: int = 0) -> Tensor:
    """[V, K] int64 distinct experts for each token id; the same seed gives the same table on every machine.

    In each run of E token ids every expert appears exactly K times: id v, choice k takes entry (v + offset[k]) mod E of
    a random permutation of the experts.
    """
    if not 1 <= top_k <= num_experts:
        raise InputError(f"top_k = {top_k}: expected 1 to num_experts = {num_experts}")
    generator = torch.Generator().manual_seed(seed)
    circle_E = torch.randperm(num_experts, generator=generator)
    offset_K = torch.randperm(num_experts, generator=generator)[:top_k]
    place_VK = torch.arange(vocabulary)[:, None] + offset_K
    return circle_E[place_VK % num_experts]


def rank_limited_top_k(
    scores_TE: Tensor, tables: PlacementTables, layer: int, *, top_k: int, max_ranks: int
) -> tuple[GateChoice, Tensor]:
    """Device-limited routing (DeepSeek-V2, section 2.2.2): the experts of a token are on at most `max_ranks` ranks.

    First the ranks with the best-scored experts are chosen, ties to the lowest rank, then the top-k of the experts on
    these ranks. With replicas the limit holds only for the replicas on the chosen ranks, so their slots are returned
    and must be used.

    Parameters
    ----------
    scores_TE
        [T, E] float32 scores >= 0.
    tables, layer
        The placement of the experts.
    top_k, max_ranks
        K, and the largest number of ranks per token.

    Returns
    -------
    tuple
        The choice, its weights normalised, and [T, K] slots. Both are -1 if the ranks hold fewer than K experts.

    Raises
    ------
    InputError
        If `max_ranks` is not from 1 to R.
    """
    num_ranks = tables.topology.num_ranks
    if not 1 <= max_ranks <= num_ranks:
        raise InputError(f"max_ranks = {max_ranks}: expected 1 to {num_ranks}")
    expert_P, rank_P = tables.phy2log_LP[layer], tables.rank_of_slot_P
    score_TP = scores_TE[:, expert_P.clamp(min=0)].masked_fill(expert_P < 0, -torch.inf)
    score_TR = torch.full((scores_TE.shape[0], num_ranks), -torch.inf, device=scores_TE.device)
    score_TR = score_TR.scatter_reduce(1, rank_P.expand_as(score_TP), score_TP, "amax")
    place_TR = best(score_TR, num_ranks).argsort(dim=1)  # 0 for the best rank
    place_TP = place_TR[:, rank_P].masked_fill(expert_P < 0, num_ranks)
    # For each expert: the first slot of its replica on the best rank.
    key_TP = place_TP * tables.topology.num_slots + torch.arange(expert_P.numel(), device=expert_P.device)
    worst = (num_ranks + 1) * tables.topology.num_slots
    key_TE = torch.full(scores_TE.shape, worst, dtype=torch.int64, device=scores_TE.device)
    key_TE = key_TE.scatter_reduce(1, expert_P.clamp(min=0).expand_as(key_TP), key_TP, "amin")
    open_TE = key_TE < max_ranks * tables.topology.num_slots
    expert_TK = best(scores_TE.masked_fill(~open_TE, -torch.inf), top_k)
    chosen_TK = open_TE.gather(1, expert_TK)
    slot_TK = torch.where(chosen_TK, key_TE.gather(1, expert_TK) % tables.topology.num_slots, -1)
    weight_TK = _normalised(torch.where(chosen_TK, scores_TE.gather(1, expert_TK), 0))
    return GateChoice(torch.where(chosen_TK, expert_TK, -1), weight_TK), slot_TK


def best(scores_TE: Tensor, count: int) -> Tensor:
    """[T, count] int64 positions of the largest scores in descending order; ties to the lowest position."""
    return scores_TE.sort(dim=1, descending=True, stable=True).indices[:, :count]


def _normalised(weight_TK: Tensor) -> Tensor:
    return weight_TK / weight_TK.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
