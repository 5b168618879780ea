"""Computes the best split of every expert's tokens over the replicas of a given placement.

A runtime that uses one split for the whole plan takes `weighted_placement`; one that splits every batch by its own
counts reaches `online_busiest`.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from eplb.core.arrays import Floats
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.placement import Placement
from eplb_traces import ExpertLoad, ModelShape


@final
@dataclass(frozen=True, eq=False)
class BestSplit:
    """The split of one load per layer that leaves the busiest rank with least."""

    busiest: Floats
    """[L] tokens on the busiest rank over its relative speed: the exact optimum for the placement."""
    slot_load: Floats
    """[L, P] tokens of each slot."""


def best_split(placement: Placement, tokens: Floats) -> BestSplit:
    """Minimise each layer's busiest rank over all splits of its experts' tokens over their replicas.

    Parameters
    ----------
    placement
        Where the experts live; duplicates and empty slots are allowed.
    tokens
        [L, E]

    Raises
    ------
    InputError
        If the tokens are not of the placement's model.

    Notes
    -----
    The optimum is the densest set of ranks (MicroMoE, equation 3); see `optimal_shares_kernel`. Exact, deterministic;
    tens of microseconds a layer at 256 experts on 32 ranks.
    """
    from eplb.dispatch.optimal_shares_kernel import split_layers

    placement.check_model(ModelShape(*tokens.shape))
    topology = placement.topology
    busiest, slot_load = np.empty(placement.num_layers), np.empty(placement.physical_to_logical_map.shape)
    first_slot, speed = np.array(topology.rank_first_slot), np.array(topology.relative_speed)

    def work(layers: slice) -> None:
        split_layers(
            tokens[layers],
            placement.physical_to_logical_map[layers],
            first_slot,
            speed,
            busiest[layers],
            slot_load[layers],
        )

    for_layer_chunks(work, placement.num_layers)
    return BestSplit(busiest, slot_load)


def weighted_placement(placement: Placement, load: ExpertLoad) -> Placement:
    """The same placement with the replica weights that minimise the busiest rank for the planned load.

    Parameters
    ----------
    placement
        Where the experts live; existing weights are replaced.
    load
        The load planned for, summed over windows. An expert without load is split evenly.

    Returns
    -------
    Placement
        With `replica_weights` [L, P], starting from the even split and changed only as far as needed.

    Raises
    ------
    InputError
        If the load is not of the placement's model.
    """
    tokens = load.total
    split = best_split(placement, tokens)
    expert_of_slot = np.maximum(placement.physical_to_logical_map, 0)
    of_expert = np.take_along_axis(tokens, expert_of_slot, axis=1)
    even = 1.0 / np.take_along_axis(placement.logical_replica_count, expert_of_slot, axis=1)
    shares = np.where(of_expert > 0, split.slot_load / np.where(of_expert > 0, of_expert, 1.0), even)
    shares[placement.physical_to_logical_map < 0] = 0.0
    return Placement(
        placement.physical_to_logical_map, placement.num_experts, placement.topology, np.clip(shares, 0.0, 1.0)
    )


def online_busiest(placement: Placement, load: ExpertLoad) -> Floats:
    """[W, L] busiest rank of a runtime that splits every window by its own counts: the exact optimum of each window.

    In tokens over relative speed.

    Raises
    ------
    InputError
        If the load is not of the placement's model.
    """
    from eplb.dispatch.optimal_shares_kernel import busiest_by_window

    placement.check_model(load.shape)
    topology = placement.topology
    by_layer = np.empty((load.num_layers, load.num_windows))
    first_slot, speed = np.array(topology.rank_first_slot), np.array(topology.relative_speed)

    def work(layers: slice) -> None:
        for layer in range(layers.start, layers.stop):
            row = placement.physical_to_logical_map[layer]
            busiest_by_window(load.tokens[:, layer], row, first_slot, speed, by_layer[layer])

    for_layer_chunks(work, load.num_layers)
    return np.ascontiguousarray(by_layer.T)
