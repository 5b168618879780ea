"""Computes the best split of every expert's tokens over the replicas of a given placement.

A runtime that uses one split for the whole plan takes `weighted_placement`; one that splits every batch by its own
counts reaches `online_busiest`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from eplb.core.arrays import Floats
from eplb.core.dispatch_rule import DispatchRule
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
    busiest, slot_load = _split_windows(placement, tokens[None])
    return BestSplit(busiest[0], slot_load)


def placement_under(rule: DispatchRule, placement: Placement, load: ExpertLoad) -> Placement:
    """The placement; under "weighted" dispatch with the shares that are best for a load, see `weighted_placement`."""
    return weighted_placement(placement, load) if rule is DispatchRule.WEIGHTED else placement


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
    return _split_windows(placement, load.tokens)[0]


def _split_windows(placement: Placement, tokens: Floats) -> tuple[Floats, Floats]:
    """[W, L] optimum of each window of tokens [W, L, E]; [L, P] tokens of each slot in the last window."""
    from eplb.dispatch.optimal_shares_kernel import split_windows

    num_windows, num_layers, num_experts = tokens.shape
    placement.check_model(ModelShape(num_layers, num_experts))
    topology, phy2log = placement.topology, placement.physical_to_logical_map
    busiest, slot_load = np.empty((num_windows, num_layers)), np.empty(phy2log.shape)

    def work(layers: slice) -> None:
        split_windows(
            tokens[:, layers], phy2log[layers], topology.rank_first_slot, topology.rank_of_slot,
            topology.relative_speed, busiest[:, layers], slot_load[layers],
        )  # fmt: skip

    for_layer_chunks(work, num_layers)
    return busiest, slot_load


def busiest_of_layout(tokens: Floats, layout: Sequence[Sequence[int]], speed: Sequence[float]) -> float:
    """Least load over speed of the busiest rank, for one layer's tokens [E] and the experts that each rank holds."""
    from eplb.dispatch.optimal_shares_kernel import split_windows

    sizes = np.array([len(held) for held in layout])
    row = np.array([[expert for held in layout for expert in held]], dtype=np.int32)
    busiest, rank_of_slot = np.empty((1, 1)), np.repeat(np.arange(sizes.size), sizes)
    first_slot = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    split_windows(tokens[None, None], row, first_slot, rank_of_slot, np.array(speed), busiest, np.empty(row.shape))
    return float(busiest[0, 0])
