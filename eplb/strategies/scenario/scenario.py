"""Makes one plan for many loads: workloads, or the windows of a history.

A plan for the summed load ignores that some experts peak together. Here every window is a scenario. Deviations from the
mean are amplified, because the future strays further than the past did; replicas are spread evenly over the ranks,
most of them second replicas of experts that ever get hot; exchanges then lower a soft maximum over ranks and windows.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.problem import GroupMode, Plan, Problem
from eplb.dispatch.replica_shares import FIXED_SHARE_RULES
from eplb.strategies.certify import certified_plan
from eplb.strategies.constrained.constrained import ConstrainedSearch
from eplb.strategies.greedy.greedy import Greedy, descending_order
from eplb.strategies.greedy.pinned import place_pinned
from eplb.strategies.under_rule.fit import fitted_to_windows
from eplb.strategies.under_rule.objective import is_even
from eplb_traces import ExpertLoad


@final
@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Parameters of the strategy. The defaults were chosen on windows of one model and hold on others; see README.

    Parameters
    ----------
    amplification
        Scenario h of mean m becomes m + amplification * (h - m), cut at zero.
    most_scenarios
        Longer histories are summed into at most so many windows.
    hot_replica
        Experts get third and further replicas only while a replica's soft maximum is above this share of a mean rank.
    tries_per_slot
        Exchanges tried a slot in each of the two descents.
    replica_share_online
        How much of its even share a replica counts when the runtime splits each batch anew.
    """

    name: ClassVar[str] = "scenario"
    summary: ClassVar[str] = "one plan for many windows or workloads: robust against drift"
    amplification: float = 1.5
    most_scenarios: int = 128
    hot_replica: float = 0.8
    tries_per_slot: int = 600
    replica_share_online: float = 0.8

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Plan for all windows of the load at once; the certificate is for their sum, as everywhere."""
        scenarios = self.scenarios(problem.load, num_ranks=problem.topology.num_ranks)
        if not problem.constraints.is_empty:
            return self._constrained(scenarios, problem, seed=seed)
        online = problem.dispatch is DispatchRule.ONLINE

        def place(part: Floats, first_slot: NDArray[np.int64], speed: Floats) -> NDArray[np.int32]:
            return self._place(part, first_slot, speed, online=online, seed=seed)

        if problem.group_mode is GroupMode.PINNED:
            phy2log = place_pinned(scenarios, problem, place)
        else:
            phy2log = place(scenarios, problem.topology.rank_first_slot, problem.topology.relative_speed)
        if problem.dispatch in FIXED_SHARE_RULES and not is_even(problem.dispatch):
            phy2log = fitted_to_windows(problem, scenarios, phy2log, seed=seed)
        return certified_plan(problem, phy2log, strategy=self.name, seed=seed)

    def _constrained(self, scenarios: Floats, problem: Problem, *, seed: int) -> Plan:
        """Plan for the scenarios under hard constraints and the problem's rule."""
        windows = np.ascontiguousarray(scenarios[:, :, scenarios.any(axis=(0, 1))])
        search = ConstrainedSearch(descents=(3, 4))
        phy2log = search(windows, _soft_maximum(windows), problem, seed=seed)
        return certified_plan(problem, phy2log, strategy=self.name, seed=seed)

    def _place(
        self, scenarios: Floats, first_slot: NDArray[np.int64], speed: Floats, *, online: bool, seed: int
    ) -> NDArray[np.int32]:
        """Spread, then descend, all layers; where spreading finds no room the sum is packed instead."""
        from eplb.strategies.scenario.scenario_kernel import plan_layers

        num_layers, num_slots = scenarios.shape[0], int(first_slot[-1])
        scenarios, rank_scale = np.ascontiguousarray(scenarios), 1 / speed
        hotness = _soft_maximum(scenarios)
        count, order = self._replica_counts(hotness, num_slots, speed.size)
        phy2log = np.empty((num_layers, num_slots), dtype=np.int32)
        num_tries = self.tries_per_slot * num_slots
        share = self.replica_share_online if online else 1.0

        def work(layers: slice) -> None:
            plan_layers(
                scenarios[layers], count[layers], order[layers], first_slot, rank_scale, num_tries, seed,
                layers.start, share, online, phy2log[layers],
            )  # fmt: skip

        for_layer_chunks(work, num_layers)
        left = np.nonzero(phy2log[:, 0] < 0)[0]
        if left.size:
            phy2log[left] = Greedy().pack(scenarios[left].sum(axis=2), first_slot, speed)[0]
        return phy2log

    def scenarios(self, load: ExpertLoad, *, num_ranks: int) -> Floats:
        """[L, E, T] amplified windows, each layer scaled to mean rank load 1, T padded to the kernel's lanes."""
        if load.num_windows > self.most_scenarios:
            load = load.merged(-(-load.num_windows // self.most_scenarios))
        tokens = load.tokens.transpose(1, 2, 0)
        total = tokens.sum(axis=1, keepdims=True)
        # In windows without load the mean stands in for a layer; one that is always idle is even.
        share = np.divide(tokens, total, out=np.zeros_like(tokens), where=total > 0)
        seen = (total > 0) * load.weights
        weight = seen.sum(axis=2, keepdims=True)
        mean = np.full((*tokens.shape[:2], 1), 1 / load.num_experts)
        np.divide((share * seen).sum(axis=2, keepdims=True), weight, out=mean, where=weight > 0)
        share = np.where(total > 0, share, mean)
        share = np.maximum(mean + self.amplification * (share - mean), 0.0)
        from eplb.core.kernel_helpers import LANES

        padded = np.zeros((*tokens.shape[:2], -(-load.num_windows // LANES) * LANES))
        padded[:, :, : load.num_windows] = share / share.sum(axis=1, keepdims=True) * num_ranks
        return padded

    def _replica_counts(
        self, hotness: Floats, num_slots: int, num_ranks: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[L, E] replicas of each expert, and the order to place them in: several replicas first, then by hotness."""
        num_layers, num_experts = hotness.shape
        count = np.ones((num_layers, num_experts), dtype=np.int64)
        layers = np.arange(num_layers)
        most = min(num_ranks, num_slots)
        for _ in range(num_slots - num_experts):
            unit = np.where(count < most, hotness / count, -1.0)
            hottest = unit.argmax(axis=1)
            # Below the limit second replicas go first: two ranks that share an expert can absorb its surge.
            single = np.where(count == 1, unit, -1.0)
            second = single.argmax(axis=1)
            spread = (unit[layers, hottest] <= self.hot_replica) & (single[layers, second] >= 0)
            count[layers, np.where(spread, second, hottest)] += 1
        rank_by = hotness / count
        return count, descending_order(np.where(count > 1, rank_by + 2 * rank_by.max(axis=1, keepdims=True), rank_by))


def _soft_maximum(scenarios: Floats) -> Floats:
    """[L, E] load of an expert when it is hot: the norm of order 8 over the windows."""
    return np.asarray(np.power(np.mean(scenarios**8, axis=2), 1 / 8))
