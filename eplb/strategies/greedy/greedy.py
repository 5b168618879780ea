"""The default strategy for one load vector: greedy replica counts, packing by descending load, local search.

Each redundant replica goes to the expert with the most load a replica, at most one a rank. Replicas are packed by
descending load, no expert twice on a rank; on ranks with two slots or one, better counts are searched and the largest
replica is paired with the smallest. Then replicas of the busiest rank are exchanged until it is within `tolerance` of
the lower bound; see `local_search`. It takes milliseconds for a model and nearly always meets the bound.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from eplb.bounds.lower_bounds import lower_bounds
from eplb.core.arrays import Floats, Ints, Map
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.problem import GroupMode, Plan, Problem, Survive
from eplb.core.topology import Topology
from eplb.errors import EplbError, InfeasibleError, InputError
from eplb.strategies.certify import certified_plan
from eplb.strategies.constrained.constrained import ConstrainedSearch
from eplb.strategies.greedy.group_locality import LocalitySearch
from eplb.strategies.greedy.local_search import (
    OTHER_OFFSETS,
    Layers,
    LayerState,
    Ranks,
    first_offset,
    place,
    search,
    try_harder,
)
from eplb.strategies.greedy.node_failure import busy_load, put_on_two_nodes
from eplb.strategies.greedy.pinned import place_pinned
from eplb.strategies.greedy.speed_classes import place_by_class
from eplb.strategies.greedy.two_slot_ranks import has_two_slot_ranks, improve_layers
from eplb.strategies.under_rule.fit import fitted_map
from eplb.strategies.under_rule.objective import FREE_RULES, is_even


@final
@dataclass(frozen=True, kw_only=True)
class Greedy:
    """Parameters of the strategy.

    Parameters
    ----------
    tolerance
        Relative distance from the mean rank load at which a layer is good enough and the search stops.
    most_slots_for_pairs, most_slots_to_replace
        Most slots of a rank for the slower steps, exchanging two replicas and replacing one; see
        `local_search_kernel.search_layers`. Where ranks differ in speed, replicas are always replaced: slow ranks need
        small ones.
    iterations
        Offers to the busiest rank, in the walk, of a layer that is left above its tolerance.
    """

    name: ClassVar[str] = "greedy"
    summary: ClassVar[str] = "greedy replica counts, largest first, then exchanges out of the busiest rank; the default"
    tolerance: float = 2e-4
    most_slots_for_pairs: int = 16
    most_slots_to_replace: int = 5
    iterations: int = 1000

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Plan for the summed load; the seed changes nothing but the search of group mode "priced".

        Under a rule that is not even, the map for even dispatch is where the search under the rule starts.

        Raises
        ------
        InputError
            For group mode "priced" under a rule that is not even.
        """
        if problem.group_mode is GroupMode.PRICED and not is_even(problem.dispatch):
            raise InputError(
                f"group mode priced, dispatch = {problem.dispatch}: the penalty is weighed under even dispatch only"
            )
        if not problem.constraints.is_empty:
            return self._constrained(problem, seed=seed)
        phy2log, objective = self._even_map(problem, seed=seed)
        if not is_even(problem.dispatch):
            phy2log, objective = fitted_map(problem, phy2log, self._other_counts(problem))
        return certified_plan(
            problem,
            phy2log,
            strategy=self.name,
            objective=objective,
            seed=seed,
        )

    def _constrained(self, problem: Problem, *, seed: int) -> Plan:
        """Plan for the summed load under hard constraints and the problem's rule."""
        load = problem.load.total
        phy2log = ConstrainedSearch()(load[:, :, None], load, problem, seed=seed)
        return certified_plan(problem, phy2log, strategy=self.name, seed=seed)

    def _even_map(self, problem: Problem, *, seed: int) -> tuple[Map, Floats | None]:
        """The map for even dispatch [L, P], and the time of the busiest rank [L] if it is known."""
        load, topology, survive = problem.load.total, problem.topology, problem.survive
        if problem.group_mode is GroupMode.PINNED:
            # Groups on nodes have one slot each; the experts of a node have the replicas that are asked.
            def place_part(part: Floats, first: NDArray[np.int64], speed: Floats) -> Map:
                twice = survive is Survive.RANK and first[-1] >= 2 * part.shape[1]
                return self.pack(part, first, speed, unit_of_rank=np.arange(speed.size) if twice else None)[0]

            return place_pinned(load, problem, place_part), None
        if problem.group_mode is GroupMode.PRICED:
            return self._weigh_groups(load, problem, seed=seed), None
        units = {
            Survive.NOTHING: None,
            Survive.RANK: np.arange(topology.num_ranks),
            Survive.NODE: topology.node_of_rank,
        }
        phy2log, rank_time = self.pack(
            load, topology.rank_first_slot, topology.relative_speed, unit_of_rank=units[survive]
        )
        if survive is Survive.NODE:
            phy2log, rank_time = put_on_two_nodes(load, phy2log, topology, tolerance=self.tolerance)
        return phy2log, rank_time.max(axis=1)

    def _other_counts(self, problem: Problem) -> list[Map]:
        """Maps with other replica counts, for rules under which the best split of a map decides."""
        free = problem.group_mode is GroupMode.FREE and problem.survive is Survive.NOTHING
        if problem.dispatch not in FREE_RULES or not free:
            return []
        topology = problem.topology
        return [
            self.pack(problem.load.total, topology.rank_first_slot, topology.relative_speed, offset=offset)[0]
            for offset in OTHER_OFFSETS
        ]

    def _weigh_groups(self, load: Floats, problem: Problem, *, seed: int) -> Map:
        """Search between pinned and free groups; from free ones alone where the groups do not fit the nodes."""
        starts = []
        for mode in (GroupMode.PINNED, GroupMode.FREE):
            with suppress(EplbError):
                starts.append(self._even_map(replace(problem, group_mode=mode, group_price=0.0), seed=seed)[0])
        return LocalitySearch()(load, problem, starts, seed=seed)

    def pack(
        self,
        load: Floats,
        first_slot: NDArray[np.int64],
        speed: Floats | None = None,
        *,
        unit_of_rank: NDArray[np.int64] | None = None,
        offset: float | None = None,
    ) -> tuple[Map, Floats]:
        """Place experts on ranks; a layer without load gets an even layout: counts differ by at most one.

        Parameters
        ----------
        load
            [L, E] tokens.
        first_slot
            [R + 1] first slot of each rank, then P.
        speed
            [R] of each rank; None when all ranks are equally fast.
        unit_of_rank
            [R] units, ranks or nodes, of which any one may be lost: each expert gets two replicas or more, spread so
            that no rank inherits much of a lost unit's load. None when losses need not be survived.
        offset
            Of the replica counts to start with, see `local_search.place`; None for the usual one.

        Returns
        -------
        tuple
            The map [L, P] and the rank times [L, R] it gives: tokens over speed.

        Raises
        ------
        InfeasibleError
            If ranks are so unequal that the replicas cannot be kept apart.
        """
        load, idle = busy_load(load)
        speed = np.ones(first_slot.size - 1) if speed is None else speed
        ranks = Ranks(
            first_slot=first_slot,
            rank_scale=1 / speed,
            room=most_replicas_together(first_slot, load.shape[1]),
            tolerance=self.tolerance,
            least_replicas=1 if unit_of_rank is None else 2,
            most_slots_for_pairs=self.most_slots_for_pairs,
            most_slots_to_replace=self.most_slots_to_replace,
            iterations=self.iterations,
        )
        if unit_of_rank is None and ranks.are_many_unequal:
            packed = self._pack_by_class(load, ranks, idle)
            if packed is not None:
                return packed
        state = LayerState.blank(*load.shape, num_slots=int(first_slot[-1]), num_ranks=speed.size)
        mean = np.where(idle, np.inf, load.sum(axis=1) / speed.sum())
        two_slots = _two_slot_topology(ranks) if unit_of_rank is None else None
        lower = mean if two_slots is None else np.where(idle, np.inf, lower_bounds(load, two_slots).value)

        def work(chunk: slice) -> None:
            part, own = np.ascontiguousarray(load[chunk]), state.at(chunk)
            layers = Layers(load=part, order=descending_order(part), mean=mean[chunk])
            if not place(layers, ranks, own, offset=first_offset(layers, ranks) if offset is None else offset):
                raise InfeasibleError(
                    "the replicas of an expert cannot be kept on different ranks: slots are too unequal"
                )
            if unit_of_rank is not None:
                _spread(part, ranks, own, unit_of_rank)
            if two_slots is not None:
                improve_layers(part, two_slots, lower[chunk], *own.arrays, tolerance=self.tolerance)
            search(layers, ranks, own)
            if unit_of_rank is None:
                try_harder(layers, ranks, own)

        for_layer_chunks(work, load.shape[0])
        state.rank_time[idle] = 0.0
        return state.phy2log, state.rank_time

    def _pack_by_class(self, load: Floats, ranks: Ranks, idle: NDArray[np.bool_]) -> tuple[Map, Floats] | None:
        """Place class by class of like speed, then exchange between all ranks; None with too few experts for that."""
        state = LayerState.blank(*load.shape, num_slots=int(ranks.first_slot[-1]), num_ranks=ranks.num_ranks)
        quick = replace(self, most_slots_to_replace=0)
        if not place_by_class(load, ranks, state, lambda part, first_slot: quick.pack(part, first_slot)[0]):
            return None
        mean = np.where(idle, np.inf, load.sum(axis=1) / (1 / ranks.rank_scale).sum())

        def work(chunk: slice) -> None:
            part = np.ascontiguousarray(load[chunk])
            layers = Layers(load=part, order=descending_order(part), mean=mean[chunk])
            search(layers, ranks, state.at(chunk), iterations=ranks.iterations)

        for_layer_chunks(work, load.shape[0])
        state.rank_time[idle] = 0.0
        return state.phy2log, state.rank_time


def _spread(load: Floats, ranks: Ranks, state: LayerState, unit_of_rank: Ints) -> None:
    """Pack the replicas anew so that no rank inherits much of a lost unit's load."""
    from eplb.strategies.greedy.rank_failure_kernel import scatter_layers

    scatter_layers(load, ranks.first_slot, ranks.rank_scale, unit_of_rank, *state.arrays)


def _two_slot_topology(ranks: Ranks) -> Topology | None:
    """The ranks as a topology if replicas can be paired on them."""
    num_slots = np.diff(ranks.first_slot)
    if num_slots.max() != 2 or not ranks.equally_fast:
        return None
    topology = Topology(1, ranks.num_ranks, num_slots.tolist())
    return topology if has_two_slot_ranks(topology) else None


def most_replicas_together(first_slot: NDArray[np.int64], num_experts: int) -> NDArray[np.int64]:
    """[E + 1] most replicas that k experts can have together with at most one a rank; empty where slots are equal.

    With equal slots any counts that fill them, at most one a rank, can be kept apart.
    """
    num_slots = np.diff(first_slot)
    if (num_slots == num_slots[0]).all() and num_slots[0] <= num_experts:
        return np.empty(0, dtype=np.int64)
    return np.minimum(num_slots, np.arange(num_experts + 1)[:, None]).sum(axis=1)


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
