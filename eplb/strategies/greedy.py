"""Greedy counts, largest first, then descent on the busiest rank: our default for one load vector.

Copies go to the expert with the most load a copy, at most one a rank. They are packed by descending load, never twice
on a rank. Then experts of the busiest rank are exchanged, one or two at a time, until it is within `tolerance` of the
lower bound. Milliseconds for a model, and nearly always at the bound.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from eplb.errors import InfeasibleError
from eplb.layer_threads import for_layer_chunks
from eplb.plan import GroupMode, Plan, Problem
from eplb.strategies.certify import certified_plan
from eplb.strategies.pinned import place_pinned

Floats = NDArray[np.float64]
Map = NDArray[np.int32]


@final
@dataclass(frozen=True, kw_only=True)
class Greedy:
    """Parameters of the strategy.

    Parameters
    ----------
    tolerance
        Relative distance from the mean rank load at which a layer is good enough and the descent stops.
    most_slots_for_doubles, most_slots_for_count_moves
        Slots a rank may have for the slower steps of the descent; see `kernels.swap_descent`.
    """

    name: ClassVar[str] = "greedy"
    summary: ClassVar[str] = "greedy copies, largest first, then exchanges out of the busiest rank; the default"
    tolerance: float = 2e-4
    most_slots_for_doubles: int = 16
    most_slots_for_count_moves: int = 5

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Plan for the summed load; deterministic, so the seed changes nothing."""
        load = problem.load.total
        first_slot = problem.topology.rank_first_slot
        if problem.group_mode is GroupMode.PINNED:
            phy2log = place_pinned(load, problem, lambda part, first, _: self.pack(part, first)[0])
            return certified_plan(problem, phy2log, strategy=self.name, seed=seed)
        phy2log, rank_load = self.pack(load, first_slot)
        objective = (rank_load / problem.topology.relative_speed).max(axis=1)
        return certified_plan(problem, phy2log, strategy=self.name, objective=objective, seed=seed)

    def pack(self, load: Floats, first_slot: NDArray[np.int64]) -> tuple[Map, Floats]:
        """Place experts on ranks; a layer without load gets an even layout: counts differ by at most one.

        Parameters
        ----------
        load
            [L, E] tokens.
        first_slot
            [R + 1] first slot of each rank, then P.

        Returns
        -------
        tuple
            The map [L, P] and the rank loads [L, R] it gives.

        Raises
        ------
        InfeasibleError
            If ranks are so unequal that the copies cannot be kept apart.
        """
        from eplb.kernels.largest_first import place_layers
        from eplb.kernels.swap_descent import descend_layers

        idle = load.max(axis=1) == 0
        if idle.any():
            load = np.where(idle[:, None], 1.0, load)
        num_layers, num_experts = load.shape
        num_ranks, num_slots = first_slot.size - 1, int(first_slot[-1])
        first_slot = np.array(first_slot)
        rank_of_slot = np.repeat(np.arange(num_ranks), np.diff(first_slot))
        count = np.empty((num_layers, num_experts), dtype=np.int64)
        phy2log = np.empty((num_layers, num_slots), dtype=np.int32)
        slot_load = np.empty((num_layers, num_slots))
        rank_load = np.empty((num_layers, num_ranks))
        mean = load.sum(axis=1) / num_ranks

        def work(layers: slice) -> None:
            part = np.ascontiguousarray(load[layers])
            order = descending_order(part)
            counts, maps, slots, ranks = count[layers], phy2log[layers], slot_load[layers], rank_load[layers]
            if not place_layers(part, order, first_slot, num_ranks, counts, maps, slots, ranks):
                raise InfeasibleError(
                    "the copies of an expert cannot be kept on different ranks: slots are too unequal"
                )
            # A copy is never split: no rank that holds the largest one can go below it.
            target = np.maximum(mean[layers] * (1 + self.tolerance), slots.max(axis=1))
            target[idle[layers]] = np.inf
            limits = self.most_slots_for_doubles, self.most_slots_for_count_moves
            descend_layers(part, first_slot, rank_of_slot, target, *limits, counts, maps, slots, ranks)

        for_layer_chunks(work, num_layers)
        rank_load[idle] = 0.0
        return phy2log, rank_load


def descending_order(load: Floats) -> NDArray[np.int64]:
    """[L, E] experts by descending load, ties to the lower id.

    One plain sort of integers: a non-negative double orders like its bits, whose lowest ones are replaced by the
    complement of the expert id. Loads that agree in all higher bits (43 or more of 52) count as ties.
    """
    low_bits = np.uint64((1 << max(1, (load.shape[1] - 1).bit_length())) - 1)
    complement = low_bits - np.arange(load.shape[1], dtype=np.uint64)
    keys = (load.view(np.uint64) & ~low_bits) | complement
    keys.sort(axis=1)
    return (low_bits - (keys[:, ::-1] & low_bits)).astype(np.int64)
