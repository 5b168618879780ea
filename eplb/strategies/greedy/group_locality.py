"""Trades balance against group locality: a layer's cost is busiest over mean rank plus a penalty for off-node replicas.

A replica is off-node if it is not on its expert group's home, the node with most of the group's replicas. Pinned groups
have no off-node replicas and unequal nodes; with free groups most replicas are off-node. Exchanges lower the cost from
both starts. The cheapest of the starts and of what was found is taken, so that the result is never worse than pinning
or than ignoring groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import final

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.problem import Problem


@final
@dataclass(frozen=True, kw_only=True)
class LocalitySearch:
    """Parameters of the exchanges.

    Parameters
    ----------
    discounts
        Shares of the penalty that the descents from the first start are made with: one at the full penalty stops where
        the first replicas of several that pay together do not pay alone.
    sharpness
        Of the soft maximum, one pass of a descent for each.
    tries_per_slot
        Moves tried a slot in each pass.
    least_tries
        Moves to try in all runs of a pass together: small topologies are searched several times.
    """

    discounts: tuple[float, ...] = (1.0, 0.5, 0.25)
    sharpness: tuple[float, ...] = (10.0, 20.0, 80.0, 320.0, 2000.0)
    tries_per_slot: int = 150
    least_tries: int = 10_000

    def __call__(self, load: Floats, problem: Problem, starts: Sequence[Map], *, seed: int) -> Map:
        """Search from every start and take, for each layer, the cheapest of the starts and what was found.

        Parameters
        ----------
        load
            [L, E] tokens; a layer without any keeps its first start.
        problem
            Topology, groups and penalty (`group_price`).
        starts
            Maps [L, P] without an expert twice on a rank; ties go to the first.
        seed
            Of the random moves.
        """
        num_runs = -(-self.least_tries // (self.tries_per_slot * problem.topology.num_slots))
        ways = [(starts[0], discount) for discount in self.discounts] + [(start, 1.0) for start in starts[1:]]
        runs = product(ways, range(seed * num_runs, (seed + 1) * num_runs))
        maps = [*starts, *(self._descend(load, problem, *way, seed=run) for way, run in runs)]
        cost = np.stack([penalised_cost(load, problem, phy2log) for phy2log in maps])
        return np.take_along_axis(np.stack(maps), cost.argmin(axis=0)[None, :, None], axis=0)[0]

    def _descend(self, load: Floats, problem: Problem, start: Map, discount: float, *, seed: int) -> Map:
        from eplb.strategies.greedy.group_locality_kernel import improve_locality

        topology = problem.topology
        homes = replicas_by_node(start, problem).argmax(axis=2)
        home_of_expert = np.repeat(homes, problem.load.num_experts // problem.num_groups, axis=1)
        total = load.sum(axis=1, keepdims=True)
        scaled = np.divide(load * topology.relative_speed.sum(), total, out=np.zeros_like(load), where=total > 0)
        count = np.stack([np.bincount(layer, minlength=load.shape[1]) for layer in start])
        phy2log, rank_scale = start.copy(), 1 / topology.relative_speed
        num_tries = self.tries_per_slot * topology.num_slots

        def work(layers: slice) -> None:
            improve_locality(
                scaled[layers], home_of_expert[layers], topology.rank_first_slot, topology.node_of_rank,
                rank_scale, discount * problem.group_price, np.array(self.sharpness), num_tries, seed, layers.start,
                count[layers], phy2log[layers],
            )  # fmt: skip

        for_layer_chunks(work, load.shape[0])
        return phy2log


def penalised_cost(load: Floats, problem: Problem, phy2log: Map) -> Floats:
    """[L] busiest over mean rank time plus the penalty of the off-node replicas."""
    topology, (num_layers, num_experts) = problem.topology, load.shape
    slots = np.arange(num_layers)[:, None] * num_experts + phy2log
    count = np.bincount(slots.ravel(), minlength=load.size).reshape(load.shape)
    unit = np.take_along_axis(load / count, phy2log, axis=1)
    rank_load = np.add.reduceat(unit, topology.rank_first_slot[:-1], axis=1)
    mean = load.sum(axis=1) / topology.relative_speed.sum()
    busiest = (rank_load / topology.relative_speed).max(axis=1)
    balance = np.divide(busiest, mean, out=np.ones_like(mean), where=mean > 0)
    home = replicas_by_node(phy2log, problem).max(axis=2)
    return balance + problem.group_price * (topology.num_slots - home.sum(axis=1))


def replicas_by_node(phy2log: Map, problem: Problem) -> Ints:
    """[L, G, N] replicas of each group's experts on each node."""
    topology, num_groups = problem.topology, problem.num_groups
    group = phy2log // (problem.load.num_experts // num_groups)
    node = topology.node_of_rank[topology.rank_of_slot]
    layer = np.arange(phy2log.shape[0])[:, None]
    cell = (layer * num_groups + group) * topology.num_nodes + node
    shape = phy2log.shape[0], num_groups, topology.num_nodes
    return np.bincount(cell.ravel(), minlength=int(np.prod(shape))).reshape(shape)
