"""Puts the K hottest experts of each layer on every rank, so that their tokens need no transfer.

Under a rule that prefers the replica on the token's own rank these experts are served locally, whatever rank the token
is on. The others are placed as by `greedy` in the slots that are left. K is chosen layer by layer: the largest one that
balances about as well as the best. Idea: the `biased` placement of ROCm ATOM, pull request 1210.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.problem import GroupMode, Plan, Problem
from eplb.dispatch.replica_shares import NEAREST_RULES, source_shares
from eplb.errors import InfeasibleError
from eplb.strategies.certify import certified_plan
from eplb.strategies.greedy.greedy import Greedy, descending_order
from eplb.strategies.options import check_options
from eplb.strategies.under_rule.fit import fitted_map, limits_of, settled
from eplb.strategies.under_rule.objective import busiest_under_rule
from eplb.strategies.under_rule.search import Limits


@final
@dataclass(frozen=True, kw_only=True)
class Biased:
    """Parameters of the strategy.

    Parameters
    ----------
    slack
        A layer takes the largest K whose busiest rank is at most this share above that of the best K.
    most_tried
        Values of K above 0 that are tried, evenly spaced where the redundancy allows more.
    """

    name: ClassVar[str] = "biased"
    summary: ClassVar[str] = "the hottest experts on every rank, as many as keep the balance; for local-first dispatch"
    slack: float = 0.01
    most_tried: int = 16

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Plan for the summed load; the seed changes nothing.

        K experts on each of R ranks take K (R - 1) redundant slots. Pinned groups forbid it: K is 0 then.
        """
        check_options(problem, self.name)
        base = Greedy()(problem, seed=seed).placement.physical_to_logical_map
        values, maps = [0], [base]
        for num_hot in self._values(problem):
            with suppress(InfeasibleError):  # slots too unequal for the others
                maps.append(_with_hot_everywhere(problem, num_hot))
                values.append(num_hot)
        chosen = self._choose(problem, maps)
        phy2log = np.take_along_axis(np.stack(maps), chosen[None, :, None], axis=0)[0]
        if problem.dispatch is DispatchRule.SGLANG_STATIC:  # the draw of a layer depends on the layers before it
            phy2log = settled(problem, phy2log, limits_of(problem, phy2log))[0]
        notes = _notes(problem, np.array(values)[chosen], phy2log, base)
        return certified_plan(problem, phy2log, strategy=self.name, seed=seed, notes=notes)

    def _values(self, problem: Problem) -> list[int]:
        """The values of K to try, ascending from 1."""
        topology = problem.topology
        if topology.num_ranks == 1 or (problem.group_mode is GroupMode.PINNED and topology.num_nodes > 1):
            return []
        by_redundancy = (topology.num_slots - problem.load.num_experts) // (topology.num_ranks - 1)
        most = min(by_redundancy, int(topology.rank_num_slots.min()) - 1)
        return (
            sorted({-(-most * i // self.most_tried) for i in range(1, self.most_tried + 1)} - {0}) if most > 0 else []
        )

    def _choose(self, problem: Problem, maps: list[Map]) -> Ints:
        """[L] index of the map of each layer: the last that is within the slack; the first where there is no load."""
        num_experts, topology = problem.load.num_experts, problem.topology
        busiest = np.stack([busiest_under_rule(problem, Placement(rows, num_experts, topology)) for rows in maps])
        is_close = busiest <= busiest.min(axis=0) * (1 + self.slack)
        last = len(maps) - 1 - is_close[::-1].argmax(axis=0)
        return np.where(busiest[0] > 0, last, 0)


def _with_hot_everywhere(problem: Problem, num_hot: int) -> Map:
    """[L, P] the hottest experts in the last slots of every rank, the others balanced around them.

    Raises
    ------
    InfeasibleError
        If the slots that are left are too unequal to keep the replicas of the other experts apart.
    """
    load, topology = problem.load.total, problem.topology
    order = descending_order(load).astype(np.int32)
    hot, others = np.sort(order[:, :num_hot], axis=1), np.sort(order[:, num_hot:], axis=1)
    num_left = topology.rank_num_slots - num_hot
    first_slot = np.concatenate([[0], np.cumsum(num_left)])
    part, _ = Greedy().pack(np.take_along_axis(load, others, axis=1), first_slot, topology.relative_speed)
    local_slot = np.arange(topology.num_slots) - topology.rank_first_slot[topology.rank_of_slot]
    is_hot = local_slot >= num_left[topology.rank_of_slot]
    phy2log: Map = np.empty((load.shape[0], topology.num_slots), dtype=np.int32)
    phy2log[:, ~is_hot] = np.take_along_axis(others, part, axis=1)
    phy2log[:, is_hot] = np.tile(hot, (1, topology.num_ranks))
    return fitted_map(problem, phy2log, limits=Limits(fixed=np.tile(is_hot, (load.shape[0], 1))))[0]


def _notes(problem: Problem, num_hot: Ints, phy2log: Map, base: Map) -> tuple[str, ...]:
    """How many experts are everywhere, and what that saves where a rank prefers its own replica."""
    notes = (f"experts on every rank: {num_hot.mean():.1f} in the mean layer, {num_hot.min()} to {num_hot.max()}",)
    if problem.dispatch not in NEAREST_RULES:
        return notes
    local, greedy = local_share(problem, phy2log), local_share(problem, base)
    return (*notes, f"tokens served on their own rank: {local:.1%}, {greedy:.1%} in a plan of greedy")


def local_share(problem: Problem, phy2log: Map) -> float:
    """Share of all choices whose expert has a replica on the token's own rank; no rank holds an expert twice."""
    topology = problem.topology
    source = source_shares(topology, problem.sources)[topology.rank_of_slot]
    own: Floats = np.take_along_axis(problem.load.total, phy2log, axis=1) * source
    return float(own.sum() / problem.load.total.sum())
