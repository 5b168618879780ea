"""Greedy counts, largest first, then descent on the busiest rank: our default for one load vector.

Copies go to the expert with the most load a copy, at most one a rank. They are packed by descending load, never twice
on a rank; where ranks have two slots, or some of them one, better counts are searched and the largest copy goes beside
the smallest. Then experts of the busiest rank are exchanged, one or two at a time, until it is within `tolerance` of
the lower bound. What is left above it, and large machines, are levelled: see `levelling`. Milliseconds for a model, and
nearly always at the bound.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar, NoReturn, final

import numpy as np
from numpy.typing import NDArray

from eplb.bounds.lower_bounds import lower_bounds
from eplb.core.arrays import Floats, Map
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.problem import GroupMode, Plan, Problem, Survive
from eplb.core.topology import Topology
from eplb.errors import EplbError, InfeasibleError
from eplb.strategies.certify import certified_plan
from eplb.strategies.greedy.group_locality import LocalitySearch
from eplb.strategies.greedy.local_search import (
    LARGEST_FIRST,
    Books,
    Layers,
    Ranks,
    first_offset,
    is_large,
    level_better,
    levels_apply,
    place_and_level,
    targets,
)
from eplb.strategies.greedy.node_failure import busy_load, put_on_two_nodes
from eplb.strategies.greedy.pinned import place_pinned
from eplb.strategies.greedy.two_slot_ranks import has_two_slot_ranks, improve_layers


@final
@dataclass(frozen=True, kw_only=True)
class Greedy:
    """Parameters of the strategy.

    Parameters
    ----------
    tolerance
        Relative distance from the mean rank load at which a layer is good enough and the descent stops.
    most_slots_for_doubles, most_slots_for_count_moves
        Slots a rank may have for the slower steps of the descent; see `kernels.swap_descent`. Moves of copies are
        always tried where ranks differ in speed: slow ranks need small copies, and these must be made.
    plateau_looks
        How often a layer that is left above its tolerance looks for better neighbours; see `kernels.level_search`.
    """

    name: ClassVar[str] = "greedy"
    summary: ClassVar[str] = "greedy copies, largest first, then exchanges out of the busiest rank; the default"
    tolerance: float = 2e-4
    most_slots_for_doubles: int = 16
    most_slots_for_count_moves: int = 5
    plateau_looks: int = 1000

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Plan for the summed load; the seed changes nothing but the search of group mode "priced"."""
        load, topology, survive = problem.load.total, problem.topology, problem.survive
        if problem.group_mode is GroupMode.PINNED:
            # Groups on nodes have one slot each; the experts of a node have the copies that are asked.
            def place(part: Floats, first: NDArray[np.int64], speed: Floats) -> Map:
                twice = survive is Survive.RANK and first[-1] >= 2 * part.shape[1]
                return self.pack(part, first, speed, unit_of_rank=np.arange(speed.size) if twice else None)[0]

            phy2log = place_pinned(load, problem, place)
            return certified_plan(problem, phy2log, strategy=self.name, seed=seed, keeps=survive)
        if problem.group_mode is GroupMode.PRICED:
            phy2log = self._weigh_groups(load, problem, seed=seed)
            return certified_plan(problem, phy2log, strategy=self.name, seed=seed, weighs_groups=True)
        units = {
            Survive.NOTHING: None,
            Survive.RANK: np.arange(topology.num_ranks),
            Survive.NODE: topology.node_of_rank.astype(np.int64),
        }
        phy2log, rank_time = self.pack(
            load, topology.rank_first_slot, topology.relative_speed, unit_of_rank=units[survive]
        )
        if survive is Survive.NODE:
            phy2log, rank_time = put_on_two_nodes(load, phy2log, topology, tolerance=self.tolerance)
        objective = rank_time.max(axis=1)
        return certified_plan(problem, phy2log, strategy=self.name, objective=objective, seed=seed, keeps=survive)

    def _weigh_groups(self, load: Floats, problem: Problem, *, seed: int) -> Map:
        """Search between pinned and free groups; from free ones alone where the groups do not fit the nodes."""
        starts = []
        for mode in (GroupMode.PINNED, GroupMode.FREE):
            with suppress(EplbError):
                made = self(replace(problem, group_mode=mode, group_price=0.0))
                starts.append(made.placement.physical_to_logical_map)
        return LocalitySearch()(load, problem, starts, seed=seed)

    def pack(
        self,
        load: Floats,
        first_slot: NDArray[np.int64],
        speed: Floats | None = None,
        *,
        unit_of_rank: NDArray[np.int64] | None = None,
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
            [R] units, ranks or nodes, of which any one may be lost: each expert gets two copies or more, spread so that
            no rank inherits much of a lost unit's load. None when losses need not be survived.

        Returns
        -------
        tuple
            The map [L, P] and the rank times [L, R] it gives: tokens over speed.

        Raises
        ------
        InfeasibleError
            If ranks are so unequal that the copies cannot be kept apart.
        """
        load, idle = busy_load(load)
        speed = np.ones(first_slot.size - 1) if speed is None else speed
        num_ranks, num_slots = speed.size, int(first_slot[-1])
        ranks = Ranks(
            first_slot=np.array(first_slot),
            rank_scale=1 / speed,
            room=most_copies_together(first_slot, load.shape[1]),
            tolerance=self.tolerance,
            most_slots_for_doubles=self.most_slots_for_doubles,
        )
        books = Books.blank(*load.shape, num_slots=num_slots, num_ranks=num_ranks)
        mean = np.where(idle, np.inf, load.sum(axis=1) / speed.sum())
        machine = Topology(1, num_ranks, np.diff(first_slot).tolist(), speed.tolist())
        paired = unit_of_rank is None and has_two_slot_ranks(machine)
        lower = np.where(idle, np.inf, lower_bounds(load, machine).value) if paired else mean
        levelled = unit_of_rank is None and levels_apply(ranks)
        large = levelled and is_large(ranks)

        def work(chunk: slice) -> None:
            part, mine = np.ascontiguousarray(load[chunk]), books.at(chunk)
            layers = Layers(load=part, order=descending_order(part), mean=mean[chunk])
            if large:
                fresh = place_and_level(layers, ranks, offset=first_offset(layers, ranks))
                mine.put(slice(None), fresh or _refuse())
            else:
                self._place(layers, ranks, mine, unit_of_rank)
            if paired:
                improve_layers(part, machine, lower[chunk], *mine.arrays, tolerance=self.tolerance)
            if not large:
                self._descend(layers, ranks, mine, least_copies=1 if unit_of_rank is None else 2)
            if levelled:
                level_better(layers, mine, ranks, looks=self.plateau_looks)

        for_layer_chunks(work, load.shape[0])
        books.rank_time[idle] = 0.0
        return books.phy2log, books.rank_time

    def _place(self, layers: Layers, ranks: Ranks, books: Books, unit_of_rank: NDArray[np.int64] | None) -> None:
        """Count copies so that the largest is least, and pack them; `unit_of_rank` as in `pack`."""
        from eplb.strategies.greedy.rank_failure_kernel import scatter_layers
        from eplb.strategies.greedy.replicate_and_pack_kernel import place_layers

        least_copies = 1 if unit_of_rank is None else 2
        most = ranks.num_ranks  # copies of an expert
        if not place_layers(
            layers.load, layers.order, ranks.first_slot, ranks.rank_scale, ranks.room, least_copies, most,
            LARGEST_FIRST, books.count, books.phy2log, books.slot_load, books.rank_time,
        ):  # fmt: skip
            _refuse()
        if unit_of_rank is not None:
            scatter_layers(
                layers.load, ranks.first_slot, ranks.rank_scale, unit_of_rank,
                books.count, books.phy2log, books.slot_load, books.rank_time,
            )  # fmt: skip

    def _descend(self, layers: Layers, ranks: Ranks, books: Books, *, least_copies: int) -> None:
        """Exchange with any rank, one or two experts, and move copies, until the layers meet their targets."""
        from eplb.strategies.greedy.local_search_kernel import descend_layers

        count_moves = self.most_slots_for_count_moves if ranks.alike else int(ranks.first_slot[-1])
        rank_of_slot = np.repeat(np.arange(ranks.num_ranks), np.diff(ranks.first_slot))
        descend_layers(
            layers.load, ranks.first_slot, rank_of_slot, ranks.rank_scale, targets(layers.mean, books, ranks),
            least_copies, self.most_slots_for_doubles, count_moves,
            books.count, books.phy2log, books.slot_load, books.rank_time,
        )  # fmt: skip


def _refuse() -> NoReturn:
    raise InfeasibleError("the copies of an expert cannot be kept on different ranks: slots are too unequal")


def most_copies_together(first_slot: NDArray[np.int64], num_experts: int) -> NDArray[np.int64]:
    """[E + 1] most copies that k experts can have together with at most one a rank; empty where slots are equal.

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
