"""Replans after the loss of ranks or nodes, for the ranks that are left.

Failures are not detected here. The load of lost replicas is split evenly over the replicas that are left.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.expert_bytes import known_expert_bytes
from eplb.core.placement import EMPTY_SLOT, Placement, replica_counts
from eplb.core.problem import Plan
from eplb.core.topology import Topology
from eplb.core.topology_change import check_old_ranks
from eplb.errors import InfeasibleError
from eplb.planning.changed_topology import topology_without
from eplb.planning.rebalance import rebalance
from eplb_traces import ExpertLoad
from eplb_traces.jit import WorkClock
from eplb_traces.model_shape import id_ranges, id_runs


class Survivors(NamedTuple):
    """The topology that is left."""

    topology: Topology
    rank_map: NDArray[np.int64]
    """[R] new rank of each old one, in the old order; -1 for the lost."""


def survivors(topology: Topology, lost_ranks: Sequence[int]) -> Survivors:
    """Take ranks away and renumber the rest in order.

    A node keeps the ranks that are left on it; a node that loses all its ranks is no node any more.

    Raises
    ------
    InputError
        If a rank does not exist or is named twice.
    InfeasibleError
        If no rank is left.
    """
    kept = np.setdiff1d(np.arange(topology.num_ranks), check_old_ranks(topology, lost_ranks, "lost rank"))
    if not kept.size:
        raise InfeasibleError(f"all {topology.num_ranks} ranks are lost: none is left to plan for")
    rank_map = np.full(topology.num_ranks, -1, dtype=np.int64)
    rank_map[kept] = np.arange(kept.size)
    rank_map.setflags(write=False)
    return Survivors(topology_without(topology, lost_ranks), rank_map)


def replan_without(  # noqa: PLR0913  # a replan and what is lost
    previous: Placement,
    load: ExpertLoad,
    lost_ranks: Sequence[int],
    *,
    target: float = 1.05,
    max_moves: int | None = None,
    expert_bytes: float | None = None,
    dispatch: str = DispatchRule.EVEN,
    sources: Sequence[float] | None = None,
    seed: int = 0,
) -> Plan:
    """Replan for the ranks that are left, while moving few replicas.

    Replicas that are left keep their slots. Lost experts are loaded from the checkpoint into empty slots, or in place
    of replicas that are cheapest to remove: the hottest expert first, each where the busiest of the changed ranks ends
    lowest, ties to the lowest slot. Then `rebalance` moves replicas until every layer meets the target.

    Parameters
    ----------
    previous
        The live placement, lost ranks included.
    load
        The load to serve from now on; windows are summed.
    lost_ranks
        Ranks of `previous` that are gone.
    target, max_moves, expert_bytes, seed
        As in `rebalance`; `max_moves` does not count replicas loaded from the checkpoint.
    dispatch, sources
        As in `rebalance`; the sources are those of the ranks that are left, one share for each.

    Returns
    -------
    Plan
        For the topology of `survivors`. `migration` starts after the checkpoint is loaded. The notes give the loaded
        experts, the moves and the renumbering of the ranks.

    Raises
    ------
    InputError
        If placement, load and ranks do not fit together.
    InfeasibleError
        If the survivors have fewer slots than there are experts.
    """
    clock = WorkClock()
    previous.check_model(load.shape)
    left = survivors(previous.topology, lost_ranks)
    num_experts = previous.num_experts
    if left.topology.num_slots < num_experts:
        raise InfeasibleError(
            f"{left.topology.num_ranks} ranks are left with {left.topology.num_slots} slots: expected at least one "
            f"for each of {num_experts} experts"
        )
    kept_slots = left.rank_map[previous.topology.rank_of_slot] >= 0
    phy2log = previous.physical_to_logical_map[:, kept_slots].copy()
    num_lost, num_removed = 0, 0
    for layer in range(previous.num_layers):
        lost_experts = np.setdiff1d(np.arange(num_experts), phy2log[layer])
        num_lost += lost_experts.size
        num_removed += place_lost(load.total[layer], lost_experts, phy2log[layer], left.topology)
    seeded = Placement(phy2log, num_experts, left.topology)
    made = rebalance(
        seeded,
        load,
        target=target,
        max_moves=max_moves,
        expert_bytes=expert_bytes,
        dispatch=dispatch,
        sources=sources,
        seed=seed,
    )
    lost = sorted(int(rank) for rank in lost_ranks)
    size = known_expert_bytes(expert_bytes, load.shape)
    volume = "" if size is None else f" ({num_lost * size:.3g} bytes)"
    loaded = (
        f"without ranks {lost}: {num_lost} lost experts loaded from the checkpoint{volume}, {num_removed} of them in "
        "place of removed replicas"
    )
    renumbered = f"ranks renumbered in order: {_renumbered(left.rank_map)}"
    notes = (loaded, renumbered, *made.notes)
    return dataclasses.replace(made, notes=notes, seconds=clock.seconds())


def place_lost(load: Floats, lost_experts: Ints, phy2log: Map, topology: Topology) -> int:
    """Write lost experts into the slots [P] that are cheapest to overwrite; returns how many held a replica."""
    rank, scale, num_removed = topology.rank_of_slot, 1 / topology.relative_speed, 0
    for expert in sorted(lost_experts.tolist(), key=lambda e: (-load[e], e)):
        count = replica_counts(phy2log[None], load.size)[0]
        held = phy2log != EMPTY_SLOT
        unit = np.where(held, load[phy2log] / np.maximum(count[phy2log], 1), 0.0)
        rank_time = np.bincount(rank, weights=unit, minlength=topology.num_ranks) * scale
        # Without one replica each of the others carries this much more.
        more = np.where(held, load[phy2log] / np.maximum(count[phy2log] - 1, 1), 0.0) - unit
        _, first, pair, num_here = np.unique(
            rank * (load.size + 1) + phy2log + 1, return_index=True, return_inverse=True, return_counts=True
        )
        own = rank_time[rank] + (load[expert] - unit + more * (num_here[pair] - 1)) * scale[rank]
        heavier = rank_time[rank[first]] + more[first] * num_here * scale[rank[first]]
        others = np.where(held, _largest_of_others(heavier, phy2log[first])[pair], -np.inf)
        free = ~held | (count[phy2log] > 1)
        best = int(np.where(free, np.maximum(own, others), np.inf).argmin())
        num_removed += bool(held[best])
        phy2log[best] = expert
    return num_removed


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


def _renumbered(rank_map: Ints) -> str:
    """The map as ranges: "0-2 -> 0-2, 4-7 -> 3-6"."""
    kept = id_runs(np.nonzero(rank_map >= 0)[0].tolist())
    return ", ".join(f"{id_ranges(run)} -> {id_ranges(rank_map[run].tolist())}" for run in kept)
