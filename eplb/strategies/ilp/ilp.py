"""Integer programming: a proven optimum or a proven gap per layer, under hard side constraints.

Each layer starts from `greedy`. Small layers are one model of counts and places, solved by OR-tools' CP-SAT until the
optimum is proven or the time is up; large ones are polished a few ranks at a time. Never worse than the start.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np

from eplb.bounds.lower_bounds import LowerBounds, lower_bounds
from eplb.core.constraints import Constraints
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.problem import BindingBound, GroupMode, LayerCertificate, Plan, Problem, SolveStatus, Survive
from eplb.dispatch.optimal_shares import weighted_placement
from eplb.errors import InputError
from eplb.strategies.certify import MET
from eplb.strategies.constrained.constrained import ConstrainedSearch
from eplb.strategies.greedy.greedy import Greedy
from eplb.strategies.greedy.two_slot_ranks import has_two_slot_ranks, improved_map
from eplb.strategies.ilp.feasibility import Feasibility, nearest_feasible
from eplb.strategies.ilp.layer_search import LayerSearch, LayerState, layout_of_row
from eplb.strategies.ilp.region import whole_layer
from eplb.strategies.ilp.search_control import NUM_THREADS, Clock, SearchControl
from eplb.strategies.ilp.solver import cp_sat
from eplb.strategies.options import check_options
from eplb.strategies.under_rule.objective import FREE_RULES, is_even

FIRST_ROUND = 0.4
"""Of the time: every layer gets its share of this first, and what is not needed goes to the layers left open."""

LEAST_SHARE_S = 1e-3
"""Of a layer: with less time the search ends."""
START_TOLERANCE = 1e-6
"""Of greedy: finer than its default, since a model takes longer than its exchanges."""

_logger = logging.getLogger("eplb")


@final
@dataclass(frozen=True, kw_only=True)
class Ilp:
    """Parameters of the strategy.

    Parameters
    ----------
    time_limit_s
        Time for all layers where the problem names none: seconds of CP-SAT's deterministic clock, about processor time,
        so that equal questions get equal answers. A limit of the problem is wall time for the whole plan instead.
    most_variables
        A layer whose model has at most so many booleans is solved whole.
    progress
        Called with layers done and layers in all, after each layer of each round.
    clock
        Wall seconds from some fixed moment.
    """

    name: ClassVar[str] = "ilp"
    summary: ClassVar[str] = "integer programming: proven optimum or gap, hard side constraints (extra: ilp)"
    time_limit_s: float = 20.0
    most_variables: int = 6000
    progress: Callable[[int, int], None] | None = None
    clock: Clock = time.monotonic

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Plan for the summed load.

        Raises
        ------
        InputError
            For group mode "priced", for a loss to survive, and for dispatch rules other than even ones and those that
            choose the shares for the load.
        MissingExtraError
            Without OR-tools.
        InfeasibleError
            Naming the constraints that no placement meets together, or that none was found in time.
        """
        if problem.group_mode is GroupMode.PRICED:
            raise InputError("group mode priced: ilp does not support it, expected strategy greedy")
        if problem.survive is not Survive.NOTHING:
            raise InputError(f"survive = {problem.survive}: ilp plans for no loss, expected strategy greedy")
        if not is_even(problem.dispatch) and problem.dispatch not in FREE_RULES:
            raise InputError(f"dispatch = {problem.dispatch}: ilp does not model its shares, expected strategy greedy")
        check_options(problem, self.name)
        wall_s = math.inf if problem.time_limit_s is None else problem.time_limit_s
        control = SearchControl(wall_s, self.clock)
        cp_sat()
        searches = self._searches(problem)
        states = _starts(problem, searches, seed, control)
        reached = np.array([state.objective for state in states])
        weighted = _is_weighted(problem)
        bounds = lower_bounds(
            problem.load.total,
            problem.topology,
            rule=problem.dispatch,
            reached=None if weighted else reached,
        )
        limit_s = self.time_limit_s if problem.time_limit_s is None else NUM_THREADS * problem.time_limit_s
        states = self._search(searches, states, bounds.value.tolist(), limit_s=limit_s, seed=seed, control=control)
        return _wrap_up(problem, states, bounds, strategy=self.name, seed=seed)

    def _searches(self, problem: Problem) -> list[LayerSearch]:
        topology, groups = problem.topology, None
        nodes = tuple(topology.node_of_rank.tolist())
        if problem.group_mode is GroupMode.PINNED:
            size = problem.load.num_experts // problem.num_groups
            groups = tuple(expert // size for expert in range(problem.load.num_experts))
        slots, speed = tuple(topology.rank_num_slots.tolist()), tuple(topology.relative_speed.tolist())
        searches = []
        for load in problem.load.total:
            whole = whole_layer(load, slots, speed, problem.constraints, np.inf, even=False)
            if groups is not None:
                whole = replace(whole, group_of_expert=groups, node_of_rank=nodes)
            searches.append(LayerSearch(whole, _is_weighted(problem), self.most_variables))
        return searches

    def _search(  # noqa: PLR0913  # layers, where they stand, and the limits
        self,
        searches: list[LayerSearch],
        states: list[LayerState],
        lower: list[float],
        *,
        limit_s: float,
        seed: int,
        control: SearchControl,
    ) -> list[LayerState]:
        """Two rounds over the layers that are not proven; the second shares out what the first left over."""
        states, left = list(states), limit_s
        for part in (FIRST_ROUND, 1.0):
            is_open = [_is_open(state, bound) for state, bound in zip(states, lower, strict=True)]
            layers = [layer for layer, still in enumerate(is_open) if still]
            share = left * part / max(1, len(layers))
            wall = control.left_s * part * min(1, NUM_THREADS / max(1, len(layers)))
            if share < LEAST_SHARE_S or wall <= 0:
                break

            def work(layer: int, share: float = share, wall: float = wall) -> tuple[int, LayerState]:
                search, own = searches[layer], control.within(wall)
                return layer, search.improve(states[layer], lower[layer], limit_s=share, seed=seed + layer, control=own)

            def tell(found: tuple[int, LayerState], layers: list[int] = layers) -> None:
                self._tell(len(states) - len(layers) + layers.index(found[0]) + 1, len(states))

            before = sum(state.spent_s for state in states)
            found = control.map(work, layers, tell)
            for layer, state in found:
                states[layer] = state
            left -= sum(state.spent_s for state in states) - before
        return states

    def _tell(self, done: int, num_layers: int) -> None:
        _logger.debug("ilp: %d of %d layers", done, num_layers)
        if self.progress is not None:
            self.progress(done, num_layers)


def _is_weighted(problem: Problem) -> bool:
    return problem.dispatch in FREE_RULES


def _is_open(state: LayerState, bound: float) -> bool:
    return not state.is_proven and state.objective > bound * (1 + MET)


def _starts(problem: Problem, searches: list[LayerSearch], seed: int, control: SearchControl) -> list[LayerState]:
    """Greedy's placement; that of the constrained search in layers where it breaks a constraint."""
    free = replace(problem, constraints=Constraints(), dispatch=DispatchRule.EVEN, time_limit_s=None)
    greedy = np.array(Greedy(tolerance=START_TOLERANCE)(free, seed=seed).placement.physical_to_logical_map)
    if has_two_slot_ranks(problem.topology) and problem.group_mode is GroupMode.FREE:
        greedy = improved_map(problem.load.total, greedy, problem.topology)
    layouts = [layout_of_row(row, problem.topology.rank_first_slot) for row in greedy]
    asked, num_experts = problem.constraints, problem.load.num_experts
    ordered = ([asked.in_slot_order(held) for held in layout] for layout in layouts)
    broken = [layer for layer, layout in enumerate(ordered) if any(asked.breaches(layout, num_experts))]
    if broken and problem.group_mode is GroupMode.FREE:
        rest = replace(problem, time_limit_s=None if math.isinf(control.left_s) else max(control.left_s, LEAST_SHARE_S))
        load = problem.load.total
        found = ConstrainedSearch(tolerance=START_TOLERANCE)(load[:, :, None], load, rest, seed=seed)
        for layer in broken:
            layouts[layer] = layout_of_row(found[layer], problem.topology.rank_first_slot)
    elif broken:
        for layer in broken:
            feasibility = Feasibility(searches[layer].whole, problem.least_replicas, seed, control)
            layouts[layer] = nearest_feasible(feasibility, layouts[layer])
    return [
        LayerState(layout, search.objective_of(layout), 0.0, is_proven=False, spent_s=0.0)
        for layout, search in zip(layouts, searches, strict=True)
    ]


def _wrap_up(problem: Problem, states: list[LayerState], bounds: LowerBounds, *, strategy: str, seed: int) -> Plan:
    """The plan, its objective recomputed in tokens and its bounds the better of proofs and search."""
    in_order = problem.constraints.in_slot_order
    phy2log = np.array([[e for held in state.layout for e in in_order(held)] for state in states], dtype=np.int32)
    placement = Placement(phy2log, problem.load.num_experts, problem.topology)
    if problem.dispatch is DispatchRule.WEIGHTED:
        placement = weighted_placement(placement, problem.load)
    layers = tuple(
        _certificate(state, bound, binding)
        for state, bound, binding in zip(states, bounds.value.tolist(), bounds.binding, strict=True)
    )
    open_layers = sum(layer.status is not SolveStatus.OPTIMAL for layer in layers)
    status = SolveStatus.FEASIBLE if open_layers else SolveStatus.OPTIMAL
    note = f"ilp: optimum proven in {len(layers) - open_layers} of {len(layers)} layers"
    return Plan(
        placement,
        problem.load.shape,
        strategy,
        status=status,
        seed=seed,
        layers=layers,
        notes=(note,),
        load_digest=problem.load.digest,
    )


def _certificate(state: LayerState, bound: float, binding: BindingBound) -> LayerCertificate:
    if state.lower > bound * (1 + 1e-12):
        bound, binding = state.lower, BindingBound.SEARCH
    met = state.is_proven or state.objective <= bound * (1 + MET)
    status = SolveStatus.OPTIMAL if met else SolveStatus.FEASIBLE
    return LayerCertificate(state.objective, min(bound, state.objective), binding, status)
