"""Plans for the predicted step time: the expert FFN of the slowest rank in each layer, not its tokens.

In prefill the time of a rank follows its tokens, in decode the experts whose weights it streams: a replica divides the
rows of its expert and adds a stream of weights. The search starts from the plan of `greedy`, and where that fits from a
placement without replicas, and exchanges slots and replicas as long as the expected seconds of the slowest ranks fall.
Starts and results are then timed on drawn batches, layer by layer; a layer leaves the plan of `greedy` for the fastest
one if that is faster by more than the calibration is wrong. If nothing but experts with rows costs time, this balances
activated experts, as METRO does (arXiv 2512.09277).
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Final, final

import numpy as np

from eplb.core.arrays import Floats, Map
from eplb.core.dispatch_rule import EVEN_RULES, DispatchRule
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.placement import Placement
from eplb.core.problem import Plan, Problem
from eplb.core.topology import Topology
from eplb.cost.grouped_ffn import RankFfn
from eplb.errors import InputError
from eplb.strategies.certify import certified_plan
from eplb.strategies.greedy.greedy import Greedy
from eplb.strategies.options import check_options
from eplb.strategies.step_time.makespans import draw_batches, makespans, slots_of_ids

DESCENTS: Final = (4, 5)
"""The search descends once with costs of power 16, once with costs of power 32."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class StepLoad:
    """What the tokens of one step choose.

    Parameters
    ----------
    rows
        [L, E] expected choices of each expert in a step; a layer without load is all 0.
    reference_s
        [L] seconds that count as 1: with several loads, the slowest one relative to its reference decides.
    """

    rows: Floats
    reference_s: Floats


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class StepTime:
    """Parameters of the strategy.

    Parameters
    ----------
    ffn
        Seconds of a rank, for one GPU, type of weights and expert shape.
    loads
        The loads to plan for; one, or one of each phase.
    tries_per_slot
        Steps tried a slot in each of the descents.
    num_batches
        Drawn batches of each load by which starts and results are compared.
    least_gain
        Relative gain in predicted step time for which a layer leaves the plan of `greedy`. On an H200 a plan that was
        predicted 0.3 % faster in prefill ran 2 % slower, one predicted 3 % faster in decode ran 3 % faster.
    """

    ffn: RankFfn
    loads: tuple[StepLoad, ...]
    tries_per_slot: int = 20
    num_batches: int = 16
    least_gain: float = 0.01
    name: ClassVar[str] = "step_time"
    summary: ClassVar[str] = "least predicted step time in a phase: expert FFN of the slowest rank"

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Plan for `loads`; certificates are about the tokens of `problem.load`.

        Under weighted dispatch redundant slots may get no tokens: they hold an expert with weight 0. Under even
        dispatch every slot gets its part.

        Raises
        ------
        InputError
            For ranks of unequal speed, and for a group mode or a dispatch rule that the strategy does not plan for.
        """
        _check(problem)
        may_cool = problem.dispatch is DispatchRule.WEIGHTED
        starts = self._starts(problem.topology, may_cool=may_cool)
        results = [self._search(start, problem.topology, may_cool=may_cool, seed=seed) for start in starts]
        held = self._fastest([*starts, *results], problem.topology, seed)
        objective = _busiest_rank(problem, held)
        phy2log = filled(held, self.loads[0].rows, problem.topology)
        made = certified_plan(problem, phy2log, strategy=self.name, objective=objective, seed=seed)
        if not may_cool:
            return made
        weights = _shares(held, problem.load.num_experts)
        placement = Placement(phy2log, problem.load.num_experts, problem.topology, weights)
        return replace(made, placement=placement)

    def _starts(self, topology: Topology, *, may_cool: bool) -> list[Map]:
        """Maps to start from; id E in slots that get no tokens."""
        load = np.sum([_scaled_to_one(one.rows) for one in self.loads], axis=0)
        greedy = Greedy()
        starts = [greedy.pack(load, topology.rank_first_slot)[0]]
        num_ranks, num_experts = topology.num_ranks, load.shape[1]
        share = np.diff(num_experts * np.arange(num_ranks + 1) // num_ranks)
        if topology.num_slots > num_experts and (share <= topology.rank_num_slots).all() and share.min() > 0:
            bare = greedy.pack(load, np.concatenate([np.zeros(1, np.int64), np.cumsum(share)]))[0]
            alone = np.full((len(load), topology.num_slots), num_experts, dtype=np.int32)
            place = np.arange(num_experts) - np.repeat(np.cumsum(share) - share, share)
            alone[:, np.repeat(topology.rank_first_slot[:-1], share) + place] = bare
            starts.append(alone if may_cool else filled(alone, load, topology))
        return starts

    def _search(self, start: Map, topology: Topology, *, may_cool: bool, seed: int) -> Map:
        """Improve every layer."""
        from eplb.strategies.step_time.search_kernel import search_layers

        held = start.copy()
        rows = np.stack([np.pad(one.rows, ((0, 0), (0, 1))) for one in self.loads], axis=2)
        per_reference = 1 / np.stack([one.reference_s for one in self.loads], axis=1)
        num_tries = self.tries_per_slot * topology.num_slots

        def work(layers: slice) -> None:
            for doublings in DESCENTS:
                search_layers(
                    rows[layers], per_reference[layers], self.ffn.table, topology.rank_first_slot,
                    topology.rank_of_slot, doublings, num_tries, seed, layers.start, may_cool, held[layers],
                )  # fmt: skip

        for_layer_chunks(work, len(held))
        return held

    def _fastest(self, candidates: list[Map], topology: Topology, seed: int) -> Map:
        """In each layer the map that is fastest on drawn batches, or the first one if the gain is small."""
        time = np.zeros((len(candidates), len(candidates[0])))
        for load in self.loads:
            batches = draw_batches(load.rows, self.num_batches, seed)
            for index, held in enumerate(candidates):
                seconds = makespans(batches, held, topology.rank_first_slot, self.ffn.table).mean(axis=0)
                time[index] += seconds / load.reference_s
        best = np.where(time.min(axis=0) < time[0] * (1 - self.least_gain), time.argmin(axis=0), 0)
        return np.stack([candidates[index][layer] for layer, index in enumerate(best)])


def _check(problem: Problem) -> None:
    check_options(problem, StepTime.name)
    if problem.topology.rank_speed is not None:
        raise InputError("rank_speed: strategy step_time plans for equal GPUs, those of one calibration")
    if problem.dispatch is not DispatchRule.WEIGHTED and problem.dispatch not in EVEN_RULES:
        raise InputError(
            f"dispatch = {problem.dispatch}: strategy step_time plans for weighted or even dispatch, expected one of "
            f"{', '.join((*EVEN_RULES, DispatchRule.WEIGHTED))}"
        )


def _scaled_to_one(rows: Floats) -> Floats:
    """Rows of each layer with sum 1; a layer without load stays 0."""
    total = rows.sum(axis=1, keepdims=True)
    return np.divide(rows, total, out=np.zeros_like(rows), where=total > 0)


def filled(held: Map, rows: Floats, topology: Topology) -> Map:
    """The map with an expert in every slot: where there is none, the one with most rows a slot not yet on the rank.

    Parameters
    ----------
    held
        [L, P]; E in slots to fill.
    rows
        [L, E] by which experts are chosen.
    topology
        Ranks and slots.
    """
    num_experts, full = rows.shape[1], held.copy()
    for layer, slot in np.argwhere(held == num_experts):
        first, last = topology.rank_first_slot[topology.rank_of_slot[slot] :][:2]
        count = np.bincount(full[layer], minlength=num_experts + 1)[:num_experts]
        per_slot = rows[layer] / count
        per_slot[[expert for expert in full[layer, first:last] if expert < num_experts]] = -1.0
        full[layer, slot] = per_slot.argmax()
    return full


def _shares(held: Map, num_experts: int) -> Floats:
    """[L, P] even shares over the slots of each expert; 0 in slots that get no tokens."""
    count = slots_of_ids(held, num_experts)
    return np.where(held < num_experts, 1 / np.take_along_axis(count, held.astype(np.int64), axis=1), 0.0)


def _busiest_rank(problem: Problem, held: Map) -> Floats:
    """[L] tokens on the busiest rank, for the certificate."""
    load, num_experts = problem.load.total, problem.load.num_experts
    unit = np.pad(load, ((0, 0), (0, 1))) / np.maximum(slots_of_ids(held, num_experts), 1)
    slots = np.take_along_axis(unit, held.astype(np.int64), axis=1)
    return np.asarray(np.add.reduceat(slots, problem.topology.rank_first_slot[:-1], axis=1).max(axis=1))
