"""Computes the expected load of every slot under the dispatch rule of each engine.

The runtime executes the same rules token by token (`eplb.runtime.layer.replica_choice`). The expectation is used to
evaluate a map under the rule of the engine that will run it.
"""

import random

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb.core.dispatch_rule import EVEN_RULES, DispatchRule, slot_shares
from eplb.core.placement import Placement
from eplb.dispatch.batch_split import split_counts
from eplb.errors import InputError

_SGLANG_SEED = 42


def expected_slot_load(
    placement: Placement, layer: int, source_tokens: ArrayLike, rule: DispatchRule
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
    elif rule is DispatchRule.LOCAL_FIRST:
        share = _local_first_shares(placement, layer)
        np.add.at(slot_load, log2phy, np.einsum("re,rex->ex", tokens, share) * (log2phy >= 0))
    else:
        np.add.at(slot_load, rank_slot_map(placement, layer, rule), tokens)
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


def rank_slot_map(
    placement: Placement, layer: int, rule: DispatchRule, *, seed_layer: int | None = None
) -> NDArray[np.int32]:
    """The one slot to which each rank sends each expert's tokens, under `ascend` or `sglang_static`.

    SGLang draws once for the whole model from one generator; here each layer has its own, seeded by its number, so
    that a layer can be published alone. Shares are SGLang's, single draws need not be.

    Parameters
    ----------
    placement, layer, rule
        The layer of the placement, and the rule.
    seed_layer
        The layer's number in the model where `placement` holds only a part of it; None: `layer`.

    Returns
    -------
    NDArray
        [R, E] slots.

    Raises
    ------
    InputError
        For a rule that does not fix the slot by rank and expert.
    """
    log2phy = placement.logical_to_physical_map[layer]
    count = placement.logical_replica_count[layer]
    ranks = np.arange(placement.topology.num_ranks)
    slots = log2phy[np.arange(placement.num_experts), ranks[:, None] % count]
    if rule is DispatchRule.ASCEND:
        return slots
    if rule is not DispatchRule.SGLANG_STATIC:
        raise InputError(f"{rule}: the slot is not fixed by rank and expert")
    draw = random.Random(f"{_SGLANG_SEED}/{layer if seed_layer is None else seed_layer}")
    for expert in np.flatnonzero(count > 1):
        candidates = log2phy[expert, : count[expert]]
        nearest = _nearest(placement, candidates)
        far = np.flatnonzero(nearest < 0)
        nearest[far] = _fair_draw(candidates.tolist(), far.size, draw)
        slots[:, expert] = nearest
    return slots


def _nearest(placement: Placement, candidates: NDArray[np.int32]) -> NDArray[np.int32]:
    """[R] first candidate on each rank, else first on its node if the expert has others elsewhere, else -1."""
    topology = placement.topology
    slot_rank = topology.rank_of_slot[candidates]
    on_rank = slot_rank == np.arange(topology.num_ranks)[:, None]
    on_node = topology.node_of_rank[slot_rank] == topology.node_of_rank[:, None]
    on_node &= ~on_node.all(axis=1, keepdims=True)
    nearest = np.where(on_node.any(axis=1), candidates[on_node.argmax(axis=1)], -1)
    return np.where(on_rank.any(axis=1), candidates[on_rank.argmax(axis=1)], nearest)


def _fair_draw(candidates: list[int], num_draws: int, draw: random.Random) -> list[int]:
    """Draws in random order in which the numbers of any two candidates differ by at most one."""
    rounds, rest = divmod(num_draws, len(candidates))
    drawn = [*candidates * rounds, *draw.sample(candidates, rest)]
    draw.shuffle(drawn)
    return drawn


def _local_first_shares(placement: Placement, layer: int) -> NDArray[np.float64]:
    """[R, E, X] share of each rank's tokens of an expert that each replica gets under `local_first`."""
    topology = placement.topology
    log2phy = placement.logical_to_physical_map[layer]
    exists = log2phy >= 0
    slot_rank = topology.rank_of_slot[log2phy]
    ranks = np.arange(topology.num_ranks)[:, None, None]
    on_rank = exists & (slot_rank == ranks)
    on_node = exists & (topology.node_of_rank[slot_rank] == topology.node_of_rank[ranks])
    first_local = on_rank & (np.cumsum(on_rank, axis=2) == 1)
    near = np.where(on_node.any(axis=2, keepdims=True), on_node, exists)
    candidates = np.where(on_rank.any(axis=2, keepdims=True), first_local, near)
    return candidates / candidates.sum(axis=2, keepdims=True)
