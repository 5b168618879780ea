"""Computes on how many ranks and nodes the experts of one token are under a placement.

Dispatch sends a token's activations once to every rank (between nodes: every node) that holds a chosen replica, so
these two numbers are the transfers per token and layer, in activations. The token's own rank counts like any other.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb.core.layer_threads import for_layer_chunks
from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.errors import InputError
from eplb_traces import RoutingTrace


@final
@dataclass(frozen=True, eq=False)
class TokenSpread:
    """Distinct ranks and nodes of a token's choices, mean over the tokens of a trace."""

    ranks_per_token: NDArray[np.float64]
    """[L] 1 to min(top-k, ranks)."""
    nodes_per_token: NDArray[np.float64]
    """[L] 1 to min(top-k, nodes)."""


def token_spread(placement: Placement, trace: RoutingTrace) -> TokenSpread:
    """Count, for every token and layer, the ranks and nodes that hold its chosen replicas.

    Under even dispatch each choice of an expert with c replicas falls on each replica with probability 1 / c,
    independently of the token's other choices. So the mean is exact where experts have one replica and an expectation
    elsewhere. A runtime that prefers replicas on ranks that a token visits anyway needs fewer.

    Parameters
    ----------
    placement
        Where the experts live.
    trace
        The experts of each token; read once.

    Raises
    ------
    InputError
        If placement and trace are of different models, or the trace has no tokens.
    """
    from eplb.evaluation.token_spread_kernel import add_expected_places

    shape = trace.shape
    placement.check_model(shape, "trace")
    topology, num_tokens = placement.topology, 0
    ranks, nodes = np.zeros(shape.num_layers), np.zeros(shape.num_layers)
    node_of_slot = topology.node_of_rank[topology.rank_of_slot]
    by_unit = (
        (_holders(placement, topology.rank_of_slot), topology.num_ranks, ranks),
        (_holders(placement, node_of_slot), topology.num_nodes, nodes),
    )
    for batch in trace:
        num_tokens += batch.num_tokens

        def work(layers: slice, expert_ids: NDArray[np.uint16] = batch.expert_ids) -> None:
            for holders, num_units, expected in by_unit:
                add_expected_places(expert_ids, layers.start, layers.stop, *holders, num_units, expected)

        for_layer_chunks(work, shape.num_layers)
    if num_tokens == 0:
        raise InputError("the trace has no tokens")
    return TokenSpread(ranks / num_tokens, nodes / num_tokens)


def _holders(
    placement: Placement, unit_of_slot: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """``(first [L, E + 1], unit [L, P], share [L, P])``: expert e's units are the entries first[e] to first[e + 1].

    An expert with several replicas on one unit has one entry with their joint share.
    """
    num_experts, num_units = placement.num_experts, int(unit_of_slot.max()) + 1
    first = np.zeros((placement.num_layers, num_experts + 1), np.int64)
    unit = np.zeros((placement.num_layers, placement.num_slots), np.int64)
    share = np.zeros((placement.num_layers, placement.num_slots))
    for layer, row in enumerate(placement.physical_to_logical_map):
        held = row != EMPTY_SLOT
        keys = row[held].astype(np.int64) * num_units + unit_of_slot[held]
        pairs, num_replicas = np.unique(keys, return_counts=True)
        expert, unit[layer, : pairs.size] = np.divmod(pairs, num_units)
        share[layer, : pairs.size] = num_replicas / placement.logical_replica_count[layer, expert]
        np.cumsum(np.bincount(expert, minlength=num_experts), out=first[layer, 1:])
    return first, unit, share
