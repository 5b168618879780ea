"""Fits a map that was made for even dispatch to the dispatch rule of a problem."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from eplb.core.arrays import Floats, Map
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.problem import GroupMode, Problem, Survive
from eplb.dispatch.optimal_shares import best_split
from eplb.dispatch.replica_shares import ReplicaShares
from eplb.strategies.under_rule.objective import FREE_RULES, slot_shares_under_rule
from eplb.strategies.under_rule.search import Limits, RuleSearch

SINGLE = 1


def fitted_map(problem: Problem, phy2log: Map, others: Sequence[Map] = ()) -> Map:
    """Lower the busiest rank of every layer under the rule of the problem, for its total load.

    Under rules by which shares are chosen for the load, each layer takes the map with the lowest optimum. Otherwise
    `RuleSearch` starts from the first map. Under `sglang_static` it searches for the expectation of the draw; then
    experts with one replica are exchanged, which changes no draw, until the draw itself is balanced.

    Parameters
    ----------
    problem
        Topology, load, rule and what may be lost.
    phy2log
        [L, P] the map to start from. Where groups are pinned it decides their nodes.
    others
        Maps [L, P] to choose from where shares are chosen for the load.
    """
    if problem.dispatch in FREE_RULES:
        return _best_of(problem, [phy2log, *others])
    load, limits = problem.load.total, limits_of(problem, phy2log)
    shares = ReplicaShares(problem.dispatch, problem.topology, problem.sources)
    found = RuleSearch()(load, phy2log, shares, limits=limits).phy2log
    return found if problem.dispatch is not DispatchRule.SGLANG_STATIC else settled(problem, found, shares, limits)


def settled(problem: Problem, phy2log: Map, shares: ReplicaShares, limits: Limits) -> Map:
    """Balance the shares that SGLang draws: experts with one replica change places, all others stay."""
    placement = Placement(phy2log, problem.load.num_experts, problem.topology)
    count = np.take_along_axis(placement.logical_replica_count, np.maximum(phy2log, 0), axis=1)
    several = (count > SINGLE) & (phy2log >= 0)
    given = np.where(several, slot_shares_under_rule(problem, placement), -1.0)
    only_singles = replace(limits, fixed=several, most_replicas=SINGLE)
    return RuleSearch()(problem.load.total, phy2log, shares, limits=only_singles, given=given).phy2log


def limits_of(problem: Problem, phy2log: Map) -> Limits:
    """What a search may do: replicas as the problem asks, and experts on the nodes that they are pinned to."""
    topology, survive = problem.topology, problem.survive
    allowed = None
    if problem.group_mode is GroupMode.PINNED:
        node_of_slot = topology.node_of_rank[topology.rank_of_slot]
        home = np.empty((phy2log.shape[0], problem.load.num_experts), dtype=np.int64)
        np.put_along_axis(home, phy2log.astype(np.int64), np.broadcast_to(node_of_slot, phy2log.shape), axis=1)
        allowed = home[:, :, None] == topology.node_of_rank
    return Limits(
        allowed=allowed,
        least_replicas=problem.least_replicas,
        units=topology.node_of_rank if survive is Survive.NODE else None,
    )


def _best_of(problem: Problem, maps: Sequence[Map]) -> Map:
    """Each layer's map with the lowest busiest rank at the best split; ties to the first."""
    load, topology = problem.load.total, problem.topology
    busiest: list[Floats] = [best_split(Placement(phy2log, load.shape[1], topology), load).busiest for phy2log in maps]
    best = np.stack(busiest).argmin(axis=0)
    return np.take_along_axis(np.stack(maps), best[None, :, None], axis=0)[0]
