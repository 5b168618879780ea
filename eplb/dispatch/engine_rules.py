"""Computes the expected load of every slot under the dispatch rule of each engine.

The runtime executes the same rules token by token (`eplb.runtime.layer.replica_choice`). The expectation is used to
evaluate a map under the rule of the engine that will run it.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb.core.dispatch_rule import EVEN_RULES, FIXED_SLOT_RULES, DispatchRule, slot_shares
from eplb.core.placement import Placement
from eplb.dispatch.batch_split import split_counts
from eplb.dispatch.sglang_static import nearest_slots, static_slot_map
from eplb.errors import InputError
from eplb_traces import ModelShape


def expected_slot_shares(
    placement: Placement, rule: DispatchRule, sources: ArrayLike | None = None, shape: ModelShape | None = None
) -> NDArray[np.float64]:
    """Share of its expert's tokens that every slot receives, in expectation over the hash where the rule has one.

    Parameters
    ----------
    placement, rule
        The placement and the rule; any rule but `online`, whose shares depend on the batch.
    sources
        [R] share of the tokens that each rank sends; None: every rank sends the same.
    shape
        The model, for `sglang_static`: see `rank_slot_map`.

    Returns
    -------
    NDArray
        [L, P]; the slots of an expert sum to 1, empty slots have 0.

    Raises
    ------
    InputError
        If `sources` is not one share a rank, summing to 1, or the rule has no shares for this placement.
    """
    num_ranks = placement.topology.num_ranks
    weights = np.full(num_ranks, 1 / num_ranks) if sources is None else np.asarray(sources, dtype=np.float64)
    if weights.shape != (num_ranks,) or not (weights >= 0).all() or not abs(weights.sum() - 1) <= 1e-6:
        raise InputError(f"sources = {weights}: expected one share >= 0 for each of {num_ranks} ranks, summing to 1")
    if rule in EVEN_RULES or rule is DispatchRule.WEIGHTED:
        return slot_shares(placement, rule)
    if rule is DispatchRule.ONLINE:
        raise InputError(f"dispatch = {rule}: its shares depend on the batch")
    shares = np.zeros((placement.num_layers, placement.num_slots))
    if rule in FIXED_SLOT_RULES:
        for layer, slots in enumerate(rank_slot_map(placement, rule, shape)):
            np.add.at(shares[layer], slots, weights[:, None])
        return shares
    for layer in range(placement.num_layers):
        _add_shares(shares[layer], placement, layer, np.repeat(weights[:, None], placement.num_experts, axis=1), rule)
    return shares


def expected_slot_load(
    placement: Placement,
    layer: int,
    source_tokens: ArrayLike,
    rule: DispatchRule,
    shape: ModelShape | None = None,
) -> NDArray[np.float64]:
    """Load of every slot of a layer, in expectation over the hash where the rule has one.

    Parameters
    ----------
    placement
        Where the experts live.
    layer
        The layer.
    source_tokens
        [R, E] tokens that each rank sends to each logical expert.
    rule
        The rule of the engine.
    shape
        The model, for `sglang_static`: see `rank_slot_map`.

    Returns
    -------
    NDArray
        [P] tokens; the sum is that of `source_tokens`.

    Raises
    ------
    InputError
        If the counts do not fit the placement, or the placement lacks the weights that the rule needs.
    """
    topology = placement.topology
    tokens = np.asarray(source_tokens, dtype=np.float64)
    if tokens.shape != (topology.num_ranks, placement.num_experts):
        raise InputError(
            f"source_tokens has shape {tokens.shape}: expected {(topology.num_ranks, placement.num_experts)}"
        )
    phy2log = placement.physical_to_logical_map[layer]
    if rule in EVEN_RULES or rule is DispatchRule.WEIGHTED:
        return tokens.sum(axis=0)[np.maximum(phy2log, 0)] * slot_shares(placement, rule)[layer]
    slot_load = np.zeros(placement.num_slots)
    log2phy = placement.logical_to_physical_map[layer]
    if rule is DispatchRule.ONLINE:
        split = split_counts(tokens.sum(axis=0).round().astype(np.int64), log2phy, topology.rank_of_slot)
        slot_load[log2phy[log2phy >= 0]] = split[log2phy >= 0]
    elif rule in FIXED_SLOT_RULES:
        np.add.at(slot_load, rank_slot_map(placement, rule, shape)[layer], tokens)
    else:
        _add_shares(slot_load, placement, layer, tokens, rule)
    return slot_load


def expected_rank_load(
    placement: Placement,
    layer: int,
    load: ArrayLike,
    rule: DispatchRule,
    source_tokens: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Load of every rank of a layer.

    Parameters
    ----------
    placement, layer, rule
        As for `expected_slot_load`.
    load
        [E] tokens of each logical expert.
    source_tokens
        [R, E] the same tokens by source rank; None: every rank holds the same share of each expert's tokens.

    Returns
    -------
    NDArray
        [R] tokens.

    Raises
    ------
    InputError
        As `expected_slot_load`, and if `source_tokens` do not sum to `load`.
    """
    num_ranks = placement.topology.num_ranks
    tokens = np.asarray(load, dtype=np.float64)
    if source_tokens is None:
        by_source = np.broadcast_to(tokens / num_ranks, (num_ranks, *tokens.shape))
    else:
        by_source = np.asarray(source_tokens, dtype=np.float64)
        if by_source.ndim != 2 or by_source.sum(axis=0).shape != tokens.shape:
            raise InputError(f"source_tokens has shape {by_source.shape}: expected [ranks, {tokens.size} experts]")
        if not np.allclose(by_source.sum(axis=0), tokens):
            expert = int(np.argmax(np.abs(by_source.sum(axis=0) - tokens)))
            raise InputError(
                f"source_tokens of expert {expert} sum to {by_source[:, expert].sum()}: "
                f"expected its load {tokens[expert]}"
            )
    slot_load = expected_slot_load(placement, layer, by_source, rule)
    rank_load = np.zeros(num_ranks)
    np.add.at(rank_load, placement.topology.rank_of_slot, slot_load)
    return rank_load


def rank_slot_map(placement: Placement, rule: DispatchRule, shape: ModelShape | None = None) -> NDArray[np.int32]:
    """The one slot to which each rank sends each expert's tokens, under `ascend` or `sglang_static`.

    Parameters
    ----------
    placement
        The whole placement: under `sglang_static` a layer's draws depend on the layers before it.
    rule
        The rule.
    shape
        The model, for `sglang_static`: with the ids of the MoE layers and the number of all layers, the draws are those
        of a server whose expert location file has rows for dense layers; otherwise of one without dense layers.

    Returns
    -------
    NDArray
        [L, R, E] slots.

    Raises
    ------
    InputError
        For a rule that does not fix the slot by rank and expert.
    """
    if rule is DispatchRule.SGLANG_STATIC:
        return static_slot_map(placement, shape)
    if rule is not DispatchRule.ASCEND:
        raise InputError(f"{rule}: the slot is not fixed by rank and expert")
    ranks = np.arange(placement.topology.num_ranks)[None, :, None]
    replica = ranks % placement.logical_replica_count[:, None, :]
    return np.take_along_axis(placement.logical_to_physical_map[:, None], replica[..., None], axis=3)[..., 0]


def _add_shares(
    slot_load: NDArray[np.float64],
    placement: Placement,
    layer: int,
    tokens: NDArray[np.float64],
    rule: DispatchRule,
) -> None:
    """Add [R, E] tokens to the [P] slots to which `local_first` or `sglang_dynamic` sends them, in expectation."""
    log2phy = placement.logical_to_physical_map[layer]
    candidates = _candidates(placement, layer, rule)
    share = candidates / candidates.sum(axis=2, keepdims=True)
    np.add.at(slot_load, log2phy, np.einsum("re,rex->ex", tokens, share) * (log2phy >= 0))


def _candidates(placement: Placement, layer: int, rule: DispatchRule) -> NDArray[np.bool_]:
    """[R, E, X] the replicas among which a rank's tokens of an expert are split evenly."""
    log2phy = placement.logical_to_physical_map[layer]
    exists = log2phy >= 0
    if rule is DispatchRule.SGLANG_DYNAMIC:
        nearest = nearest_slots(placement, layer)[..., None]
        return exists & ((nearest < 0) | (log2phy == nearest))
    topology = placement.topology
    slot_rank = topology.rank_of_slot[log2phy]
    ranks = np.arange(topology.num_ranks)[:, None, None]
    on_rank = exists & (slot_rank == ranks)
    on_node = exists & (topology.node_of_rank[slot_rank] == topology.node_of_rank[ranks])
    first_local = on_rank & (np.cumsum(on_rank, axis=2) == 1)
    near = np.where(on_node.any(axis=2, keepdims=True), on_node, exists)
    return np.where(on_rank.any(axis=2, keepdims=True), first_local, near)
