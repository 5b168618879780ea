"""Replans for a dispatch rule that is not even: from the live placement to a target, with few replicas moved.

Layers over the target are lowered by the exchanges of `under_rule`, which end where the target is met. Layers that stay
over it take a fresh greedy plan if that is better. Where shares are chosen for the load, the exchanges are made under
even dispatch and each layer takes the map with the fewest fetches whose best split meets the target.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from eplb.bounds.lower_bounds import lower_bounds
from eplb.core.arrays import Floats, Ints, Map
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.migration import keep_slots
from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.core.problem import Problem
from eplb.core.topology import Topology
from eplb.dispatch.optimal_shares import best_split
from eplb.dispatch.replica_shares import ReplicaShares
from eplb.errors import InfeasibleError
from eplb.strategies.greedy.greedy import Greedy
from eplb.strategies.incremental.move_budget import choose_within
from eplb.strategies.under_rule.fit import settled
from eplb.strategies.under_rule.objective import FREE_RULES, busiest_under_rule
from eplb.strategies.under_rule.search import Limits, RuleSearch
from eplb_traces import ExpertLoad

AT_LIMIT = 1e-9  # relative distance at which a rank still counts as under its limit
PARTS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)  # of the way from the limit up to where a layer is: limits within a budget


class _Try(NamedTuple):
    """A map for every layer."""

    phy2log: Map
    """[L, P]"""
    busiest: Floats
    """[L] in expectation over SGLang's draw."""
    num_fetched: Ints
    """[L]"""


def replanned_under_rule(
    problem: Problem, old: Map, *, target: float, max_moves: int | None
) -> tuple[Map, tuple[str, ...]]:
    """[L, P] a map near the live one that meets the target as far as possible, and notes.

    Parameters
    ----------
    problem
        Load, topology and rule.
    old
        [L, P] the live map; -1 is an empty slot.
    target
        Every layer is to have at most this times its lower bound on the busiest rank.
    max_moves
        Most replicas that ranks may fetch, over all layers; None for as many as the target takes. The draw of
        `sglang_static` is balanced only without this limit.
    """
    load, topology = problem.load.total, problem.topology
    limit = target * lower_bounds(load, topology, rule=problem.dispatch, full_and_distinct=False).value
    live = _tried(problem, old, old)
    over = _judged(problem, old) > limit * (1 + AT_LIMIT)
    if not over.any():
        return old, (f"incremental: every layer is within {target:g} of its bound, so nothing moves",)
    best = live
    for start in (_lowered(problem, old, limit), *_others(problem, old)):
        again = over & (best.busiest > limit * (1 + AT_LIMIT))
        best = _pick(again & (start.busiest < best.busiest * (1 - AT_LIMIT)), start, best)
    if max_moves is not None and best.num_fetched.sum() > max_moves:
        best = _within_budget(problem, live, best, limit, max_moves)
    phy2log = best.phy2log
    if problem.dispatch is DispatchRule.SGLANG_STATIC and max_moves is None:
        phy2log, _ = settled(problem, phy2log, Limits(), target=limit)
        keep_slots(old, phy2log, topology.rank_first_slot)
        gained = _judged(problem, phy2log) < _judged(problem, old) * (1 - AT_LIMIT)
        phy2log = np.where(gained[:, None], phy2log, old)
    return phy2log, _notes(problem, old, phy2log, limit, target)


def _tried(problem: Problem, old: Map, new: Map) -> _Try:
    """What a map gives and costs."""
    load, topology = problem.load.total, problem.topology
    if problem.dispatch in FREE_RULES:
        busiest = best_split(Placement(new, load.shape[1], topology), load).busiest
    else:
        shares = ReplicaShares(problem.dispatch, topology, problem.sources).of_slots(new, load.shape[1])
        slot_load = np.take_along_axis(load, np.maximum(new, 0), axis=1) * shares
        rank_load = np.add.reduceat(slot_load, topology.rank_first_slot[:-1], axis=1)
        busiest = (rank_load / topology.relative_speed).max(axis=1)
    return _Try(new, busiest, _num_fetched(old, new, topology))


def _lowered(problem: Problem, old: Map, limit: Floats) -> _Try:
    """Exchanges from the live map that end at a limit [L]; under even dispatch where shares are chosen for the load."""
    rule = DispatchRule.EVEN if problem.dispatch in FREE_RULES else problem.dispatch
    shares = ReplicaShares(rule, problem.topology, problem.sources)
    found = RuleSearch()(problem.load.total, old, shares, limits=Limits(), target=limit).phy2log
    keep_slots(old, found, problem.topology.rank_first_slot)
    return _tried(problem, old, found)


def _others(problem: Problem, old: Map) -> list[_Try]:
    """A fresh greedy plan; nothing if the slots are too unequal for one."""
    rule = DispatchRule.SGLANG_DYNAMIC if problem.dispatch is DispatchRule.SGLANG_STATIC else problem.dispatch
    total = ExpertLoad(problem.load.total[None])
    try:
        fresh = Greedy()(replace(problem, load=total, dispatch=rule)).placement.physical_to_logical_map.copy()
    except InfeasibleError:
        return []
    keep_slots(old, fresh, problem.topology.rank_first_slot)
    return [_tried(problem, old, fresh)]


def _pick(rows: np.ndarray[tuple[int], np.dtype[np.bool_]], new: _Try, old: _Try) -> _Try:
    """The layers `rows` of one, the others of the other."""
    return _Try(
        np.where(rows[:, None], new.phy2log, old.phy2log),
        np.where(rows, new.busiest, old.busiest),
        np.where(rows, new.num_fetched, old.num_fetched),
    )


def _within_budget(problem: Problem, live: _Try, best: _Try, limit: Floats, max_moves: int) -> _Try:
    """Each layer goes to one of several limits, chosen where a fetched replica lowers the busiest ranks most."""
    tries = [best]
    tries += [
        _lowered(problem, live.phy2log, limit + part * np.maximum(live.busiest - limit, 0.0)) for part in PARTS[1:]
    ]
    fetched = np.stack([one.num_fetched for one in tries], axis=1)
    gain = live.busiest[:, None] - np.stack([one.busiest for one in tries], axis=1)
    gain[gain <= AT_LIMIT * live.busiest[:, None]] = 0.0
    chosen, result = choose_within(fetched, gain, max_moves), live
    for index, one in enumerate(tries):
        result = _pick(chosen == index, one, result)
    return result


def _num_fetched(old: Map, new: Map, topology: Topology) -> Ints:
    """[L] pairs of rank and expert that only the new map has."""
    num_ids = int(max(old.max(), new.max())) + 2
    layer = np.arange(old.shape[0])[:, None] * topology.num_ranks * num_ids
    place = layer + topology.rank_of_slot * num_ids + 1
    lacking = np.setdiff1d((place + new)[new != EMPTY_SLOT], (place + old)[old != EMPTY_SLOT])
    return np.bincount(lacking // (topology.num_ranks * num_ids), minlength=old.shape[0])


def _judged(problem: Problem, phy2log: Map) -> Floats:
    """[L] the busiest rank under the rule, the draw of `sglang_static` included."""
    return busiest_under_rule(problem, Placement(phy2log, problem.load.num_experts, problem.topology))


def _notes(problem: Problem, old: Map, new: Map, limit: Floats, target: float) -> tuple[str, ...]:
    num_moved, changed = _num_fetched(old, new, problem.topology).sum(), (old != new).any(axis=1)
    busiest = _judged(problem, new)
    short = busiest > limit * (1 + AT_LIMIT)
    text = f"incremental: {num_moved} replicas moved for {changed.sum()} layers, under {problem.dispatch} dispatch"
    if not short.any():
        return (text,)
    worst = float((busiest[short] / limit[short]).max()) * target
    return (text, f"{short.sum()} layers stay over the target, the worst at {worst:.4f} of its bound")
