"""Builds the integer model of a region: where each expert is, in how many replicas, and the load of the busiest rank.

Variables: z[e, c] expert e has c replicas; u[e, c, r] it has and one lies on rank r; T the busiest rank in integers.
Minimise T. Every replica of an expert on another rank, every slot taken.
"""

import math
from collections import Counter
from typing import Any, final

import numpy as np

from eplb.strategies.ilp.region import Layout, Region, Replicas
from eplb.strategies.ilp.search_control import SearchControl
from eplb.strategies.ilp.side_constraints import add_side_constraints
from eplb.strategies.ilp.solver import Answer, cp_sat, solve

MOST_ORDERED_EXPERTS = 20
"""Ranks that are alike are put in lexicographic order of which of the heaviest experts they hold: so many of them."""

Variable = Any  # CP-SAT's own objects are untyped


@final
class RegionModel:
    """A CP-SAT model of one region.

    Parameters
    ----------
    region
        What is to be arranged.
    scale
        Integer units a token; see `scale_of`.
    weighted
        Whether a replica's share is free instead of one over the number of replicas.
    """

    def __init__(self, region: Region, scale: float, *, weighted: bool) -> None:
        self.region = region
        self.scale = scale
        self.weighted = weighted
        self.model = cp_sat().CpModel()
        self.num_of: dict[tuple[int, Replicas], Variable] = {}
        self.on: dict[tuple[int, Replicas, int], Variable] = {}
        self.flow: dict[tuple[int, int], Variable] = {}
        self._add_replicas()
        self.home = add_side_constraints(self.model, region, self.holds)

    def _add_replicas(self) -> None:
        model, region = self.model, self.region
        places = range(len(region.slots))
        for expert, ways in region.choices.items():
            for way in ways:
                self.num_of[expert, way] = model.new_bool_var("")
                for place in places:
                    self.on[expert, way, place] = model.new_bool_var("")
                model.add(sum(self.on[expert, way, place] for place in places) == way.inside * self.num_of[expert, way])
            model.add_exactly_one(self.num_of[expert, way] for way in ways)
            for place in places:
                model.add_at_most_one(self.on[expert, way, place] for way in ways)
        for place, slots in enumerate(region.slots):
            model.add(sum(self.holds(expert, place) for expert in region.choices) == slots)

    def holds(self, expert: int, place: int) -> Variable:
        """1 if the expert lies on the region's rank `place`, as a linear expression."""
        return sum(self.on[expert, way, place] for way in self.region.choices[expert])

    def order_ranks(self) -> None:
        """Break the symmetry of ranks that are alike: what they hold falls lexicographically with their number."""
        if not self.region.ranks_are_alike:
            return
        heaviest = sorted(self.region.choices, key=lambda expert: (-self.region.load[expert], expert))
        heaviest = heaviest[:MOST_ORDERED_EXPERTS]
        for place in range(len(self.region.slots) - 1):
            self.model.add(
                sum(
                    (1 << (len(heaviest) - 1 - i)) * (self.holds(expert, place) - self.holds(expert, place + 1))
                    for i, expert in enumerate(heaviest)
                )
                >= 0
            )

    def ordered(self, layout: Layout) -> Layout:
        """The same layout with alike ranks renamed as `order_ranks` asks."""
        if not self.region.ranks_are_alike:
            return layout
        heaviest = sorted(self.region.choices, key=lambda expert: (-self.region.load[expert], expert))
        heaviest = heaviest[:MOST_ORDERED_EXPERTS]
        return sorted(layout, key=lambda held: [expert not in held for expert in heaviest])

    def minimise_busiest(self, lower: float, upper: float) -> None:
        """Make T the objective, between two loads (tokens over speed) within which the optimum is known to lie."""
        lowest = max(0, math.floor(lower * self.scale * (1 - 1e-12)))
        highest = math.ceil(upper * self.scale * (1 + 1e-12)) + self.slack
        self.busiest = self.model.new_int_var(lowest, max(lowest, highest), "busiest")
        for place in range(len(self.region.slots)):
            if self.weighted:
                self._bound_flow(place)
            else:
                self.model.add(
                    sum(
                        self.units(expert, way, place) * self.on[expert, way, place]
                        for expert, ways in self.region.choices.items()
                        for way in ways
                    )
                    <= self.busiest
                )
        if self.weighted:
            for expert in self.region.choices:
                total = math.floor(self.region.load[expert] * self.scale)
                self.model.add(sum(self.flow[expert, p] for p in range(len(self.region.slots))) == total)
        self.model.minimize(self.busiest)

    def _bound_flow(self, place: int) -> None:
        for expert in self.region.choices:
            total = math.floor(self.region.load[expert] * self.scale)
            self.flow[expert, place] = self.model.new_int_var(0, total, "")
            self.model.add(self.flow[expert, place] <= total * self.holds(expert, place))
        # Speeds rounded up to a thousandth part: the model allows a little more than the ranks do.
        speed = math.ceil(self.region.speed[place] * 1000)
        self.model.add(1000 * sum(self.flow[expert, place] for expert in self.region.choices) <= speed * self.busiest)

    @property
    def slack(self) -> int:
        """Units by which rounding whole flows can lift the optimum: a unit of tokens on the slowest rank."""
        return 1 + math.ceil(1 / min(self.region.speed)) if self.weighted else 0

    def units(self, expert: int, way: Replicas, place: int) -> int:
        """Integer units of one replica on a rank of the region, rounded down."""
        return math.floor(self.region.load[expert] * self.scale / (way.total * self.region.speed[place]))

    def hint(self, layout: Layout) -> None:
        """Start from a placement of the region: a value for every variable, and no worse answer is accepted.

        Weighted models are hinted without their flows.
        """
        region = self.region
        layout = self.ordered(layout)
        found = Counter(expert for held in layout for expert in held)
        for expert, ways in region.choices.items():
            for way in ways:
                here = way.inside == found[expert]
                self.model.add_hint(self.num_of[expert, way], here)
                for place, held in enumerate(layout):
                    self.model.add_hint(self.on[expert, way, place], here and expert in held)
        if region.group_of_expert is not None:
            group_of, nodes = region.group_of_expert, region.node_of_rank or ()
            homes = {(group_of[e], nodes[place]) for place, held in enumerate(layout) for e in held}
            for home, variable in self.home.items():
                self.model.add_hint(variable, home in homes)
        if self.weighted:
            return
        chosen = {e: next(way for way in ways if way.inside == found[e]) for e, ways in region.choices.items()}
        top = max(sum(self.units(e, chosen[e], place) for e in held) for place, held in enumerate(layout))
        self.model.add_hint(self.busiest, top)
        self.model.add(self.busiest <= top)

    def run(self, *, limit_s: float, seed: int, control: SearchControl) -> tuple[Answer, Layout | None]:
        """Solve; the placement found, each rank's experts ascending, or None."""
        answer = solve(self.model, limit_s=limit_s, seed=seed, control=control)
        if not answer.has_solution:
            return answer, None
        value = answer.solver.value
        layout = [
            [e for e, ways in self.region.choices.items() if any(value(self.on[e, way, place]) for way in ways)]
            for place in range(len(self.region.slots))
        ]
        return answer, layout

    def proven_load(self, answer: Answer) -> float:
        """The bound of the answer in tokens over speed, rounded down."""
        units = max(0.0, answer.bound - self.slack)
        return float(np.nextafter(units / self.scale, 0.0))
