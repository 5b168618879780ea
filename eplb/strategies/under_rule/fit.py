"""Fits a map that was made for even dispatch to the dispatch rule of a problem."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import EMPTY_SLOT, Placement, replica_counts
from eplb.core.problem import GroupMode, Problem, Survive
from eplb.dispatch.optimal_shares import best_split
from eplb.dispatch.replica_shares import ReplicaShares
from eplb.strategies.under_rule.objective import FREE_RULES, slot_shares_under_rule
from eplb.strategies.under_rule.search import Limits, RuleSearch
from eplb.strategies.under_rule.window_search import WindowSearch


def fitted_map(
    problem: Problem, phy2log: Map, others: Sequence[Map] = (), *, limits: Limits | None = None
) -> tuple[Map, Floats]:
    """Lower the busiest rank of every layer under the rule of the problem, for its total load.

    Under rules by which shares are chosen for the load, each layer takes the map with the lowest optimum. Otherwise
    `RuleSearch` starts from the first map. Under `sglang_static` it searches for the expectation of the draw; then
    exchanges that change no draw balance the draw itself.

    Parameters
    ----------
    problem
        Topology, load, rule and what may be lost.
    phy2log
        [L, P] the map to start from. Where groups are pinned it decides their nodes.
    others
        Maps [L, P] to choose from where shares are chosen for the load.
    limits
        What the search may do; None: what the problem allows.

    Returns
    -------
    tuple
        The map [L, P] and the time of the busiest rank [L].
    """
    if problem.dispatch in FREE_RULES:
        return _best_of(problem, [phy2log, *others])
    load, limits = problem.load.total, limits_of(problem, phy2log) if limits is None else limits
    shares = ReplicaShares(problem.dispatch, problem.topology, problem.sources)
    found = RuleSearch()(load, phy2log, shares, limits=limits)
    if problem.dispatch is DispatchRule.SGLANG_STATIC:
        return settled(problem, found.phy2log, limits)
    return found.phy2log, found.busiest


def fitted_to_windows(problem: Problem, windows: Floats, phy2log: Map, *, seed: int) -> Map:
    """Lower the busiest moments of many windows under the rule of the problem, which has fixed shares.

    Parameters
    ----------
    problem
        Topology, rule and what may be lost.
    windows
        [L, E, W] as `WindowSearch` takes them.
    phy2log
        [L, P] the map to start from.
    seed
        Of the random steps.
    """
    limits, search = limits_of(problem, phy2log), WindowSearch()
    shares = ReplicaShares(problem.dispatch, problem.topology, problem.sources)
    found = search(windows, phy2log, shares, limits=limits, seed=seed)
    if problem.dispatch is not DispatchRule.SGLANG_STATIC:
        return found
    drawn = Drawn.of(problem, found, limits)
    slot_load = np.take_along_axis(windows, np.maximum(found, 0)[:, :, None], axis=1) * drawn.shares[:, :, None]
    own_ids = search(slot_load, drawn.own_ids, drawn.rule, limits=drawn.limits, seed=seed)
    return np.take_along_axis(found, own_ids, axis=1)


def settled(problem: Problem, phy2log: Map, limits: Limits, *, target: Floats | None = None) -> tuple[Map, Floats]:
    """Balance the shares that SGLang draws, for the total load, by exchanges that change no draw.

    Parameters
    ----------
    problem, phy2log
        As in `fitted_map`.
    limits
        What the search may do.
    target
        [L] rank time that is good enough; None for the usual one.

    Returns
    -------
    tuple
        The map [L, P] and the time of the busiest rank [L].
    """
    drawn = Drawn.of(problem, phy2log, limits)
    slot_load = np.take_along_axis(problem.load.total, np.maximum(phy2log, 0), axis=1) * drawn.shares
    found = RuleSearch()(slot_load, drawn.own_ids, drawn.rule, limits=drawn.limits, target=target)
    return np.take_along_axis(phy2log, found.phy2log, axis=1), found.busiest


@final
@dataclass(frozen=True, eq=False)
class Drawn:
    """The exchanges that change no draw of SGLang, with each replica as an expert of its own.

    An expert with one replica may go to any rank. So may the only replica on a node of an expert that is on several
    nodes, to any rank of this node: all ranks of the node use it, whichever holds it.
    """

    shares: Floats
    """[L, P] share of its expert's tokens that is drawn for each replica."""
    own_ids: Map
    """[L, P] 0 to P - 1."""
    rule: ReplicaShares
    """An even rule: each of these experts has one replica."""
    limits: Limits

    @classmethod
    def of(cls, problem: Problem, phy2log: Map, limits: Limits) -> "Drawn":
        """The exchanges that a map [L, P] allows within other limits."""
        topology = problem.topology
        placement = Placement(phy2log, problem.load.num_experts, topology)
        on_node, count = _replicas_on_node(placement), _of_slots(placement.logical_replica_count, phy2log)
        is_empty, node_of_slot = phy2log == EMPTY_SLOT, topology.node_of_rank[topology.rank_of_slot]
        allowed = ((count == 1) | is_empty)[:, :, None] | (node_of_slot[:, None] == topology.node_of_rank)
        if limits.allowed is not None:
            allowed &= np.take_along_axis(limits.allowed, np.maximum(phy2log, 0)[:, :, None], axis=1)
        fixed = ~((on_node == 1) | is_empty)
        if limits.fixed is not None:
            fixed |= limits.fixed
        return cls(
            slot_shares_under_rule(problem, placement),
            np.tile(np.arange(topology.num_slots, dtype=np.int32), (phy2log.shape[0], 1)),
            ReplicaShares(DispatchRule.EVEN, topology),
            Limits(allowed=allowed, fixed=fixed, most_replicas=1),
        )


def _replicas_on_node(placement: Placement) -> Ints:
    """[L, P] replicas of a slot's expert on the slot's node."""
    topology, phy2log = placement.topology, placement.physical_to_logical_map
    node_of_slot = topology.node_of_rank[topology.rank_of_slot]
    on_node = np.zeros(phy2log.shape, dtype=np.int64)
    for node in range(topology.num_nodes):
        own = node_of_slot == node
        on_node[:, own] = _of_slots(replica_counts(phy2log[:, own], placement.num_experts), phy2log[:, own])
    return on_node


def _of_slots(of_expert: NDArray[np.integer], phy2log: Map) -> Ints:
    """[L, P] the number [L, E] of each slot's expert."""
    return np.take_along_axis(of_expert.astype(np.int64), np.maximum(phy2log, 0), axis=1)


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


def _best_of(problem: Problem, maps: Sequence[Map]) -> tuple[Map, Floats]:
    """Each layer's map with the lowest busiest rank at the best split, and that; ties to the first."""
    load, topology = problem.load.total, problem.topology
    busiest = np.stack([best_split(Placement(phy2log, load.shape[1], topology), load).busiest for phy2log in maps])
    best = busiest.argmin(axis=0)[None]
    return np.take_along_axis(np.stack(maps), best[:, :, None], axis=0)[0], np.take_along_axis(busiest, best, axis=0)[0]
