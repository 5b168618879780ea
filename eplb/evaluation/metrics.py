"""Evaluates a placement under a load: rank loads and every engine's balance metric.

Every number is computed from the map itself. No strategy is imported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, final

import numpy as np

from eplb.arguments.accepted import (
    LoadLike,
    PlacementLike,
    TraceLike,
    accepted_load,
    accepted_placement,
    accepted_trace,
)
from eplb.bounds.lower_bounds import LowerBounds, lower_bounds
from eplb.core.arrays import Floats, Ints, Map
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.load_range import check_load_range
from eplb.core.placement import EMPTY_SLOT, Placement, replica_counts
from eplb.core.problem import checked_sources
from eplb.core.topology import Topology
from eplb.dispatch.engine_rules import expected_slot_shares
from eplb.dispatch.optimal_shares import best_split
from eplb.errors import InputError
from eplb.evaluation.traffic import TokenSpread, token_spread
from eplb_traces import ExpertLoad
from eplb_traces.display import counted, facts_html

if TYPE_CHECKING:
    import pandas as pd

EMPTY_IN_ENGINES = MappingProxyType({
    "vLLM": "0 for a window, nothing for a layer",
    "SGLang": "1",
    "TensorRT-LLM": "left out (its own script: nan)",
})  # fmt: skip
"""What a window or layer without tokens counts as in the metric of each engine."""


@final
@dataclass(frozen=True, eq=False)
class Evaluation:
    """Rank loads of every window and layer, and every engine's metric by its own name.

    A layer without load in a window has no balance there: its value is NaN, and every mean, percentile and worst value
    leaves it out. The engines' own metrics treat it as the engine does; see `EMPTY_IN_ENGINES`. Where ranks differ in
    speed, max_over_mean compares times: load over relative speed.
    """

    placement: Placement
    load: ExpertLoad
    rank_load: Floats
    """[W, L, R] tokens; each row sums to the load's."""
    dispatch: DispatchRule = DispatchRule.EVEN
    """How the tokens of an expert were split over its replicas."""
    spread: TokenSpread | None = None
    """Ranks and nodes of a token's choices; None where no trace was given."""

    def __post_init__(self) -> None:
        self.rank_load.setflags(write=False)

    def __reduce__(self) -> tuple[object, ...]:
        return Evaluation, (self.placement, self.load, self.rank_load, self.dispatch, self.spread)

    @property
    def num_empty_windows(self) -> int:
        """Windows without a token; every mean, percentile and worst value leaves them out."""
        return int(self.load.empty_windows.sum())

    @property
    def num_empty_layers(self) -> int:
        """Layers without a token in any window; left out likewise."""
        return int(self.load.empty_layers.sum())

    @property
    def rank_time(self) -> Floats:
        """[W, L, R] tokens over relative speed."""
        return self.rank_load / self.placement.topology.relative_speed

    @cached_property
    def total_rank_load(self) -> Floats:
        """[L, R] tokens summed over windows by their weights; read-only."""
        total: Floats = np.einsum("w,wlr->lr", self.load.weights, self.rank_load)
        total.setflags(write=False)
        return total

    @property
    def total_rank_time(self) -> Floats:
        """[L, R] `total_rank_load` over relative speed."""
        return self.total_rank_load / self.placement.topology.relative_speed

    @cached_property
    def max_over_mean_by_window(self) -> Floats:
        """[W, L] busiest over mean rank; 1 is perfect; NaN for a layer without load in the window."""
        return max_over_mean(self.rank_time)

    @cached_property
    def max_over_mean(self) -> Floats:
        """[L] mean over windows, by their weights, of `max_over_mean_by_window`; NaN for a layer without load."""
        return mean_of_known(self.max_over_mean_by_window, self.load.weights)

    @cached_property
    def max_over_mean_of_total(self) -> Floats:
        """[L] of the load summed over windows, taken as one window; NaN for a layer without load."""
        return max_over_mean(self.total_rank_time)

    @cached_property
    def bound(self) -> LowerBounds:
        """Proven lower bounds on the busiest rank's tokens over relative speed, for the load summed over windows.

        Only bounds that are proven for the dispatch rule are used, and those that assume full slots of distinct experts
        only where the placement has such slots.
        """
        placement = self.placement
        empty = bool((placement.physical_to_logical_map == EMPTY_SLOT).any())
        distinct = not (empty or placement.duplicate_slots.any())
        return lower_bounds(
            self.load.total,
            placement.topology,
            rule=self.dispatch,
            full_and_distinct=distinct,
            reached=self.total_rank_time.max(axis=1),
        )

    @cached_property
    def gap(self) -> Floats:
        """[L] relative distance of the summed load's busiest rank from the proven lower bound; NaN without load."""
        busiest, bound = self.total_rank_time.max(axis=1), self.bound.value
        return np.divide(busiest, bound, out=np.full_like(bound, np.nan), where=bound > 0) - 1

    @property
    def balancedness_vllm(self) -> float:
        """vLLM's: sum over layers of the mean rank load over the sum of the busiest rank's, mean over windows.

        As in vLLM, a layer without load adds nothing to either sum, and a window without load counts as 0.
        """
        busiest = self.rank_load.max(axis=2).sum(axis=1)
        loaded = busiest > 0
        mean = self.rank_load.mean(axis=2).sum(axis=1)
        return self._window_mean(np.where(loaded, mean / np.where(loaded, busiest, 1.0), 0.0))

    @property
    def balancedness_sglang(self) -> float:
        """SGLang's: mean over layers of mean / busiest rank load, mean over windows.

        As in SGLang, a layer without load in a window counts as 1.
        """
        ratio = max_over_mean(self.rank_load)
        return self._window_mean((1 / np.where(np.isnan(ratio), 1.0, ratio)).mean(axis=1))

    @property
    def imbalance_ratio_trtllm(self) -> float:
        """TensorRT-LLM's: max / mean - 1, mean over layers and windows; a layer without load in a window is left out.

        TensorRT-LLM's own statistics are nan for a layer with such a window.
        """
        by_window = mean_of_known(max_over_mean(self.rank_load).T)
        return float(mean_of_known(by_window, self.load.weights)) - 1

    @property
    def par_ascend(self) -> float:
        """vllm-ascend's peak-to-average ratio: max / mean, mean over layers and windows; empty ones are left out."""
        return self.imbalance_ratio_trtllm + 1

    @property
    def balance(self) -> dict[str, float]:
        """The balance metrics of single windows by name, without what needs a lower bound."""
        return {
            "max_over_mean_mean": float(mean_of_known(self.max_over_mean)),
            "max_over_mean_worst": worst_of_known(self.max_over_mean_by_window),
            "balancedness_vllm": self.balancedness_vllm,
            "balancedness_sglang": self.balancedness_sglang,
            "imbalance_ratio_trtllm": self.imbalance_ratio_trtllm,
            "par_ascend": self.par_ascend,
        }

    def __repr__(self) -> str:
        size = f"{counted(self.load.num_windows, 'window')} of {counted(self.placement.num_layers, 'layer')}"
        mean, worst = mean_of_known(self.max_over_mean), worst_of_known(self.max_over_mean_by_window)
        return f"Evaluation({size}, {self.dispatch} dispatch, max/mean {mean:.4f}, worst {worst:.4f})"

    def _repr_html_(self) -> str:
        return facts_html(f"Evaluation, {self.dispatch} dispatch", self.summary())

    def to_frame(self) -> "pd.DataFrame":
        """One row a layer: balance over windows, of the summed load, the bound, and with a trace the token spread."""
        import pandas as pd

        columns = {
            "layer": np.arange(self.placement.num_layers),
            "max_over_mean": self.max_over_mean,
            "max_over_mean_of_total": self.max_over_mean_of_total,
            "busiest_rank": self.total_rank_time.argmax(axis=1),
            "lower_bound": self.bound.value,
            "binding_bound": [bound.value for bound in self.bound.binding],
            "gap": self.gap,
        }
        frame = pd.DataFrame(columns)
        return frame if self.spread is None else frame.merge(self.spread.to_frame(), on="layer")

    def _window_mean(self, per_window: Floats) -> float:
        return float(np.average(per_window, weights=self.load.weights))

    def summary(self) -> dict[str, float | int]:
        """The metrics by name, as `--json` prints them.

        `max_over_mean_p95` is over windows and layers. Keys that end in `_of_total` and the gaps are of the load
        summed over windows. `ranks_per_token` and `nodes_per_token` are means over layers; they need a trace.
        """
        placement, balance = self.placement, self.balance
        spread: dict[str, float] = {}
        if self.spread is not None:
            spread["ranks_per_token"] = float(self.spread.ranks_per_token.mean())
            spread["nodes_per_token"] = float(self.spread.nodes_per_token.mean())
        return {
            "max_over_mean_mean": balance["max_over_mean_mean"],
            "max_over_mean_worst": balance["max_over_mean_worst"],
            "max_over_mean_p95": p95_of_known(self.max_over_mean_by_window),
            "max_over_mean_mean_of_total": float(mean_of_known(self.max_over_mean_of_total)),
            "max_over_mean_worst_of_total": worst_of_known(self.max_over_mean_of_total),
            **balance,
            "gap_mean": float(mean_of_known(self.gap)),
            "gap_worst": worst_of_known(self.gap),
            "duplicate_slots": int(placement.duplicate_slots.sum()),
            "num_windows": self.load.num_windows,
            "num_empty_windows": self.num_empty_windows,
            "num_layers": placement.num_layers,
            "num_empty_layers": self.num_empty_layers,
            "num_ranks": placement.topology.num_ranks,
            "num_slots": placement.num_slots,
            **spread,
        }


def off_node_replicas(placement: Placement, num_groups: int) -> Ints:
    """[L] replicas that are not on their expert group's home node, the node that holds most of the group's replicas.

    0 where every group is on one node; group-limited routing then limits the nodes of a token too.

    Raises
    ------
    InputError
        If the groups do not divide the experts.
    """
    if num_groups < 1 or placement.num_experts % num_groups:
        raise InputError(f"groups = {num_groups}: expected a divisor of {placement.num_experts} experts")
    phy2log, topology = placement.physical_to_logical_map, placement.topology
    on_node = np.eye(topology.num_nodes, dtype=np.int64)[topology.node_of_rank[topology.rank_of_slot]]
    off_node = np.zeros(placement.num_layers, dtype=np.int64)
    for experts in np.arange(placement.num_experts).reshape(num_groups, -1):
        replicas = np.isin(phy2log, experts) @ on_node
        off_node += replicas.sum(axis=1) - replicas.max(axis=1)
    return off_node


def evaluate(
    placement: PlacementLike,
    load: LoadLike,
    dispatch: DispatchRule | str = DispatchRule.EVEN,
    *,
    sources: Sequence[float] | None = None,
    trace: TraceLike | None = None,
) -> Evaluation:
    """Compute the load of every rank in every window.

    Parameters
    ----------
    placement
        Where the experts live: a placement, a plan, or the path of a placement file.
    load
        Tokens of each expert, in any form that `plan` takes; it need not be the load that was planned for.
    dispatch
        How the runtime splits an expert's tokens over its replicas; for `online` every window is split at its best.
    sources
        [R] share of the tokens that each rank sends, for rules by which the rank of a token decides its replica; None:
        all alike.
    trace
        Token-level choices of the same model, to count the ranks and nodes that a token visits at an even split.

    Raises
    ------
    InputError
        If counts are out of range, placement and load or trace are of different models, the placement lacks what the
        dispatch rule needs, or `sources` is not one share a rank, summing to 1.

    Examples
    --------
    >>> import eplb
    >>> load = [[1.0, 2.0, 3.0, 10.0]]  # tokens of one layer of four experts
    >>> topology = eplb.Topology(num_nodes=1, ranks_per_node=2, slots_per_rank=3)
    >>> placement = eplb.Placement([[0, 1, 2, 0, 1, 3]], 4, topology)
    >>> evaluation = eplb.evaluate(placement, load)
    >>> evaluation.rank_load
    array([[[ 4.5, 11.5]]])
    >>> float(evaluation.max_over_mean[0])
    1.4375
    """
    load = accepted_load(load)
    placement = accepted_placement(placement, load.shape)
    placement.check_model(load.shape)
    check_load_range(load)
    rule = DispatchRule.named(dispatch)
    rates = None if sources is None else checked_sources(sources, placement.topology)
    shares = None if rule is DispatchRule.ONLINE else expected_slot_shares(placement, rule, rates, load.shape)
    first_slot = placement.topology.rank_first_slot[:-1]
    expert_of_slot = np.maximum(placement.physical_to_logical_map, 0)
    rank_load = np.empty((load.num_windows, placement.num_layers, placement.topology.num_ranks))
    for window in range(load.num_windows):
        if shares is None:
            slot_load = best_split(placement, load.tokens[window]).slot_load
        else:
            slot_load = np.take_along_axis(load.tokens[window], expert_of_slot, axis=1) * shares
        np.add.reduceat(slot_load, first_slot, axis=1, out=rank_load[window])
    spread = None if trace is None else token_spread(placement, accepted_trace(trace))
    return Evaluation(placement, load, rank_load, rule, spread)


def rank_time(load: Floats, physical_to_logical_map: Map, topology: Topology) -> Floats:
    """Tokens over relative speed of every rank under even dispatch.

    Parameters
    ----------
    load
        [L, E] tokens of each expert.
    physical_to_logical_map
        [L, P] experts; -1 is an empty slot. The tokens of an expert without a slot are left out.
    topology
        The ranks of the slots and their speeds.

    Returns
    -------
    NDArray
        [L, R]
    """
    count = replica_counts(physical_to_logical_map, load.shape[1])
    per_replica = np.divide(load, count, out=np.zeros_like(load), where=count > 0)
    slot_load = np.take_along_axis(per_replica, np.maximum(physical_to_logical_map, 0), axis=1)
    slot_load[physical_to_logical_map == EMPTY_SLOT] = 0.0
    time: Floats = np.add.reduceat(slot_load, topology.rank_first_slot[:-1], axis=1) / topology.relative_speed
    return time


def busiest_rank_time(load: Floats, physical_to_logical_map: Map, topology: Topology) -> Floats:
    """[L] the largest `rank_time` of each layer."""
    return np.asarray(rank_time(load, physical_to_logical_map, topology).max(axis=1))


def max_over_mean(rank_time: Floats) -> Floats:
    """Busiest over mean along the last axis; NaN where there is no load."""
    mean = rank_time.mean(axis=-1)
    loaded = mean > 0
    return np.where(loaded, rank_time.max(axis=-1) / np.where(loaded, mean, 1.0), np.nan)


def mean_of_known(values: Floats, weights: Floats | None = None) -> Floats:
    """Weighted mean over the first axis of what is not NaN; NaN where nothing is known."""
    known = ~np.isnan(values)
    weight = np.ones(len(values)) if weights is None else weights
    weight = np.where(known, weight.reshape(-1, *(1 for _ in values.shape[1:])), 0.0)
    total = weight.sum(axis=0)
    found = (np.where(known, values, 0.0) * weight).sum(axis=0)
    return np.divide(found, total, out=np.full_like(total, np.nan), where=total > 0)


def worst_of_known(values: Floats) -> float:
    """Largest value that is not NaN; NaN if none is."""
    known = values[~np.isnan(values)]
    return float(known.max()) if known.size else float("nan")


def p95_of_known(values: Floats) -> float:
    """95th percentile of the values that are not NaN; NaN if none is."""
    known = values[~np.isnan(values)]
    return float(np.percentile(known, 95)) if known.size else float("nan")
