"""Solves one layer within a time budget: exactly where one model is small enough, else by neighbourhoods."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb.dispatch.optimal_shares import busiest_of_layout
from eplb.strategies.ilp.model import RegionModel
from eplb.strategies.ilp.neighbourhood import SECONDS_PER_VARIABLE, polish, rank_times
from eplb.strategies.ilp.region import Layout, Region, scale_of, whole_layer
from eplb.strategies.ilp.search_control import SearchControl

POLISH_SHARE = 0.3
"""Of a small layer's budget: what neighbourhoods may take before the whole model gets a good start from them."""
FEWEST_RANKS_TO_POLISH = 5
MOST_RANKS_TO_ENUMERATE = 8
MOST_LISTED = 1_000_000
"""Ways to place half of the experts that enumeration keeps in memory."""
MOST_CASES = 1e8
"""Ways to place the other half, equal ranks exchanged, that it may have to look at."""
CASES_PER_SECOND = 1e7


@final
@dataclass(frozen=True)
class LayerState:
    """Where the search of a layer stands."""

    layout: Layout
    objective: float
    """Tokens over speed on the busiest rank."""
    lower: float
    """Proven in the same unit; 0 where this search proved nothing."""
    is_proven: bool
    """Whether no placement is better, up to the rounding of the scale."""
    spent_s: float
    """Deterministic seconds so far."""


@final
@dataclass(frozen=True)
class LayerSearch:
    """How to search one layer.

    Parameters
    ----------
    whole
        The layer with every count it may have.
    weighted
        Whether the shares of replicas are free; `objective_of` then splits as well as possible.
    most_variables
        A model of at most so many booleans is solved whole.
    """

    whole: Region
    weighted: bool
    most_variables: int

    def objective_of(self, layout: Layout) -> float:
        """Tokens over speed on the busiest rank."""
        if not self.weighted:
            return float(rank_times(self.whole, layout).max())
        return busiest_of_layout(self.whole.load, layout, self.whole.speed)

    def improve(
        self, state: LayerState, lower: float, *, limit_s: float, seed: int, control: SearchControl
    ) -> LayerState:
        """Search on from a state; never worse than it.

        Parameters
        ----------
        state
            Where to start.
        lower
            A bound from elsewhere, in tokens over speed.
        limit_s
            Deterministic seconds.
        seed
            Of the search.
        control
            Wall time left.
        """
        listed, cost_s = self._enumeration()
        if listed > 0 and cost_s <= min(limit_s, control.left_s):
            return self._enumerate(state, listed, cost_s)
        region = self._reduced(state.objective)
        small = region.num_variables <= self.most_variables
        left = limit_s
        if not self.weighted and (not small or len(region.slots) >= FEWEST_RANKS_TO_POLISH):
            share = left * POLISH_SHARE if small else left
            wall = control.left_s * POLISH_SHARE if small else control.left_s
            polished = polish(region, state.layout, lower, limit_s=share, seed=seed, control=control.within(wall))
            left -= polished.spent_s
            state = self._with(state, polished.layout, polished.spent_s)
        building_s = SECONDS_PER_VARIABLE * region.num_variables
        if not small or left <= 0 or control.left_s <= building_s:
            return state
        return self._solve_whole(state, lower, limit_s=left, seed=seed, control=control)

    def _enumeration(self) -> tuple[int, float]:
        """How many experts enumeration would list, 0 where it does not apply, and about how many seconds it takes."""
        whole = self.whole
        free = whole.constraints.is_empty and whole.group_of_expert is None and not self.weighted
        num_experts, num_ranks = whole.load.size, len(whole.slots)
        if not free or num_experts < 2 or num_ranks < 2 or num_ranks > MOST_RANKS_TO_ENUMERATE:
            return 0, 0.0
        num_sets = (1 << num_ranks) - 1
        listed = min(num_experts - 1, int(math.log(MOST_LISTED) / math.log(num_sets)))
        cases = (num_experts - listed) * math.log(num_sets) - math.log(math.factorial(num_ranks))
        if cases > math.log(MOST_CASES):
            return 0, 0.0
        return listed, (num_sets**listed + math.exp(cases)) / CASES_PER_SECOND

    def _enumerate(self, state: LayerState, num_listed: int, cost_s: float) -> LayerState:
        from eplb.strategies.ilp.small_exact_kernel import find_optimum

        whole = self.whole
        order = np.argsort(-whole.load, kind="stable")
        mask_of = np.zeros(whole.load.size, dtype=np.int64)
        slots, speed = np.array(whole.slots, dtype=np.int64), np.array(whole.speed)
        find_optimum(whole.load[order], slots, speed, num_listed, state.objective, mask_of)
        if mask_of.any():
            layout = [[int(e) for e, m in zip(order, mask_of, strict=True) if m >> r & 1] for r in range(len(slots))]
            state = self._with(state, [sorted(held) for held in layout], 0.0)
        return replace(state, lower=state.objective, is_proven=True, spent_s=state.spent_s + cost_s)

    def _solve_whole(
        self, state: LayerState, lower: float, *, limit_s: float, seed: int, control: SearchControl
    ) -> LayerState:
        region = self._reduced(state.objective)
        most_replicas = max(ways[-1].total for ways in region.choices.values())
        alike = len(set(region.speed)) == 1
        scale = scale_of(region.load, len(region.slots), most_replicas, exact=alike and not self.weighted)
        model = RegionModel(region, scale, weighted=self.weighted)
        model.order_ranks()
        model.minimise_busiest(lower, state.objective)
        model.hint(state.layout)
        answer, layout = model.run(limit_s=limit_s, seed=seed, control=control)
        if layout is not None:
            state = self._with(state, layout, 0.0)
        proven = max(state.lower, model.proven_load(answer))
        is_proven = answer.is_proven and answer.has_solution
        return replace(
            state,
            lower=min(proven, state.objective),
            is_proven=state.is_proven or is_proven,
            spent_s=state.spent_s + answer.spent_s,
        )

    def _with(self, state: LayerState, layout: Layout, spent_s: float) -> LayerState:
        """The better of a state and another layout, with the time added."""
        objective = self.objective_of(layout)
        if objective < state.objective:
            state = replace(state, layout=layout, objective=objective)
        return replace(state, spent_s=state.spent_s + spent_s)

    def _reduced(self, upper: float) -> Region:
        """The layer without counts that no placement better than `upper` can have."""
        whole = self.whole
        reduced = whole_layer(whole.load, whole.slots, whole.speed, whole.constraints, upper, even=not self.weighted)
        return replace(reduced, group_of_expert=whole.group_of_expert, node_of_rank=whole.node_of_rank)


def layout_of_row(row: NDArray[np.int32], first_slot: NDArray[np.int64]) -> Layout:
    """[R] the experts of each rank of a layer's map [P]."""
    edges = first_slot.tolist()
    return [row[begin:end].tolist() for begin, end in pairwise(edges)]
