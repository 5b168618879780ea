"""Plans from the live placement to one that serves many loads better, each fetched replica worth its price.

The objective is that of the scenario strategy, a soft maximum over ranks and windows. The search starts from the live
map. Each step is the one that lowers the objective most per fetched replica; a step that gains less than the price is
not taken. Weights of windows count, so recent traffic can weigh more. Windows are in order of time: where they differ
by chance alone, they are shrunk towards their mean and the price is higher.

Source: our own; steps as in `incremental`, objective and amplification as in `scenario`.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.counts import check_max_moves
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.migration import Migration, keep_slots
from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.core.problem import Plan, Problem
from eplb.core.topology import Topology
from eplb.dispatch.optimal_shares import online_busiest
from eplb.dispatch.replica_shares import ReplicaShares
from eplb.errors import InputError
from eplb.strategies.certify import certified_plan
from eplb.strategies.incremental.incremental import busiest_rank, check_previous
from eplb.strategies.incremental.window_noise import shrunk, signal_share
from eplb.strategies.scenario.scenario import Scenario
from eplb.strategies.under_rule.objective import FREE_RULES, is_even
from eplb.strategies.under_rule.search import Flags, Limits
from eplb.strategies.under_rule.window_search import WindowSearch
from eplb_traces import ExpertLoad

MOST_DOUBLINGS = 16  # of the price, until the moves fit the budget
LEAST_PRICE = 1e-6  # where a budget makes a price of 0 rise
MOST_STEPS_PER_SLOT = 4  # the log's room; a descent that fills it goes on with the next replan


class _Descent(NamedTuple):
    """What the kernel did."""

    phy2log: Map
    """[L, P], E in empty slots."""
    steps: Ints
    """[L, K, 3] slot; -1 - other slot of an exchange, or the expert that the slot takes; fetches."""
    gains: Floats
    """[L, K] by how much the logarithm of the layer's cost fell."""
    num_steps: Ints
    """[L]"""


@final
@dataclass(frozen=True, kw_only=True)
class IncrementalScenario:
    """Parameters of the strategy.

    Parameters
    ----------
    previous
        The placement that is live.
    price
        What a fetched replica must take off its layer's cost, as a share of what is left of it; the cost is a sum of
        8th powers, so the busiest rank falls by about an eighth of that share.
    noise_price
        How many times the price a replica costs in layers whose windows differ by chance alone; see `window_noise`.
    max_moves
        Most replicas that ranks may fetch, over all layers; None for as many as pay.
    amplification
        Window h of mean m becomes m + amplification * (h - m), cut at zero: the future strays further than the past.
    """

    name: ClassVar[str] = "incremental_scenario"
    summary: ClassVar[str] = "from the live placement, for many windows, each fetched replica worth its price"
    previous: Placement
    price: float = 0.002
    noise_price: float = 4.0
    max_moves: int | None = None
    amplification: float = 1.5

    def __post_init__(self) -> None:
        for name in ("price", "noise_price", "amplification"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} = {getattr(self, name)}: expected finite and >= 0")
        check_max_moves(self.max_moves)

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Improve the live placement for all windows of the load; deterministic, so the seed changes nothing."""
        check_previous(self.previous, problem)
        if not is_even(problem.dispatch):
            return self._under_rule(problem, seed=seed)
        old = self.previous.physical_to_logical_map
        descent = self._descend(problem.load, problem.topology)
        fetched = np.array([descent.steps[i, :n, 2].sum() for i, n in enumerate(descent.num_steps.tolist())])
        notes = [f"{self.name}: {fetched.sum()} replicas moved, each worth at least {self.price:g} of its layer's cost"]
        new = descent.phy2log
        if self.max_moves is not None and fetched.sum() > self.max_moves:
            new = self._within_budget(descent, self.max_moves)
            notes.append(f"{self.name}: the budget of {self.max_moves} moves leaves out steps that would pay")
        phy2log = self._in_place(old, new, problem.topology)
        return certified_plan(
            problem,
            phy2log,
            strategy=self.name,
            objective=busiest_rank(problem.load.total, phy2log, problem.topology),
            seed=seed,
            notes=tuple(notes),
        )

    def _under_rule(self, problem: Problem, *, seed: int) -> Plan:
        """Random steps under the rule, each worth its price; with a budget the price doubles until they fit it."""
        live, topology = self.previous.physical_to_logical_map, problem.topology
        signal = signal_share(problem.load)
        windows = self._scenarios(shrunk(problem.load, signal), topology.num_ranks)[:, :-1]
        free = problem.dispatch in FREE_RULES
        shares = ReplicaShares(DispatchRule.EVEN if free else problem.dispatch, topology, problem.sources)
        before = Placement(live, problem.load.num_experts, topology)
        price = self.price * (signal + self.noise_price * (1 - signal))
        for doubling in range(MOST_DOUBLINGS):
            phy2log = WindowSearch()(
                windows, live, shares, limits=Limits(), seed=seed, price=np.maximum(price, LEAST_PRICE) * 2**doubling
            )
            phy2log[~problem.load.total.any(axis=1)] = live[~problem.load.total.any(axis=1)]  # idle layers stay
            if free:
                phy2log = np.where(self._splits_better(problem, phy2log)[:, None], phy2log, live)
            keep_slots(live, phy2log, topology.rank_first_slot)
            moved = Migration.between(before, Placement(phy2log, problem.load.num_experts, topology))
            if self.max_moves is None or moved.moved_copies <= self.max_moves:
                break
        else:
            phy2log, moved = live, Migration.between(before, before)
        note = f"{self.name}: {moved.moved_copies} replicas moved, under {problem.dispatch} dispatch"
        return certified_plan(problem, phy2log, strategy=self.name, seed=seed, notes=(note,))

    def _splits_better(self, problem: Problem, phy2log: Map) -> Flags:
        """[L] whether the best split of the windows has a lower busiest rank than that of the live map."""
        load, topology = problem.load, problem.topology
        before, after = (
            np.average(online_busiest(Placement(one, load.num_experts, topology), load), axis=0, weights=load.weights)
            for one in (self.previous.physical_to_logical_map, phy2log)
        )
        return np.asarray(after < before)

    def _descend(self, load: ExpertLoad, topology: Topology) -> _Descent:
        from eplb.strategies.incremental.incremental_scenario_kernel import improve_layers

        num_layers, num_experts, num_slots = load.num_layers, load.num_experts, topology.num_slots
        signal = signal_share(load)
        scenarios = self._scenarios(shrunk(load, signal), topology.num_ranks)
        live = self.previous.physical_to_logical_map
        old = np.where(live == EMPTY_SLOT, np.int32(num_experts), live)
        most_steps = MOST_STEPS_PER_SLOT * num_slots
        steps = np.zeros((num_layers, most_steps, 3), np.int64)
        made = _Descent(np.empty_like(old), steps, np.zeros((num_layers, most_steps)), np.zeros(num_layers, np.int64))
        price = self.price * (signal + self.noise_price * (1 - signal))
        most = np.where(load.total.any(axis=1), num_slots, -1)  # an idle layer stays as it is
        rank_scale = 1 / topology.relative_speed

        def work(rows: slice) -> None:
            improve_layers(
                scenarios[rows], old[rows], topology.rank_first_slot, topology.rank_of_slot, rank_scale, price[rows],
                most[rows], made.phy2log[rows], made.steps[rows], made.gains[rows], made.num_steps[rows],
            )  # fmt: skip

        for_layer_chunks(work, num_layers)
        return made

    def _scenarios(self, load: ExpertLoad, num_ranks: int) -> Floats:
        """[L, E + 1, T] amplified windows scaled to mean rank load 1, times the 8th root of their weights."""
        from eplb.strategies.incremental.incremental_scenario_kernel import POWER

        amplified = Scenario(amplification=self.amplification, most_scenarios=load.num_windows).scenarios(
            load, num_ranks=num_ranks
        )
        amplified[:, :, : load.num_windows] *= (load.weights / load.weights.mean()) ** (1 / POWER)
        return np.concatenate([amplified, np.zeros_like(amplified[:, :1])], axis=1)

    def _within_budget(self, descent: _Descent, budget: int) -> Map:
        """Each layer's first steps, as many as the budget allows where a fetch takes most off, layers alike."""
        live = self.previous.physical_to_logical_map
        new = np.where(live == EMPTY_SLOT, np.int32(self.previous.num_experts), live)
        position = np.zeros_like(descent.num_steps)
        while True:
            best, layer_at, end_at, cost_at = 0.0, -1, 0, 0
            for layer, (at, last) in enumerate(zip(position.tolist(), descent.num_steps.tolist(), strict=True)):
                # Looking past a step lets a poor one in whose follower is good.
                gains, fetches = descent.gains[layer, at:last].cumsum(), descent.steps[layer, at:last, 2].cumsum()
                rate = np.where((fetches <= budget) & (gains > 0), gains / np.maximum(fetches, 0.5), 0.0)
                if rate.size and rate.max() > best:
                    end = int(rate.argmax())
                    best, layer_at, end_at, cost_at = float(rate[end]), layer, at + end + 1, int(fetches[end])
            if layer_at < 0:
                return new
            _replay(new[layer_at], descent.steps[layer_at, position[layer_at] : end_at])
            position[layer_at] = end_at
            budget -= cost_at

    def _in_place(self, old: Map, new: Map, topology: Topology) -> Map:
        """Empty slots as -1 again, and experts that a rank keeps in the slots that they had."""
        phy2log = np.where(new == self.previous.num_experts, np.int32(EMPTY_SLOT), new)
        keep_slots(old, phy2log, topology.rank_first_slot)
        return phy2log


def _replay(row: Map, steps: Ints) -> None:
    """Take logged steps on one layer's map [P], in place."""
    for slot, target, _ in steps.tolist():
        if target >= 0:
            row[slot] = target
        else:
            row[slot], row[-1 - target] = row[-1 - target], row[slot]
