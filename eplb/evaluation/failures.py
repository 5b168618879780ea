"""Judges a placement after the loss of each of its ranks, or nodes, in turn."""

import dataclasses
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Map
from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.core.problem import Survive
from eplb.errors import InputError
from eplb_traces import ExpertLoad


class Death(NamedTuple):
    """An expert all of whose copies are lost with one unit."""

    layer: int
    unit: int
    expert: int


@final
@dataclasses.dataclass(frozen=True, eq=False)
class LossReport:
    """What the loss of any one unit, a rank or a node, does to every layer under the summed load."""

    unit: Survive
    max_over_mean: Floats
    """[L] busiest over mean rank among the survivors of the worst unit; tokens of dead experts are served by nobody."""
    worst_unit: NDArray[np.int64]
    """[L] the unit whose loss leads there; ties to the lowest."""
    before: Floats
    """[L] max/mean with all ranks."""
    growth_bound: Floats
    """[L] how many times busier than the busiest rank of before a survivor can get, whatever the load is.

    Proof. An expert with c copies, k of them lost, puts w / (c - k) on each survivor, c / (c - k) times what it was; so
    no rank grows by more than the largest such factor. The mean of equally fast ranks does not fall when one is lost,
    so this bounds the growth of max/mean as well.
    """
    deaths: tuple[Death, ...]
    """By layer, unit and expert; none if the loss of any one unit is survived."""

    @property
    def survivable(self) -> bool:
        """Whether every expert lives whatever unit is lost."""
        return not self.deaths

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for a plan."""
        layer = int(self.max_over_mean.argmax())
        balance = (
            f"after the loss of any one {self.unit}: max/mean of the survivors {self.max_over_mean.mean():.4f} as a "
            f"mean over layers and {self.max_over_mean[layer]:.4f} at worst (layer {layer} without {self.unit} "
            f"{self.worst_unit[layer]}), where it is {self.before.mean():.4f} and {self.before.max():.4f} with all"
        )
        if self.deaths:
            first = self.deaths[0]
            return (
                balance,
                f"not survivable: {len(self.deaths)} experts live on one {self.unit} only, the first is expert "
                f"{first.expert} of layer {first.layer} on {self.unit} {first.unit}",
            )
        return (
            balance,
            f"survivable: every expert lives after the loss of any one {self.unit}, and under any load the busiest "
            f"rank gets at most {self.growth_bound.max():.4g} times as busy",
        )


def after_loss(placement: Placement, load: ExpertLoad, unit: str = Survive.RANK) -> LossReport:
    """Judge a placement without each of its ranks, or nodes, in turn.

    Parameters
    ----------
    placement
        Where the experts live.
    load
        The traffic; windows are summed.
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
    check_same_model(placement, load)
    unit_of_rank = np.arange(topology.num_ranks) if kind is Survive.RANK else topology.node_of_rank
    num_units, num_layers = int(unit_of_rank[-1]) + 1, placement.num_layers
    if num_units == 1:
        raise InputError(f"the only {kind} is lost: expected at least two")
    count = replica_counts(placement.physical_to_logical_map, placement.num_experts)
    before = max_over_mean(even_rank_time(placement, load.total / count))
    worst, worst_unit = np.full(num_layers, -np.inf), np.zeros(num_layers, np.int64)
    growth, deaths = np.ones(num_layers), []
    for lost in range(num_units):
        survives = unit_of_rank != lost
        slots = ~survives[topology.rank_of_slot]
        left = count - replica_counts(placement.physical_to_logical_map[:, slots], placement.num_experts)
        alive = left > 0
        time_left = even_rank_time(placement, np.divide(load.total, left, out=np.zeros_like(load.total), where=alive))
        reached = max_over_mean(time_left[:, survives])
        worst_unit[reached > worst] = lost
        worst = np.maximum(worst, reached)
        growth = np.maximum(growth, np.divide(count, left, out=np.ones_like(load.total), where=alive).max(axis=1))
        deaths += [Death(int(layer), lost, int(expert)) for layer, expert in np.argwhere(~alive)]
    return LossReport(kind, worst, worst_unit, before, growth, tuple(sorted(deaths)))


def check_same_model(placement: Placement, load: ExpertLoad) -> None:
    """Raise InputError unless placement and load have the same numbers of layers and experts."""
    found, expected = (load.num_layers, load.num_experts), (placement.num_layers, placement.num_experts)
    if found != expected:
        raise InputError(
            f"load of {found[0]} layers x {found[1]} experts: "
            f"the placement is for {expected[0]} layers x {expected[1]} experts, another model"
        )


def replica_counts(phy2log: Map, num_experts: int) -> NDArray[np.int64]:
    """[L, E] copies of each expert in some slots [L, any]."""
    num_layers = phy2log.shape[0]
    flat = (phy2log + (np.arange(num_layers) * num_experts)[:, None])[phy2log != EMPTY_SLOT]
    return np.bincount(flat, minlength=num_layers * num_experts).reshape(num_layers, num_experts)


def even_rank_time(placement: Placement, unit: Floats) -> Floats:
    """[L, R] tokens over relative speed when each copy of an expert carries `unit` [L, E]."""
    held, topology = placement.physical_to_logical_map, placement.topology
    slot_load = np.where(held == EMPTY_SLOT, 0.0, np.take_along_axis(unit, np.maximum(held, 0), axis=1))
    rank_time: Floats = np.add.reduceat(slot_load, topology.rank_first_slot[:-1], axis=1) / topology.relative_speed
    return rank_time


def max_over_mean(rank_time: Floats) -> Floats:
    """[L] busiest over mean rank; 1 for a layer without load."""
    mean = rank_time.mean(axis=1)
    return np.divide(rank_time.max(axis=1), mean, out=np.ones_like(mean), where=mean > 0)
