"""Knows what the loss of ranks or nodes does to a placement, and how to plan on with the ranks that are left.

It does not detect failures. The load of lost copies is taken to be split evenly over the copies that survive.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from eplb.errors import InfeasibleError, InputError
from eplb.migration import DEEPSEEK_V3_EXPERT_BYTES
from eplb.placement import EMPTY_SLOT, Placement
from eplb.plan import Plan, Survive
from eplb.rebalancer import rebalance
from eplb.topology import Topology
from eplb_traces import ExpertLoad

Floats = NDArray[np.float64]
Map = NDArray[np.int32]


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
    _check_model(placement, load)
    unit_of_rank = np.arange(topology.num_ranks) if kind is Survive.RANK else topology.node_of_rank
    num_units, num_layers = int(unit_of_rank[-1]) + 1, placement.num_layers
    if num_units == 1:
        raise InputError(f"the only {kind} is lost: expected at least two")
    count = _counts(placement.physical_to_logical_map, placement.num_experts)
    before = _max_over_mean(_rank_time(placement, load.total / count))
    worst, worst_unit = np.full(num_layers, -np.inf), np.zeros(num_layers, np.int64)
    growth, deaths = np.ones(num_layers), []
    for lost in range(num_units):
        survives = unit_of_rank != lost
        slots = ~survives[topology.rank_of_slot]
        left = count - _counts(placement.physical_to_logical_map[:, slots], placement.num_experts)
        alive = left > 0
        time_left = _rank_time(placement, np.divide(load.total, left, out=np.zeros_like(load.total), where=alive))
        reached = _max_over_mean(time_left[:, survives])
        worst_unit[reached > worst] = lost
        worst = np.maximum(worst, reached)
        growth = np.maximum(growth, np.divide(count, left, out=np.ones_like(load.total), where=alive).max(axis=1))
        deaths += [Death(int(layer), lost, int(expert)) for layer, expert in np.argwhere(~alive)]
    return LossReport(kind, worst, worst_unit, before, growth, tuple(sorted(deaths)))


class Survivors(NamedTuple):
    """The machine that is left."""

    topology: Topology
    rank_map: NDArray[np.int64]
    """[R] new rank of each old one, in the old order; -1 for the lost."""
    notes: tuple[str, ...]


def survivors(topology: Topology, lost_ranks: Sequence[int]) -> Survivors:
    """Take ranks away and renumber the rest in order.

    Nodes that keep equally many ranks stay nodes. Otherwise a `Topology` cannot say them, and all ranks become one
    node; a note says so.

    Raises
    ------
    InputError
        If a rank does not exist or is named twice.
    InfeasibleError
        If no rank is left.
    """
    lost = [int(rank) for rank in lost_ranks]
    for rank in lost:
        if not 0 <= rank < topology.num_ranks:
            raise InputError(f"lost rank {rank}: expected 0 <= rank < {topology.num_ranks}")
        if lost.count(rank) > 1:
            raise InputError(f"lost rank {rank}: named {lost.count(rank)} times, expected once")
    kept = np.setdiff1d(np.arange(topology.num_ranks), lost)
    if not kept.size:
        raise InfeasibleError(f"all {topology.num_ranks} ranks are lost: none is left to plan for")
    rank_map = np.full(topology.num_ranks, -1, dtype=np.int64)
    rank_map[kept] = np.arange(kept.size)
    rank_map.setflags(write=False)
    ranks_on_node = np.bincount(topology.node_of_rank[kept])
    sizes = ranks_on_node[ranks_on_node > 0]
    even = bool((sizes == sizes[0]).all())
    num_nodes = sizes.size if even else 1
    machine = dataclasses.replace(
        topology,
        num_nodes=num_nodes,
        ranks_per_node=kept.size // num_nodes,
        slots_per_rank=topology.rank_num_slots[kept].tolist(),
        rank_speed=topology.relative_speed[kept].tolist(),
    )
    uneven = f"nodes keep {sizes.tolist()} ranks, unequally many: planned as one node of {kept.size} ranks"
    return Survivors(machine, rank_map, () if even else (uneven,))


def replan_without(  # noqa: PLR0913  # a replan and what is lost
    previous: Placement,
    load: ExpertLoad,
    lost_ranks: Sequence[int],
    *,
    target: float = 1.05,
    max_moves: int | None = None,
    expert_bytes: float = DEEPSEEK_V3_EXPERT_BYTES,
    seed: int = 0,
) -> Plan:
    """Plan on with the ranks that are left, with few copies moved.

    Surviving copies keep their slots. Experts that died are loaded from the checkpoint into empty slots, or in place of
    copies that are cheapest to give up: the hottest expert first, each where the busiest of the touched ranks ends
    lowest, ties to the lowest slot. Then `rebalance` moves copies until every layer meets the target.

    Parameters
    ----------
    previous
        The placement that was live, lost ranks included.
    load
        The traffic to serve from now on; windows are summed.
    lost_ranks
        Ranks of `previous` that are gone.
    target, max_moves, expert_bytes, seed
        As in `rebalance`; `max_moves` does not count what is loaded from the checkpoint.

    Returns
    -------
    Plan
        For the machine that `survivors` describes. `migration` starts when the checkpoint is loaded. The notes say
        what was loaded, what moves and how ranks were renumbered.

    Raises
    ------
    InputError
        If placement, load and ranks do not fit together.
    InfeasibleError
        If the survivors have fewer slots than there are experts.
    """
    start = time.perf_counter()
    _check_model(previous, load)
    left = survivors(previous.topology, lost_ranks)
    num_experts = previous.num_experts
    if left.topology.num_slots < num_experts:
        raise InfeasibleError(
            f"{left.topology.num_ranks} ranks are left with {left.topology.num_slots} slots: expected at least one "
            f"for each of {num_experts} experts"
        )
    kept_slots = left.rank_map[previous.topology.rank_of_slot] >= 0
    phy2log = previous.physical_to_logical_map[:, kept_slots].copy()
    num_dead, num_given_up = 0, 0
    for layer in range(previous.num_layers):
        dead = np.setdiff1d(np.arange(num_experts), phy2log[layer])
        num_dead += dead.size
        num_given_up += _revive(load.total[layer], dead, phy2log[layer], left.topology)
    seeded = Placement(phy2log, num_experts, left.topology)
    made = rebalance(seeded, load, target=target, max_moves=max_moves, expert_bytes=expert_bytes, seed=seed)
    lost = sorted(int(rank) for rank in lost_ranks)
    loaded = (
        f"without ranks {lost}: {num_dead} dead experts loaded from the checkpoint "
        f"({num_dead * expert_bytes:.3g} bytes), {num_given_up} of them in place of copies given up"
    )
    renumbered = f"ranks renumbered in order: {_ranges(left.rank_map)}"
    notes = (loaded, *left.notes, renumbered, *made.notes)
    return dataclasses.replace(made, notes=notes, seconds=time.perf_counter() - start)


def _revive(load: Floats, dead: NDArray[np.int64], phy2log: Map, topology: Topology) -> int:
    """Write dead experts into the slots [P] that are cheapest to give up; returns how many held a copy."""
    rank, scale, num_given_up = topology.rank_of_slot, 1 / topology.relative_speed, 0
    for expert in sorted(dead.tolist(), key=lambda e: (-load[e], e)):
        count = _counts(phy2log[None], load.size)[0]
        held = phy2log != EMPTY_SLOT
        unit = np.where(held, load[phy2log] / np.maximum(count[phy2log], 1), 0.0)
        rank_time = np.bincount(rank, weights=unit, minlength=topology.num_ranks) * scale
        # Without one copy each of the others carries this much more.
        more = np.where(held, load[phy2log] / np.maximum(count[phy2log] - 1, 1), 0.0) - unit
        _, first, pair, num_here = np.unique(
            rank * (load.size + 1) + phy2log + 1, return_index=True, return_inverse=True, return_counts=True
        )
        own = rank_time[rank] + (load[expert] - unit + more * (num_here[pair] - 1)) * scale[rank]
        heavier = rank_time[rank[first]] + more[first] * num_here * scale[rank[first]]
        others = np.where(held, _largest_of_others(heavier, phy2log[first])[pair], -np.inf)
        free = ~held | (count[phy2log] > 1)
        best = int(np.where(free, np.maximum(own, others), np.inf).argmin())
        num_given_up += bool(held[best])
        phy2log[best] = expert
    return num_given_up


def _largest_of_others(value: Floats, expert: Map) -> Floats:
    """[N] largest value of the other entries with the same expert; -inf where there is none."""
    order = np.lexsort((value, expert))
    last = np.append(np.diff(expert[order]) != 0, True)
    # Each expert's entries by rising value: the last has the one before it beside it, every other one has the last.
    top = value[order][last]
    others = np.repeat(top, np.diff(np.nonzero(last)[0], prepend=-1))
    before = np.where(np.append(True, last[:-1]), -np.inf, np.append(0.0, value[order][:-1]))
    others[last] = before[last]
    result = np.empty_like(value)
    result[order] = others
    return result


def _check_model(placement: Placement, load: ExpertLoad) -> None:
    found, expected = (load.num_layers, load.num_experts), (placement.num_layers, placement.num_experts)
    if found != expected:
        raise InputError(
            f"load of {found[0]} layers x {found[1]} experts: "
            f"the placement is for {expected[0]} layers x {expected[1]} experts, another model"
        )


def _counts(phy2log: Map, num_experts: int) -> NDArray[np.int64]:
    """[L, E] copies of each expert in some slots [L, any]."""
    num_layers = phy2log.shape[0]
    flat = (phy2log + (np.arange(num_layers) * num_experts)[:, None])[phy2log != EMPTY_SLOT]
    return np.bincount(flat, minlength=num_layers * num_experts).reshape(num_layers, num_experts)


def _rank_time(placement: Placement, unit: Floats) -> Floats:
    """[L, R] tokens over relative speed when each copy of an expert carries `unit` [L, E]."""
    held, topology = placement.physical_to_logical_map, placement.topology
    slot_load = np.where(held == EMPTY_SLOT, 0.0, np.take_along_axis(unit, np.maximum(held, 0), axis=1))
    rank_time: Floats = np.add.reduceat(slot_load, topology.rank_first_slot[:-1], axis=1) / topology.relative_speed
    return rank_time


def _max_over_mean(rank_time: Floats) -> Floats:
    """[L] busiest over mean rank; 1 for a layer without load."""
    mean = rank_time.mean(axis=1)
    return np.divide(rank_time.max(axis=1), mean, out=np.ones_like(mean), where=mean > 0)


def _ranges(rank_map: NDArray[np.int64]) -> str:
    """The map as runs: "0-2 stay, 4-7 -> 3-6"."""
    kept = np.nonzero(rank_map >= 0)[0]
    runs = np.split(kept, np.nonzero(np.diff(kept) > 1)[0] + 1)
    return ", ".join(
        f"{_run(run[0], run[-1])} -> {_run(rank_map[run[0]], rank_map[run[-1]])}" for run in runs if run.size
    )


def _run(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
