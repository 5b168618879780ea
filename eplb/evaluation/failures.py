"""Evaluates a placement after the loss of each of its ranks, or nodes, in turn."""

import dataclasses
from typing import NamedTuple, final

import numpy as np

from eplb.core.arrays import Floats, Ints
from eplb.core.placement import EMPTY_SLOT, Placement, replica_counts
from eplb.core.problem import Survive
from eplb.errors import InputError
from eplb.evaluation.metrics import max_over_mean, mean_of_known, rank_time, worst_of_known
from eplb_traces import ExpertLoad


class LostExpert(NamedTuple):
    """An expert all of whose replicas are lost with one unit, a rank or a node."""

    layer: int
    unit: int
    expert: int


@final
@dataclasses.dataclass(frozen=True, eq=False)
class LossReport:
    """Balance and lost experts of every layer after the loss of any one unit, under the summed load, split evenly."""

    unit: Survive
    max_over_mean: Floats
    """[L] busiest over mean of the surviving ranks, for the unit whose loss makes it largest; NaN without load.

    Tokens of lost experts are left out.
    """
    worst_unit: Ints
    """[L] that unit; ties to the lowest."""
    before: Floats
    """[L] max/mean with all ranks."""
    growth_bound: Floats
    """[L] largest factor by which the busiest rank can grow, for any load, split evenly before and after.

    Under rules that choose shares for the load it can grow by more.

    Proof. An expert with load w and c replicas, k of them lost, puts w / (c - k) on each rank that keeps a replica:
    c / (c - k) times its load there before. So no rank grows by more than the largest such factor. The mean of equally
    fast ranks does not fall when one is lost, so this bounds the growth of max/mean as well.
    """
    lost_experts: tuple[LostExpert, ...]
    """By layer, unit and expert; empty if every expert survives the loss of any one unit."""

    @property
    def survivable(self) -> bool:
        """Whether every expert has a replica left, whichever unit is lost."""
        return not self.lost_experts

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the notes of a plan."""
        layer = int(np.nan_to_num(self.max_over_mean).argmax())
        mean, before = float(mean_of_known(self.max_over_mean)), float(mean_of_known(self.before))
        balance = (
            f"after the loss of any one {self.unit}: max/mean of the survivors {mean:.4f} as a "
            f"mean over layers and {self.max_over_mean[layer]:.4f} at worst (layer {layer} without {self.unit} "
            f"{self.worst_unit[layer]}), where it is {before:.4f} and {worst_of_known(self.before):.4f} with all"
        )
        if self.lost_experts:
            first = self.lost_experts[0]
            return (
                balance,
                f"not survivable: {len(self.lost_experts)} experts live on one {self.unit} only, the first is expert "
                f"{first.expert} of layer {first.layer} on {self.unit} {first.unit}",
            )
        return (
            balance,
            f"survivable: every expert lives after the loss of any one {self.unit}, and under any load the busiest "
            f"rank gets at most {self.growth_bound.max():.4g} times as busy",
        )


def after_loss(placement: Placement, load: ExpertLoad, unit: str = Survive.RANK) -> LossReport:
    """Evaluate a placement without each of its ranks, or nodes, in turn, under even dispatch.

    Parameters
    ----------
    placement
        Where the experts live.
    load
        Tokens of each expert; windows are summed.
    unit
        "rank" or "node".

    Raises
    ------
    InputError
        If placement and load are of different models, or there is only one unit to lose.
    """
    kind, topology = Survive.named(unit), placement.topology
    if kind is Survive.NOTHING:
        raise InputError(f"unit = {unit!r}: expected rank or node")
    placement.check_model(load.shape)
    unit_of_rank = np.arange(topology.num_ranks) if kind is Survive.RANK else topology.node_of_rank
    num_units, num_layers = int(unit_of_rank[-1]) + 1, placement.num_layers
    if num_units == 1:
        raise InputError(f"the only {kind} is lost: expected at least two")
    phy2log, count = placement.physical_to_logical_map, placement.logical_replica_count
    before = max_over_mean(rank_time(load.total, phy2log, topology))
    worst, worst_unit = np.full(num_layers, -np.inf), np.zeros(num_layers, np.int64)
    growth, lost_experts = np.ones(num_layers), []
    for lost in range(num_units):
        survives = unit_of_rank != lost
        phy2log_left = np.where(survives[topology.rank_of_slot], phy2log, EMPTY_SLOT)
        left = replica_counts(phy2log_left, placement.num_experts)
        reached = max_over_mean(rank_time(load.total, phy2log_left, topology)[:, survives])
        reached[np.isnan(reached)] = 1.0  # only tokens of lost experts
        worst_unit[reached > worst] = lost
        worst = np.maximum(worst, reached)
        growth = np.maximum(growth, np.divide(count, left, out=np.ones_like(load.total), where=left > 0).max(axis=1))
        lost_experts += [LostExpert(int(layer), lost, int(expert)) for layer, expert in np.argwhere(left == 0)]
    worst[load.empty_layers] = np.nan
    return LossReport(kind, worst, worst_unit, before, growth, tuple(sorted(lost_experts)))
