"""Computes the busiest rank of a map under a dispatch rule, for certificates."""

import numpy as np

from eplb.core.arrays import Floats
from eplb.core.dispatch_rule import EVEN_RULES, DispatchRule
from eplb.core.placement import Placement
from eplb.core.problem import Problem
from eplb.dispatch.drawn_shares import drawn_shares
from eplb.dispatch.optimal_shares import best_split
from eplb.dispatch.replica_shares import ReplicaShares

FREE_RULES = (DispatchRule.WEIGHTED, DispatchRule.ONLINE)
"""Rules under which the shares are chosen for the load: the objective is the best that the map allows."""


def is_even(rule: DispatchRule) -> bool:
    """Whether all replicas of an expert get the same share, wherever they are."""
    return rule in EVEN_RULES


def busiest_under_rule(problem: Problem, placement: Placement) -> Floats:
    """[L] tokens on the busiest rank, over its relative speed, for the total load under the problem's rule."""
    load, topology = problem.load.total, placement.topology
    if problem.dispatch in FREE_RULES:
        return best_split(placement, load).busiest
    phy2log = placement.physical_to_logical_map
    slot_load = np.take_along_axis(load, np.maximum(phy2log, 0), axis=1) * slot_shares_under_rule(problem, placement)
    rank_load = np.add.reduceat(slot_load, topology.rank_first_slot[:-1], axis=1)
    return np.asarray((rank_load / topology.relative_speed).max(axis=1))


def slot_shares_under_rule(problem: Problem, placement: Placement) -> Floats:
    """[L, P] share of its expert's tokens that each slot gets: as SGLang draws them under `sglang_static`."""
    if problem.dispatch is DispatchRule.SGLANG_STATIC:
        return drawn_shares(placement, problem.load.shape, problem.sources)
    shares = ReplicaShares(problem.dispatch, placement.topology, problem.sources)
    return shares.of_slots(placement.physical_to_logical_map, placement.num_experts)
