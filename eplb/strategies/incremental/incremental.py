"""Plans from the live placement to one that is good enough, with few replicas moved.

Only layers over the target are changed. In each, the step that removes most overload per fetched replica is taken until
all ranks are under the limit: exchange two replicas of two ranks, or replace a replica of an expert that has several.
Where that fails, or would move a good part of the layer, a fresh greedy plan with its ranks renamed to fit the old one
is taken if it reaches the limit (with fewer moves, where both do), or comes closer where the search is far off. A
budget of moves goes where it lowers the busiest ranks most.

Source: our own. The steps are those of vllm-ascend's SwiftBalancer (exchange hot with cold, re-choose a redundant
expert); the overload over a target as the measure, and the price of a step counted against the live placement, are not.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from eplb.bounds.lower_bounds import lower_bounds
from eplb.core.arrays import Floats, Ints, Map
from eplb.core.counts import check_max_moves
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.migration import keep_slots, rename_ranks
from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.core.problem import Plan, Problem
from eplb.core.topology import Topology
from eplb.errors import InfeasibleError, InputError
from eplb.strategies.certify import certified_plan
from eplb.strategies.greedy.greedy import Greedy
from eplb.strategies.incremental.incremental_under_rule import replanned_under_rule
from eplb.strategies.incremental.move_budget import choose_within
from eplb.strategies.under_rule.objective import is_even

AT_LIMIT = 1e-9  # relative distance at which a rank still counts as under its limit: rounding of sums over its slots
FRESH_SHARE = 0.25  # of a layer's slots: a layer that moves more than this is planned afresh as well
LOOSER = (0.002, 0.005, 0.01, 0.02)  # limits to fall back on, above the one that a search got stuck far from
FAR = 0.02  # a search that ends further over its limit than this leaves the layer to a fresh plan, if that is better
BUDGET_STEPS = np.array([0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
# The price of being over the limit at all, in mean rank loads: proportional to how much slack the limit leaves, within
# bounds; then what further searches multiply it with. Tried on the DeepSeek-V3 workloads.
OVER_PRICE_PER_SLACK, LEAST_OVER_PRICE, MOST_OVER_PRICE = 2.0, 0.005, 0.08
OVER_PRICE_FACTORS = np.array([1.0, 0.5, 2.0, 0.25, 0.0])


class Candidates(NamedTuple):
    """A new map for some layers."""

    phy2log: Map
    """[L, P]"""
    num_fetched: Ints
    """[L] replicas that a rank must fetch."""
    busiest: Floats
    """[L] tokens on the busiest rank, over its relative speed."""

    def select(self, which: NDArray[np.bool_] | Ints) -> "Candidates":
        """The candidates of some layers."""
        return Candidates(self.phy2log[which], self.num_fetched[which], self.busiest[which])

    def overwrite(self, rows: NDArray[np.bool_], other: "Candidates", where: NDArray[np.bool_]) -> None:
        """Overwrite the layers `rows` by those of `other`, which has only these, `where` that is True."""
        rows = rows.copy()
        rows[rows] = where
        self.phy2log[rows], self.num_fetched[rows] = other.phy2log[where], other.num_fetched[where]
        self.busiest[rows] = other.busiest[where]


@final
@dataclass(frozen=True, kw_only=True)
class Incremental:
    """Parameters of the strategy.

    Parameters
    ----------
    previous
        The placement that is live.
    target
        Every layer is to have at most this times its lower bound on the busiest rank; the bound is the mean rank load
        unless it is proven that no placement gets there. Layers that do already stay as they are.
    max_moves
        Most replicas that ranks may fetch, over all layers; None for as many as the target takes.
    searches
        Searches a layer, 1 to 5, of which the one with the fewest moves is kept.
    """

    name: ClassVar[str] = "incremental"
    summary: ClassVar[str] = "from the live placement to a target with few replicas moved"
    previous: Placement
    target: float = 1.05
    max_moves: int | None = None
    searches: int = 1

    def __post_init__(self) -> None:
        if not 1.0 <= self.target < float("inf"):
            raise InputError(f"target = {self.target}: expected max/mean >= 1")
        check_max_moves(self.max_moves)
        if not 1 <= self.searches <= OVER_PRICE_FACTORS.size:
            raise InputError(f"searches = {self.searches}: expected 1 to {OVER_PRICE_FACTORS.size}")

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Move as little as reaches the target for the summed load; deterministic, so the seed changes nothing."""
        check_previous(self.previous, problem)
        if not is_even(problem.dispatch):
            phy2log, notes = replanned_under_rule(
                problem, self.previous.physical_to_logical_map, target=self.target, max_moves=self.max_moves
            )
            return certified_plan(problem, phy2log, strategy=self.name, seed=seed, notes=notes)
        load, old = problem.load.total, self.previous.physical_to_logical_map
        busiest = busiest_rank(load, old, problem.topology)
        plain = not ((old == EMPTY_SLOT).any() or self.previous.duplicate_slots.any())
        bound = lower_bounds(load, problem.topology, full_and_distinct=plain).value
        limit = self.target * bound
        over = busiest > limit * (1 + AT_LIMIT)
        moved = Candidates(old.copy(), np.zeros(old.shape[0], np.int64), busiest.copy())
        if over.any():
            reached = self._reach(load[over], old[over], limit[over], problem.topology)
            moved.overwrite(over, reached, reached.busiest < busiest[over] * (1 - AT_LIMIT))
        if self.max_moves is not None and moved.num_fetched.sum() > self.max_moves:
            moved = self._spend(problem, moved, limit, busiest)
        return certified_plan(
            problem,
            moved.phy2log,
            strategy=self.name,
            objective=moved.busiest,
            seed=seed,
            notes=self._notes(moved, over, limit),
        )

    def _reach(self, load: Floats, old: Map, limit: Floats, topology: Topology) -> Candidates:
        """Bring layers under their limits; see the file's head for when a fresh plan takes part."""
        from eplb.strategies.incremental.incremental_kernel import MANY_SLOTS

        moved = reduce_overload(load, old, limit, topology, factors=OVER_PRICE_FACTORS, searches=self.searches)
        # With many slots a search is slow: layers that get stuck are planned afresh at once.
        for slack in LOOSER if topology.num_slots <= MANY_SLOTS else ():
            stuck = moved.busiest > limit * (1 + slack)
            if stuck.any():
                near = limit[stuck] * (1 + slack)
                again = reduce_overload(
                    load[stuck], old[stuck], near, topology, factors=OVER_PRICE_FACTORS[:1], searches=1
                )
                moved.overwrite(stuck, again, again.busiest < moved.busiest[stuck])
        dear = moved.busiest > limit * (1 + AT_LIMIT)
        dear |= moved.num_fetched > FRESH_SHARE * old.shape[1]
        if not dear.any():
            return moved
        mine, fresh = moved.select(dear), _fresh(load[dear], old[dear], topology)
        if fresh is None:
            return moved
        reached, reached_fresh = (m.busiest <= limit[dear] * (1 + AT_LIMIT) for m in (mine, fresh))
        better = reached_fresh & (~reached | (fresh.num_fetched < mine.num_fetched))
        better |= (mine.busiest > limit[dear] * (1 + FAR)) & (fresh.busiest < mine.busiest)
        moved.overwrite(dear, fresh, better)
        return moved

    def _spend(self, problem: Problem, reached: Candidates, limit: Floats, busiest: Floats) -> Candidates:
        """Go part of the way: each layer to one of several limits, chosen where a move lowers the busiest ranks most.

        Greedy over layers and limits by tokens off the busiest rank per replica moved, ties to the lowest layer and the
        lower limit, until nothing more fits the budget.
        """
        rows = np.nonzero(reached.num_fetched)[0]
        load, old = problem.load.total[rows], self.previous.physical_to_logical_map[rows]
        tries = [reached.select(rows)]
        for part in BUDGET_STEPS[1:]:
            between = limit[rows] + part * (busiest[rows] - limit[rows])
            tries.append(
                reduce_overload(load, old, between, problem.topology, factors=OVER_PRICE_FACTORS[:1], searches=1)
            )
        fetched = np.stack([one.num_fetched for one in tries], axis=1)
        gain = busiest[rows, None] - np.stack([one.busiest for one in tries], axis=1)
        gain[gain <= AT_LIMIT * busiest[rows, None]] = 0.0
        chosen = choose_within(fetched, gain, self.max_moves or 0)
        spent = Candidates(
            self.previous.physical_to_logical_map.copy(), np.zeros_like(reached.num_fetched), busiest.copy()
        )
        for at, row in enumerate(rows):
            if chosen[at] >= 0:
                best = tries[chosen[at]]
                spent.phy2log[row], spent.num_fetched[row] = best.phy2log[at], best.num_fetched[at]
                spent.busiest[row] = best.busiest[at]
        return spent

    def _notes(self, moved: Candidates, over: NDArray[np.bool_], limit: Floats) -> tuple[str, ...]:
        if not over.any():
            return (f"incremental: every layer is within {self.target:g} of its bound, so nothing moves",)
        if not moved.num_fetched.any() and self.max_moves is None:
            return (f"incremental: nothing gained: no moves lower the {over.sum()} layers over the target",)
        short = moved.busiest > limit * (1 + AT_LIMIT)
        text = f"incremental: {moved.num_fetched.sum()} replicas moved for {over.sum()} layers over the target"
        if not short.any():
            return (text,)
        why = "none was found" if self.max_moves is None else f"the budget is {self.max_moves} moves"
        worst = float((moved.busiest[short] / limit[short]).max()) * self.target
        return (text, f"{short.sum()} layers stay over the target ({why}), the worst at {worst:.4f} of its bound")


class Held(NamedTuple):
    """Experts that ranks have and need not fetch."""

    phy2log: Map
    """[L, Q] by rank, -1 in empty slots."""
    first_slot: Ints
    """[R + 1] where each rank's begin, then Q."""


def reduce_overload(  # noqa: PLR0913  # the layers, and how to search
    load: Floats, old: Map, limit: Floats, topology: Topology, *, factors: Floats, searches: int,
    held: Held | None = None,
) -> Candidates:  # fmt: skip
    """Bring the busiest rank of each layer to its limit with few replicas moved, as far as the search gets.

    Parameters
    ----------
    load, old, limit
        [L, E] tokens, not all zero in any layer; [L, P] the map to start from; [L] tokens over relative speed.
    factors, searches
        Of the price of being over, one a search; searches made even if an earlier one reaches the limit.
    held
        What ranks have, where that is not what `old` holds.
    """
    from eplb.strategies.incremental.incremental_kernel import reduce_overloads

    num_layers, num_experts = load.shape
    mean = load.sum(axis=1, keepdims=True) / topology.num_ranks
    scaled = np.concatenate([load / mean, np.zeros((num_layers, 1))], axis=1)
    held = Held(old, topology.rank_first_slot) if held is None else held
    ids, live = (np.where(ids == EMPTY_SLOT, np.int32(num_experts), ids) for ids in (old, held.phy2log))
    limits = limit[:, None] / mean * topology.relative_speed
    price = np.clip(OVER_PRICE_PER_SLACK * (limit / mean[:, 0] - 1), LEAST_OVER_PRICE, MOST_OVER_PRICE)
    prices = price[:, None] * factors
    new, num_fetched = np.empty_like(ids), np.empty(num_layers, np.int64)

    def work(rows: slice) -> None:
        reduce_overloads(
            scaled[rows], ids[rows], live[rows], held.first_slot, topology.rank_first_slot, topology.rank_of_slot,
            limits[rows], prices[rows], searches, new[rows], num_fetched[rows],
        )  # fmt: skip

    for_layer_chunks(work, num_layers)
    new[new == num_experts] = EMPTY_SLOT
    keep_slots(old, new, topology.rank_first_slot)
    return Candidates(new, num_fetched, busiest_rank(load, new, topology))


def _fresh(load: Floats, old: Map, topology: Topology) -> Candidates | None:
    """A greedy plan, its ranks renamed to keep what they can; None if replicas cannot be kept apart."""
    try:
        new, _ = Greedy().pack(load, topology.rank_first_slot, topology.relative_speed)
    except InfeasibleError:
        return None
    num_experts = load.shape[1]
    before, after = (Placement(phy2log, num_experts, topology) for phy2log in (old, new))
    renamed = rename_ranks(before, after, ranks_per_block=topology.num_ranks).physical_to_logical_map.copy()
    return Candidates(renamed, _num_fetched(old, renamed, num_experts, topology), busiest_rank(load, renamed, topology))


def _num_fetched(old: Map, new: Map, num_experts: int, topology: Topology) -> Ints:
    """[L] pairs of rank and expert that only the new maps have; the new ones have no empty slots."""
    pairs_of_layer = topology.num_ranks * (num_experts + 1)
    base = np.arange(old.shape[0])[:, None] * pairs_of_layer + topology.rank_of_slot * (num_experts + 1)
    lacking = np.setdiff1d(base + new, base + np.where(old == EMPTY_SLOT, num_experts, old))
    return np.bincount(lacking // pairs_of_layer, minlength=old.shape[0])


def check_previous(previous: Placement, problem: Problem) -> None:
    """Raise InputError unless the live placement is for the model, the ranks and the slots of the problem."""
    previous.check_model(problem.load.shape, name="previous placement")
    if not np.array_equal(problem.topology.rank_of_slot, previous.topology.rank_of_slot):
        raise InputError("topology: expected the ranks and slots of the previous placement")


def busiest_rank(load: Floats, phy2log: Map, topology: Topology) -> Floats:
    """[L] tokens on the busiest rank under even dispatch, over its relative speed."""
    num_layers, num_experts = load.shape
    ids = np.where(phy2log == EMPTY_SLOT, num_experts, phy2log)
    flat = ids + np.arange(num_layers)[:, None] * (num_experts + 1)
    count = np.bincount(flat.reshape(-1), minlength=num_layers * (num_experts + 1)).reshape(num_layers, -1)
    unit = np.zeros((num_layers, num_experts + 1))
    unit[:, :-1] = load / count[:, :-1]
    rank_load = np.add.reduceat(np.take_along_axis(unit, ids, axis=1), topology.rank_first_slot[:-1], axis=1)
    busiest: Floats = (rank_load / topology.relative_speed).max(axis=1)
    return busiest
