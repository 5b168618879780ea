"""The judge: what a placement does to a load. Knows no strategy; every number is recomputed from the map itself."""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb.bounds.lower_bounds import lower_bounds
from eplb.core.dispatch_rule import EVEN_RULES, DispatchRule, slot_shares
from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.dispatch.engine_rules import expected_slot_load
from eplb.dispatch.optimal_shares import best_split
from eplb.errors import InputError
from eplb.evaluation.token_spread import TokenSpread, token_spread
from eplb_traces import ExpertLoad, RoutingTrace


@final
@dataclass(frozen=True, eq=False)
class Evaluation:
    """Rank loads of every window and layer, and every engine's metric by its own name.

    A layer without load in a window counts as perfectly balanced there. Where ranks differ in speed, max_over_mean
    compares times: load over relative speed.
    """

    placement: Placement
    load: ExpertLoad
    rank_load: NDArray[np.float64]
    """[W, L, R] tokens; each row sums to the load's."""
    dispatch: DispatchRule = DispatchRule.EVEN
    """How the tokens of an expert were split over its replicas."""
    spread: TokenSpread | None = None
    """Ranks and nodes of a token's choices; None where no trace was given."""

    def __post_init__(self) -> None:
        self.rank_load.setflags(write=False)

    def __reduce__(self) -> tuple[object, ...]:
        return Evaluation, (self.placement, self.load, self.rank_load, self.dispatch, self.spread)

    @cached_property
    def max_over_mean_by_window(self) -> NDArray[np.float64]:
        """[W, L] busiest over mean rank; 1 is perfect."""
        return _max_over_mean(self.rank_load / self.placement.topology.relative_speed)

    @cached_property
    def max_over_mean(self) -> NDArray[np.float64]:
        """[L] mean over windows, by their weights, of `max_over_mean_by_window`."""
        return np.average(self.max_over_mean_by_window, axis=0, weights=self.load.weights)

    @cached_property
    def max_over_mean_of_total(self) -> NDArray[np.float64]:
        """[L] of the load summed over windows: what one long window would show."""
        total = np.einsum("w,wlr->lr", self.load.weights, self.rank_load)
        return _max_over_mean(total / self.placement.topology.relative_speed)

    @cached_property
    def gap(self) -> NDArray[np.float64]:
        """[L] relative distance of the summed load's busiest rank from the proven lower bound."""
        empty = bool((self.placement.physical_to_logical_map == EMPTY_SLOT).any())
        distinct = not (empty or self.placement.duplicate_slots.any())
        even = self.dispatch is DispatchRule.EVEN  # other rules may send nothing to a copy: no full-slot bound
        topology = self.placement.topology
        busiest = (np.einsum("w,wlr->lr", self.load.weights, self.rank_load) / topology.relative_speed).max(axis=1)
        bound = lower_bounds(self.load.total, topology, full_and_distinct=distinct and even, reached=busiest).value
        return np.divide(busiest, bound, out=np.ones_like(bound), where=bound > 0) - 1

    @property
    def balancedness_vllm(self) -> float:
        """vLLM's: sum over layers of the mean rank load over the sum of the busiest rank's, mean over windows."""
        busiest = self.rank_load.max(axis=2).sum(axis=1)
        loaded = busiest > 0
        mean = self.rank_load.mean(axis=2).sum(axis=1)
        return self._window_mean(np.where(loaded, mean / np.where(loaded, busiest, 1.0), 1.0))

    @property
    def balancedness_sglang(self) -> float:
        """SGLang's: mean over layers of mean / busiest rank load, mean over windows."""
        return self._window_mean((1 / _max_over_mean(self.rank_load)).mean(axis=1))

    @property
    def imbalance_ratio_trtllm(self) -> float:
        """TensorRT-LLM's: max / mean - 1, mean over layers and windows."""
        return self._window_mean(_max_over_mean(self.rank_load).mean(axis=1)) - 1

    @property
    def par_ascend(self) -> float:
        """vllm-ascend's peak-to-average ratio: max / mean, mean over layers and windows."""
        return self.imbalance_ratio_trtllm + 1

    def _window_mean(self, per_window: NDArray[np.float64]) -> float:
        return float(np.average(per_window, weights=self.load.weights))

    def summary(self) -> dict[str, float | int]:
        """The metrics by name, as `--json` prints them.

        `max_over_mean_p95` is over windows and layers; keys that end in `_of_total` and the gaps are of the load
        summed over windows; `ranks_per_token` and `nodes_per_token`, means over layers, are there with a trace only.
        """
        placement, spread = self.placement, {}
        if self.spread is not None:
            spread["ranks_per_token"] = float(self.spread.ranks_per_token.mean())
            spread["nodes_per_token"] = float(self.spread.nodes_per_token.mean())
        return {
            "max_over_mean_mean": float(self.max_over_mean.mean()),
            "max_over_mean_worst": float(self.max_over_mean_by_window.max()),
            "max_over_mean_p95": float(np.percentile(self.max_over_mean_by_window, 95)),
            "max_over_mean_mean_of_total": float(self.max_over_mean_of_total.mean()),
            "max_over_mean_worst_of_total": float(self.max_over_mean_of_total.max()),
            "balancedness_vllm": self.balancedness_vllm,
            "balancedness_sglang": self.balancedness_sglang,
            "imbalance_ratio_trtllm": self.imbalance_ratio_trtllm,
            "par_ascend": self.par_ascend,
            "gap_mean": float(self.gap.mean()),
            "gap_worst": float(self.gap.max()),
            "duplicate_slots": int(placement.duplicate_slots.sum()),
            "num_windows": self.load.num_windows,
            "num_layers": placement.num_layers,
            "num_ranks": placement.topology.num_ranks,
            "num_slots": placement.num_slots,
            **spread,
        }


def copies_away(placement: Placement, num_groups: int) -> NDArray[np.int64]:
    """[L] copies that are not on their expert group's home node, the node that holds most of the group's copies.

    0 where every group lives on one node; group-limited routing then limits the nodes of a token too.

    Raises
    ------
    InputError
        If the groups do not divide the experts.
    """
    if num_groups < 1 or placement.num_experts % num_groups:
        raise InputError(f"groups = {num_groups}: expected a divisor of {placement.num_experts} experts")
    phy2log, topology = placement.physical_to_logical_map, placement.topology
    on_node = np.eye(topology.num_nodes, dtype=np.int64)[topology.node_of_rank[topology.rank_of_slot]]
    away = np.zeros(placement.num_layers, dtype=np.int64)
    for experts in np.arange(placement.num_experts).reshape(num_groups, -1):
        copies = np.isin(phy2log, experts) @ on_node
        away += copies.sum(axis=1) - copies.max(axis=1)
    return away


def evaluate(
    placement: Placement,
    load: ExpertLoad,
    dispatch: DispatchRule | str = DispatchRule.EVEN,
    *,
    source_share: ArrayLike | None = None,
    trace: RoutingTrace | None = None,
) -> Evaluation:
    """Compute what every rank gets of every window.

    Parameters
    ----------
    placement
        Where the experts live.
    load
        The traffic; it need not be the traffic that was planned for.
    dispatch
        How the runtime splits an expert's tokens over its replicas; for `online` every window is split at its best.
    source_share
        [R] share of the tokens that each rank sends, for rules that prefer near replicas; even by default.
    trace
        Token-level choices of the same model: how many ranks and nodes a token visits, at an even split, is judged too.

    Raises
    ------
    InputError
        If placement and load or trace are of different models, the placement lacks what the dispatch rule needs, or
        `source_share` is not one share a rank, summing to 1.
    """
    found, expected = (load.num_layers, load.num_experts), (placement.num_layers, placement.num_experts)
    if found != expected:
        raise InputError(
            f"load of {found[0]} layers x {found[1]} experts: "
            f"the placement is for {expected[0]} layers x {expected[1]} experts, another model"
        )
    rule = DispatchRule.named(dispatch)
    shares = _shares(placement, rule, source_share)
    first_slot = placement.topology.rank_first_slot[:-1]
    expert_of_slot = np.maximum(placement.physical_to_logical_map, 0)
    rank_load = np.empty((load.num_windows, placement.num_layers, placement.topology.num_ranks))
    for window in range(load.num_windows):
        if shares is None:
            slot_load = best_split(placement, load.tokens[window]).slot_load
        else:
            slot_load = np.take_along_axis(load.tokens[window], expert_of_slot, axis=1) * shares
        np.add.reduceat(slot_load, first_slot, axis=1, out=rank_load[window])
    return Evaluation(placement, load, rank_load, rule, None if trace is None else token_spread(placement, trace))


def _shares(placement: Placement, rule: DispatchRule, source_share: ArrayLike | None) -> NDArray[np.float64] | None:
    """[L, P] share of its expert's tokens that each slot gets; None where every window is split anew."""
    if rule is DispatchRule.ONLINE:
        return None
    if rule in EVEN_RULES or rule is DispatchRule.WEIGHTED:
        return slot_shares(placement, rule)
    num_ranks = placement.topology.num_ranks
    source = np.full(num_ranks, 1 / num_ranks) if source_share is None else np.asarray(source_share, dtype=np.float64)
    if source.shape != (num_ranks,) or not (source >= 0).all() or abs(source.sum() - 1) > 1e-6:
        raise InputError(
            f"source_share = {source}: expected one share >= 0 for each of {num_ranks} ranks, summing to 1"
        )
    one_token_each = np.outer(source, np.ones(placement.num_experts))
    layers = range(placement.num_layers)
    return np.stack([expected_slot_load(placement, layer, one_token_each, rule) for layer in layers])


def _max_over_mean(rank_time: NDArray[np.float64]) -> NDArray[np.float64]:
    """Busiest over mean along the last axis; 1 where there is no load."""
    mean = rank_time.mean(axis=-1)
    loaded = mean > 0
    return np.where(loaded, rank_time.max(axis=-1) / np.where(loaded, mean, 1.0), 1.0)
