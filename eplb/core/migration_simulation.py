"""Replays a migration slot by slot and checks every step of it."""

import numpy as np

from eplb.core.arrays import Ints, Map
from eplb.core.migration import Hop, Migration
from eplb.core.placement import EMPTY_SLOT
from eplb.errors import VerificationError


def simulate(migration: Migration) -> int:
    """Replay a migration slot by slot, as the head of `eplb.core.migration` describes it, and check every step.

    Returns
    -------
    int
        The fewest live replicas that any expert had after any batch or commit.

    Raises
    ------
    VerificationError
        If a source does not hold the expert when it is read, a rank sends or receives twice in a batch, an expert has
        no live replica after a batch, or the end is not the new placement.
    """
    live = migration.before.physical_to_logical_map.copy()
    fewest = live.shape[1]
    for layer in np.unique(migration.layer).tolist():
        copies = np.nonzero(migration.layer == layer)[0]
        staged: dict[int, int] = {}
        for batch in range(int(migration.num_batches_by_layer[layer])):
            _run_batch(migration, copies[migration.batch[copies] == batch], live[layer], staged)
            fewest = min(fewest, _least_alive(live[layer], migration, f"layer {layer}, batch {batch}"))
        for i in copies[migration.hop[copies] == Hop.SAME_RANK].tolist():
            source, expert = int(migration.source_slot[i]), int(migration.expert[i])
            if expert not in (live[layer, source], staged.get(source)):
                raise VerificationError(f"copy {i}: slot {source} of layer {layer} does not hold expert {expert}")
            staged[int(migration.slot[i])] = expert
        emptied = migration.after.physical_to_logical_map[layer] == EMPTY_SLOT
        live[layer, emptied] = EMPTY_SLOT
        for slot, expert in staged.items():
            live[layer, slot] = expert
        fewest = min(fewest, _least_alive(live[layer], migration, f"layer {layer}, commit"))
    emptied = migration.after.physical_to_logical_map == EMPTY_SLOT
    live[emptied] = EMPTY_SLOT
    if not np.array_equal(live, migration.after.physical_to_logical_map):
        layer, slot = np.argwhere(live != migration.after.physical_to_logical_map)[0].tolist()
        raise VerificationError(f"layer {layer}, slot {slot} ends with expert {live[layer, slot]}")
    return fewest


def _run_batch(migration: Migration, copies: Ints, live: Map, staged: dict[int, int]) -> None:
    for name, ranks in (("sends", migration.source_rank[copies]), ("receives", migration.rank[copies])):
        if np.unique(ranks).size < ranks.size:
            raise VerificationError(f"copies {copies.tolist()} of one batch: a rank {name} more than one")
    for i in copies.tolist():
        source, expert = int(migration.source_slot[i]), int(migration.expert[i])
        if live[source] != expert:
            raise VerificationError(f"copy {i}: slot {source} holds expert {live[source]}, expected {expert}")
        staged[int(migration.slot[i])] = expert


def _least_alive(live: Map, migration: Migration, place: str) -> int:
    count = np.bincount(live[live != EMPTY_SLOT], minlength=migration.before.num_experts)
    if count.min() == 0:
        raise VerificationError(f"{place}: expert {int(count.argmin())} has no live replica")
    return int(count.min())
