"""Compares a plan with what is there without it: experts in order, or the live placement of a replan."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from eplb.bounds.lower_bounds import lower_bounds, mean_bound
from eplb.core.baseline import EXPERTS_IN_ORDER, experts_in_order
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.migration import Migration
from eplb.core.placement import Placement
from eplb.core.problem import Plan, Problem
from eplb.core.topology import Topology
from eplb.dispatch.optimal_shares import placement_under
from eplb.evaluation.metrics import Evaluation, evaluate, mean_of_known
from eplb.planning.planner import plan
from eplb.strategies.certify import certified_plan
from eplb_traces import ExpertLoad
from eplb_traces.display import counted, cut, facts_html

LIVE = "live placement"
SAME_BALANCE = 1e-9
"""Relative difference below which two balances count as equal: rounding of sums over slots."""


@final
@dataclass(frozen=True, eq=False)
class Gain:
    """The evaluations before and after a plan, of one load under one dispatch rule."""

    name: str
    """Of the placement before: `EXPERTS_IN_ORDER`, or `LIVE` with its ranks where the plan has another number."""
    before: Evaluation
    after: Evaluation
    is_live: bool
    """Whether the plan is a replan of the placement before."""

    def __repr__(self) -> str:
        was, now = mean_max_over_mean(self.before), mean_max_over_mean(self.after)
        return cut(f"Gain({self.name}, max/mean {was:.4f} -> {now:.4f})")

    def _repr_html_(self) -> str:
        return facts_html(
            "Gain", {self.name: self.before, "plan": self.after, "bound on max/mean": f"{self.bound:.4f}"}
        )

    @property
    def changed(self) -> bool:
        """Whether the plan's placement differs from the one before."""
        return self.before.placement != self.after.placement

    @property
    def bound(self) -> float:
        """Proven lower bound on the busiest over mean rank, mean of layers and windows.

        With several windows, each is bounded on its own, by its mean and by replication.
        """
        of = self.after
        if of.load.num_windows == 1:
            value = of.bound.value[None]
            mean = of.total_rank_time.mean(axis=1)[None]
        else:
            tokens = of.load.tokens.reshape(-1, of.load.num_experts)
            bounds = lower_bounds(tokens, of.placement.topology, rule=of.dispatch, full_and_distinct=False)
            mean = of.rank_time.mean(axis=2)
            value = bounds.value.reshape(mean.shape)
        ratio = np.divide(value, mean, out=np.full_like(value, np.nan), where=mean > 0)
        return float(mean_of_known(mean_of_known(ratio, of.load.weights)))


def mean_max_over_mean(evaluation: Evaluation) -> float:
    """Busiest over mean rank, mean of layers and windows."""
    return evaluation.balance["max_over_mean_mean"]


def baseline(
    load: ExpertLoad, topology: Topology, rule: DispatchRule, sources: Sequence[float] | None = None
) -> Evaluation:
    """Experts in order on a topology, under a dispatch rule; `sources` as in `evaluate`."""
    return evaluate(in_order_under(load, topology, rule), load, rule, sources=sources)


def in_order_under(load: ExpertLoad, topology: Topology, rule: DispatchRule) -> Placement:
    """Experts in order on a topology, with the best shares for the load under weighted dispatch."""
    placement = experts_in_order(load.num_layers, load.num_experts, topology)
    return placement_under(rule, placement, load)


def gain_over_order(after: Evaluation, sources: Sequence[float] | None = None) -> Gain:
    """Compare a plan with experts in order on its topology, under its dispatch rule; `sources` as in `evaluate`."""
    before = baseline(after.load, after.placement.topology, after.dispatch, sources)
    return Gain(EXPERTS_IN_ORDER, before, after, is_live=False)


def gain_over_live(after: Evaluation, live: Placement, sources: Sequence[float] | None = None) -> Gain:
    """Compare a replan with the live placement, which may be on other ranks, under the replan's dispatch rule."""
    ranks = live.topology.num_ranks
    other = ranks != after.placement.topology.num_ranks
    before = _live_evaluation(live, after.load, after.dispatch, sources)
    return Gain(f"{LIVE} on {counted(ranks, 'rank')}" if other else LIVE, before, after, is_live=True)


def _live_evaluation(
    live: Placement, load: ExpertLoad, rule: DispatchRule, sources: Sequence[float] | None
) -> Evaluation:
    """The live placement under a rule; under weighted dispatch with shares for this load, which cost no move."""
    return evaluate(placement_under(rule, live, load), load, rule, sources=sources)


def live_if_nothing_gained(
    made: Plan,
    live: Placement,
    load: ExpertLoad,
    rule: DispatchRule = DispatchRule.EVEN,
    sources: Sequence[float] | None = None,
) -> Plan:
    """The replan, or the live placement where the replan moves replicas and does not lower the busiest rank.

    A replan is for the load summed over windows; here the mean over layers and windows decides.

    Parameters
    ----------
    made
        A replan of `live` on the same topology, with its migration.
    live
        The live placement.
    load
        The load of the replan, with its windows.
    rule, sources
        The dispatch rule of the replan, and the share of the tokens that each rank sends.
    """
    if made.migration is None or made.placement == live:
        return made
    before = _live_evaluation(live, load, rule, sources)
    was, now = mean_max_over_mean(before), mean_max_over_mean(evaluate(made.placement, load, rule, sources=sources))
    if now < was * (1 - SAME_BALANCE):
        return made
    note = (
        f"nothing gained: {made.migration.moved_copies} moves would change the busiest / mean rank from {was:.4f} to "
        f"{now:.4f}, so nothing moves"
    )
    kept = certified_plan(
        Problem(load, live.topology, dispatch=rule, sources=sources),
        live.physical_to_logical_map,
        strategy=made.strategy,
        seed=made.seed,
        notes=(note,),
    )
    migration = Migration.between(live, kept.placement, made.migration.expert_bytes)
    return replace(kept, placement=before.placement, migration=migration, seconds=made.seconds)


def redundancy_notes(evaluation: Evaluation, sources: Sequence[float] | None = None) -> tuple[str, ...]:
    """Where a plan has no redundant slot and needs one: the layers, and what one more slot a rank gives with `greedy`.

    Parameters
    ----------
    evaluation
        The plan's evaluation.
    sources
        [R] share of the tokens that each rank sends, as in `plan`.

    Returns
    -------
    tuple
        One sentence; nothing with redundant slots, or where no expert has more tokens than a rank's share.
    """
    load, topology = evaluation.load, evaluation.placement.topology
    if topology.num_slots > load.num_experts or topology.rank_num_slots.max() >= load.num_experts:
        return ()
    least = load.total.max(axis=1) / topology.relative_speed.max()
    hot = int((least > mean_bound(load.total, topology) * (1 + SAME_BALANCE)).sum())
    if not hot:
        return ()
    made = plan(load, _one_more_slot(topology), "greedy", dispatch=evaluation.dispatch, sources=sources)
    then = evaluate(made.placement, load, evaluation.dispatch, sources=sources)
    return (
        f"no redundant experts: in {hot} of {load.num_layers} layers one expert has more tokens than a rank's share; "
        f"one more slot a rank (--redundant {topology.num_ranks}) gives busiest / mean rank "
        f"{mean_max_over_mean(then):.4f} with greedy",
    )


def _one_more_slot(topology: Topology) -> Topology:
    slots = topology.slots_per_rank
    return replace(topology, slots_per_rank=slots + 1 if isinstance(slots, int) else tuple(of + 1 for of in slots))
