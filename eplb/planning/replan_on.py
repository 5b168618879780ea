"""Replans a live placement for other ranks, slots or nodes, with few replicas moved.

Ranks that retire are sources of the migration; lost ranks are not. What only lost ranks held is loaded from the
checkpoint. The load of every expert is split evenly over its replicas.
"""

import dataclasses
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from eplb.arguments.accepted import LoadLike, PlacementLike, accepted_load, accepted_placement
from eplb.core.arrays import Ints, Map
from eplb.core.expert_bytes import known_expert_bytes
from eplb.core.migration import Migration, keep_slots
from eplb.core.placement import EMPTY_SLOT, Placement, replica_counts
from eplb.core.problem import Plan, Problem
from eplb.core.topology import Topology
from eplb.core.topology_change import GONE, TopologyChange
from eplb.errors import InfeasibleError, InputError
from eplb.planning.rebalance import Horizon, rebalance
from eplb.planning.replan_without_ranks import place_lost
from eplb.strategies.incremental.carry_over import carried_over, evened, num_fetched
from eplb.strategies.incremental.incremental import Held
from eplb_traces import ExpertLoad
from eplb_traces.jit import WorkClock
from eplb_traces.model_shape import id_ranges, id_runs

EXTRA_FETCHES = 0.1
"""Share of the fetches that fill slots that may be added for a better balance."""


def replan_on(  # noqa: PLR0913  # a replan and what changes
    previous: PlacementLike,
    load: LoadLike,
    change: TopologyChange,
    *,
    target: float = 1.05,
    max_moves: int | None = None,
    horizon: Horizon | None = None,
    expert_bytes: float | None = None,
    seed: int = 0,
) -> Plan:
    """Replan for other ranks, while moving few replicas.

    Replicas on ranks that stay are kept as far as there are slots. Every other slot is filled: first with the experts
    that have no replica left, then with redundant replicas. What fills slots is chosen for the balance, with at most
    `EXTRA_FETCHES` more copies. Then `rebalance` moves replicas until every layer meets the target.

    Parameters
    ----------
    previous
        The live placement, its plan, or the path of its file.
    load
        The load to serve from now on, in any form that `plan` takes; windows are summed.
    change
        Which rank is which, and which ranks are lost; its old topology must be that of `previous`.
    target, max_moves, horizon, expert_bytes, seed
        As in `rebalance`. `max_moves` and `horizon` are about moves beyond those that fill slots.

    Returns
    -------
    Plan
        For the new topology, without empty slots. `migration` is between placements on `change.union`, and starts
        after lost experts are loaded from the checkpoint. The notes give the ranks and the replicas that fill slots.

    Raises
    ------
    InputError
        If placement, load and topologies do not fit together.
    InfeasibleError
        If the new topology has fewer slots than there are experts.

    Examples
    --------
    >>> import eplb
    >>> old = eplb.Topology(num_nodes=1, ranks_per_node=4, slots_per_rank=2)
    >>> new = eplb.Topology(num_nodes=1, ranks_per_node=3, slots_per_rank=2)
    >>> live = eplb.plan([[9.0, 3.0, 2.0, 2.0]], old)
    >>> change = eplb.TopologyChange(old, new, rank_map=(0, 1, 2, -1))
    >>> eplb.replan_on(live, [[9.0, 3.0, 2.0, 2.0]], change)
    Plan(incremental, 1 layer of 4 experts on 3 ranks, 0.20 % above the bound at worst)
    """
    clock = WorkClock()
    load = accepted_load(load)
    previous = accepted_placement(previous, load.shape, "previous")
    previous.check_model(load.shape)
    _check_slots(previous, change)
    Problem(load, change.after)
    held_slots, first_held = change.carried_slots
    held = Held(np.ascontiguousarray(previous.physical_to_logical_map[:, held_slots]), first_held)
    expert_bytes = known_expert_bytes(expert_bytes, load.shape)
    is_free = max_moves is None and horizon is None
    filled = _filled(load, held, change.after, extra=EXTRA_FETCHES if is_free else 0.0)
    live = Placement(filled, previous.num_experts, change.after)
    made = rebalance(
        live, load, target=target, max_moves=max_moves, horizon=horizon, expert_bytes=expert_bytes, seed=seed
    )
    phy2log = made.placement.physical_to_logical_map.copy()
    keep_slots(_first_slots(held, change.after), phy2log, change.after.rank_first_slot)
    placement = Placement(phy2log, previous.num_experts, change.after)
    moved = migration_between(previous, placement, change, expert_bytes)
    return dataclasses.replace(
        made,
        placement=placement,
        migration=moved.migration,
        notes=(*change_notes(change), *_fill_notes(moved, filled, held, change, expert_bytes), *made.notes),
        seconds=clock.seconds(),
    )


def _check_slots(previous: Placement, change: TopologyChange) -> None:
    if not np.array_equal(previous.topology.rank_of_slot, change.before.rank_of_slot):
        raise InputError("change: expected the ranks and slots of the previous placement as its old topology")
    num_slots, num_experts = change.after.num_slots, previous.num_experts
    if num_slots < num_experts:
        least = -(-num_experts // change.after.num_ranks)
        raise InfeasibleError(
            f"{change.after.num_ranks} ranks have {num_slots} slots: expected at least one for each of {num_experts} "
            f"experts ({least} slots a rank)"
        )


def _filled(load: ExpertLoad, held: Held, topology: Topology, *, extra: float) -> Map:
    """[L, P] what the ranks keep and the experts that fill the other slots."""
    filled = carried_over(load.total, held, topology)
    for layer in np.nonzero((replica_counts(filled, load.num_experts) == 0).any(axis=1))[0]:
        lacking = np.setdiff1d(np.arange(load.num_experts), filled[layer])
        place_lost(load.total[layer], lacking, filled[layer], topology)
    return evened(load.total, filled, held, topology, extra=extra)


def _first_slots(held: Held, topology: Topology) -> Map:
    """[L, P] what each rank's first slots held, as many as it has now; -1 where it had none."""
    old = np.full((held.phy2log.shape[0], topology.num_slots), EMPTY_SLOT, dtype=np.int32)
    for rank, begin in enumerate(topology.rank_first_slot[:-1].tolist()):
        first, end = held.first_slot[rank : rank + 2].tolist()
        size = min(end - first, int(topology.rank_num_slots[rank]))
        old[:, begin : begin + size] = held.phy2log[:, first : first + size]
    return old


class Moved(NamedTuple):
    """The copies between placements on different topologies."""

    migration: Migration
    """On `TopologyChange.union`, from when the lost experts are loaded."""
    num_loaded: int
    """Experts that only lost ranks held, over all layers: loaded from the checkpoint, once each."""


def migration_between(before: Placement, after: Placement, change: TopologyChange, expert_bytes: float | None) -> Moved:
    """Find sources and batches on the topology that holds old and new ranks.

    A lost expert counts as loaded into one of its new slots, or into another slot of which the old content is not
    needed, before the migration starts.

    Raises
    ------
    PlacementError
        If the placements are of different models.
    """
    old = change.old_on_union(before.physical_to_logical_map)
    new = change.new_on_union(after.physical_to_logical_map)
    counts, num_loaded = replica_counts(old, before.num_experts), 0
    for layer, expert in np.argwhere(counts == 0).tolist():
        _load(old[layer], new[layer], counts[layer], expert)
        num_loaded += 1
    union = change.union
    start, end = Placement(old, before.num_experts, union), Placement(new, after.num_experts, union)
    return Moved(Migration.between(start, end, expert_bytes), num_loaded)


def _load(old: Map, new: Map, count: Ints, expert: int) -> None:
    """Write a lost expert into the old map [P], where that leaves every other expert a replica."""
    is_free = (old == EMPTY_SLOT) | (count[old] > 1)
    for slots in (is_free & (new == expert), is_free & (old == EMPTY_SLOT), is_free):
        if slots.any():
            slot = int(slots.argmax())
            if old[slot] != EMPTY_SLOT:
                count[old[slot]] -= 1
            old[slot], count[expert] = expert, 1
            return


def change_notes(change: TopologyChange) -> tuple[str, ...]:
    """Which rank is which, in sentences."""
    kept = [old for old, new in enumerate(change.rank_map) if new != GONE]
    pairs = ", ".join(_as_runs(list(run), [change.rank_map[old] for old in run]) for run in id_runs(kept))
    sentences = [f"ranks, old -> new: {pairs or 'none stays'}"]
    for name, ranks in (("retiring", change.retiring), ("lost", change.lost), ("added", change.added)):
        if ranks:
            sentences.append(f"{name} ranks: {id_ranges(ranks)}")
    return tuple(sentences)


def _as_runs(old: list[int], new: list[int]) -> str:
    """Pairs of ranges: a run of old ids is cut where the new ids have a gap."""
    cuts = [0, *(i for i in range(1, len(new)) if new[i] != new[i - 1] + 1), len(new)]
    return ", ".join(f"{id_ranges(old[a:b])} -> {id_ranges(new[a:b])}" for a, b in pairwise(cuts))


def _fill_notes(
    moved: Moved, filled: Map, held: Held, change: TopologyChange, expert_bytes: float | None
) -> tuple[str, ...]:
    needed = int(num_fetched(filled, held, change.after, moved.migration.before.num_experts).sum())
    filled_slots = f"{needed} slots filled with experts that their ranks did not hold"
    if not change.lost:
        return (filled_slots,)
    volume = "" if expert_bytes is None else f" ({moved.num_loaded * expert_bytes:.3g} bytes)"
    return filled_slots, f"{moved.num_loaded} lost experts loaded from the checkpoint{volume}"
