"""Knows how running ranks carry out a `Migration`: all of a layer or nothing of it; decides no placement.

A layer moves in four steps, and after each of them the ranks compare notes: if one failed, none goes on::

    step        live slots      staging        maps       a failure leaves
    stage       old, only read  filling        old        the old layer
    check       old             whole          old        the old layer
    commit      old -> new      new -> old     old        the old layer: what was exchanged is exchanged back
    publish     new             old            -> new     the old layer, weights first, then maps; else the new one

Weights never change their address. Staging holds the old weights from the commit on, which is what makes going back
possible. Layers are independent: tokens may flow before, between and after them, and between `stage` and `commit`.
What no protocol can mend is a rank that dies between the last comparison and its own publish; the others then find the
group broken, or another epoch, at their next comparison.

On a GPU call everything on the stream that runs the layers: that orders the commit behind the layer's last reader.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from functools import partial
from typing import final

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from eplb.core.migration import Migration
from eplb.core.placement import Placement
from eplb.errors import EplbError, InputError
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.weights.expert_weights import ExpertBank
from eplb.runtime.weights.fingerprint import as_bytes, fingerprint

_NO_LAYER = -1


class MigrationError(EplbError):
    """A migration that stopped. The layer named has its old weights and its old maps, on every rank that answers."""


class MigrationPoint(StrEnum):
    """Where an observer is called, on every rank."""

    PREPARED = "prepared"
    """A layer is about to be staged."""
    EXCHANGED = "exchanged"
    """Some experts have arrived in staging and are not checked yet."""
    STAGED = "staged"
    """Staging is whole and checked."""
    COMMITTING = "committing"
    """One more slot has its new weights."""
    PUBLISHED = "published"
    """The maps are published; the other ranks may still fail."""


Staging = Mapping[int, Mapping[str, Tensor]]
"""Parts of the experts that are under way, by global slot; only slots of this process."""
Observer = Callable[[MigrationPoint, int, Staging], None]
"""Called with the point, the layer and the staging. What it raises counts as a failure of that step on its rank."""


def unobserved(point: MigrationPoint, layer: int, staging: Staging) -> None:
    """The observer that does nothing."""


def migrate(migration: Migration, bank: ExpertBank, tables: PlacementTables, ranks: RankGroup) -> None:
    """Carry out a migration, layer by layer; see `LiveMigration`.

    Raises
    ------
    MigrationError
        On every rank, if it stopped. Layers before the one named have moved, the others have not.
    """
    live = LiveMigration(migration, bank, tables, ranks)
    for layer in live.layers:
        live.stage(layer)
        live.commit(layer)


@final
class LiveMigration:
    """One rank's part of a migration; all ranks make one and call the same methods in the same order.

    Parameters
    ----------
    migration
        What moves from where, the same on all ranks: `Migration.between` of the published and the new placement.
    bank
        This process's slots: those of all ranks that it executes, one after the other.
    tables
        The maps that are published.
    ranks
        The processes that take part, and which of them executes which ranks.
    observer
        Sees every step; for tests and for the verifier's injected faults.

    Raises
    ------
    MigrationError
        On every rank, if one has another plan or cannot take part.
    """

    batches_per_exchange = 8
    """Batches of a migration in one `batch_isend_irecv`: hundreds of operations in one call hang NCCL."""

    layers: tuple[int, ...]
    """Layers that change, ascending."""

    def __init__(
        self,
        migration: Migration,
        bank: ExpertBank,
        tables: PlacementTables,
        ranks: RankGroup,
        observer: Observer = unobserved,
    ) -> None:
        self._migration, self._bank, self._tables, self._observer = migration, bank, tables, observer
        self._ranks = ranks
        self._first_slot = np.array([ranks.first_slot(process) for process in range(ranks.num_processes + 1)])
        self._plan_hash = _plan_hash(migration)
        self._staged_layer = _NO_LAYER
        self._staging: dict[int, dict[str, Tensor]] = {}
        self.layers = _changed_layers(migration.before, migration.after)
        self._together(_NO_LAYER, "planning", self._prepare_memory)

    def stage(self, layer: int) -> None:
        """Bring the layer's new experts into staging and check them; live weights are only read.

        Raises
        ------
        MigrationError
            On every rank, if one failed. The layer is as it was.
        """
        self._staged_layer = _NO_LAYER
        headers: dict[int, Tensor] = {}
        self._together(layer, "preparing", partial(self._prepare, layer))
        for copies in self._exchanges(layer):
            self._together(layer, "exchanging", partial(self._exchange, layer, copies, headers))
        self._together(layer, "checking", partial(self._check, layer, headers))
        self._staged_layer = layer

    def commit(self, layer: int) -> None:
        """Give the layer its new weights, then publish its new maps.

        Raises
        ------
        MigrationError
            On every rank, if one failed or has not staged this layer. The layer is as it was.
        """
        done: list[int] = []
        epoch = int(self._tables.epoch_L[layer])
        try:
            self._together(layer, "committing", partial(self._commit, layer, done))
        except MigrationError:
            self._exchange_back(layer, done)
            raise
        try:
            self._together(layer, "publishing", partial(self._publish, layer))
        except MigrationError:
            self._exchange_back(layer, done)
            _publish_row(self._tables, self._migration.before, layer)
            self._tables.epoch_L[layer] = epoch + 2  # new and old again, also where publishing failed
            raise
        finally:
            self._staged_layer = _NO_LAYER

    def _together(self, layer: int, doing: str, step: Callable[[], None]) -> None:
        """Do a step, then compare notes: whether it worked, on the same plan, in the same epoch."""
        failure: Exception | None = None
        try:
            step()
        except Exception as error:  # whatever it is, the others have to hear of it
            failure = error
        epoch = int(self._tables.epoch_L[layer]) if layer != _NO_LAYER else 0
        try:
            notes = self._gather([failure is not None, epoch, self._plan_hash])
        except (RuntimeError, ValueError) as error:
            raise MigrationError(f"{doing} {_word(layer)}: the other ranks do not answer: {error}") from error
        failed = [process for process, note in enumerate(notes) if note[0]]
        if failed:
            raise MigrationError(f"{doing} {_word(layer)}: failed on rank {failed[0]}: {failure}") from failure
        for word, values in (("epoch", [n[1] for n in notes]), ("plan", [n[2] for n in notes])):
            if len(set(values)) > 1:
                other = next(i for i, value in enumerate(values) if value != values[0])
                raise MigrationError(
                    f"{doing} {_word(layer)}: rank {other} has {word} {values[other]}, rank 0 has {values[0]}"
                )

    def _gather(self, note: list[int]) -> list[list[int]]:
        mine = torch.tensor(note, dtype=torch.int64, device=self._bank.device)
        return [[int(value) for value in other] for other in self._ranks.all_gather(mine).tolist()]

    def _prepare_memory(self) -> None:
        """Staging for the layer that needs most of it."""
        shape, plan = self._bank.shape, self._migration.before
        if plan.topology != self._ranks.topology:
            raise InputError("the migration is for another topology than the ranks have")
        expected = (plan.num_layers, len(self._ranks.slots))
        if (shape.num_layers, shape.num_slots) != expected:
            raise InputError(
                f"the bank has {shape.num_layers} layers of {shape.num_slots} slots: "
                f"expected {expected[0]} of {expected[1]}"
            )
        mine = self._owner(self._migration.slot) == self._ranks.process
        counts = np.bincount(self._migration.layer[mine], minlength=1)
        self._buffers = {
            name: torch.empty((int(counts.max()), *part.shape[1:]), dtype=part.dtype, device=part.device)
            for name, part in self._bank.layer_parts(0).items()
        }

    def _owner(self, slots: NDArray[np.int32]) -> NDArray[np.int64]:
        """Process that holds each slot."""
        return np.searchsorted(self._first_slot, slots, side="right").astype(np.int64) - 1

    def _live(self, layer: int, slot: int) -> dict[str, Tensor]:
        return self._bank.slot_parts(layer, slot - self._ranks.slots.start)

    def _prepare(self, layer: int) -> None:
        published = self._tables.phy2log_LP[layer].cpu().numpy()
        if not np.array_equal(published, self._migration.before.physical_to_logical_map[layer]):
            raise InputError(f"layer {layer}: the published map is not the one that the migration starts from")
        in_layer = self._migration.layer == layer
        slots = self._migration.slot[in_layer & (self._owner(self._migration.slot) == self._ranks.process)]
        self._staging = {
            slot: {name: buffer[index] for name, buffer in self._buffers.items()}
            for index, slot in enumerate(slots.tolist())
        }
        self._observer(MigrationPoint.PREPARED, layer, self._staging)

    def _exchanges(self, layer: int) -> Iterator[NDArray[np.int64]]:
        """Copies that cross processes, some batches at a time, by expert and slot: the same lists on all processes."""
        plan = self._migration
        crossing = (plan.layer == layer) & (self._owner(plan.slot) != self._owner(plan.source_slot))
        for first in range(0, int(plan.num_batches_by_layer[layer]), self.batches_per_exchange):
            copies = np.nonzero(crossing & (plan.batch >= first) & (plan.batch < first + self.batches_per_exchange))[0]
            yield copies[np.lexsort((plan.slot[copies], plan.expert[copies]))]

    def _exchange(self, layer: int, copies: NDArray[np.int64], headers: dict[int, Tensor]) -> None:
        """Send and receive; ahead of each expert goes its header, the fingerprints of its parts and its number."""
        plan, operations = self._migration, []
        source, target = self._owner(plan.source_slot[copies]), self._owner(plan.slot[copies])
        for i, sender, receiver in zip(copies.tolist(), source.tolist(), target.tolist(), strict=True):
            if sender == self._ranks.process:
                parts = self._live(layer, int(plan.source_slot[i]))
                operations += self._operations(dist.isend, receiver, _header(parts, int(plan.expert[i])), parts)
            elif receiver == self._ranks.process:
                parts = self._staging[int(plan.slot[i])]
                headers[i] = torch.empty(len(parts) + 1, dtype=torch.int64, device=self._bank.device)
                operations += self._operations(dist.irecv, sender, headers[i], parts)
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        self._observer(MigrationPoint.EXCHANGED, layer, self._staging)

    def _operations(
        self, kind: Callable[..., object], process: int, header: Tensor, parts: Mapping[str, Tensor]
    ) -> list[dist.P2POp]:
        group = self._ranks.process_group
        peer = process if group is None else dist.get_global_rank(group, process)
        return [dist.P2POp(kind, as_bytes(tensor), peer, group) for tensor in (header, *parts.values())]

    def _check(self, layer: int, headers: Mapping[int, Tensor]) -> None:
        """What arrived is what was sent; then the copies inside this process."""
        plan = self._migration
        for i, header in headers.items():
            slot, expert = int(plan.slot[i]), int(plan.expert[i])
            if not torch.equal(header, _header(self._staging[slot], expert)):
                raise MigrationError(
                    f"slot {slot} received something else than expert {expert} of slot {plan.source_slot[i]}"
                )
        local = [i for i in np.nonzero(plan.layer == layer)[0].tolist() if int(plan.slot[i]) in self._staging]
        old_row = plan.before.physical_to_logical_map[layer]
        # Sources that only arrive with this migration come last: they may themselves be copies inside the process.
        for i in sorted(set(local) - headers.keys(), key=lambda i: old_row[plan.source_slot[i]] != plan.expert[i]):
            slot, source = int(plan.slot[i]), int(plan.source_slot[i])
            is_old = old_row[source] == plan.expert[i]
            parts = self._live(layer, source) if is_old else self._staging[source]
            for name, part in parts.items():
                self._staging[slot][name].copy_(part)
        self._observer(MigrationPoint.STAGED, layer, self._staging)

    def _commit(self, layer: int, done: list[int]) -> None:
        if self._staged_layer != layer:
            raise InputError(f"layer {layer} is not staged")
        for slot in self._staging:
            self._swap(layer, slot)
            done.append(slot)
            self._observer(MigrationPoint.COMMITTING, layer, self._staging)

    def _swap(self, layer: int, slot: int) -> None:
        """Exchange a live slot with its staging, in place."""
        for name, live in self._live(layer, slot).items():
            old = live.clone()
            live.copy_(self._staging[slot][name])
            self._staging[slot][name].copy_(old)

    def _exchange_back(self, layer: int, done: list[int]) -> None:
        for slot in done:
            self._swap(layer, slot)

    def _publish(self, layer: int) -> None:
        _publish_row(self._tables, self._migration.after, layer)
        self._observer(MigrationPoint.PUBLISHED, layer, self._staging)


def _header(parts: Mapping[str, Tensor], expert: int) -> Tensor:
    """[parts + 1] fingerprint of each part, then the expert's number."""
    number = torch.tensor(expert, dtype=torch.int64, device=next(iter(parts.values())).device)
    return torch.stack([*(fingerprint(part) for part in parts.values()), number])


def _publish_row(tables: PlacementTables, placement: Placement, layer: int) -> None:
    weights = placement.replica_weights
    tables.publish(layer, placement.physical_to_logical_map[layer], None if weights is None else weights[layer])


def _changed_layers(before: Placement, after: Placement) -> tuple[int, ...]:
    """Layers of which a slot or a replica's share changes."""
    changed = (before.physical_to_logical_map != after.physical_to_logical_map).any(axis=1)
    old, new = before.replica_weights, after.replica_weights
    if (old is None) != (new is None):
        changed[:] = True
    elif old is not None and new is not None:
        changed |= (old != new).any(axis=1)
    return tuple(np.nonzero(changed)[0].tolist())


def _plan_hash(migration: Migration) -> int:
    """63 bits of everything that ranks have to agree on."""
    digest = hashlib.blake2b(digest_size=8)
    for placement in (migration.before, migration.after):
        digest.update(f"{placement.topology!r} {placement.num_experts};".encode())
        digest.update(placement.physical_to_logical_map.tobytes())
        if placement.replica_weights is not None:
            digest.update(placement.replica_weights.tobytes())
    for array in (migration.layer, migration.slot, migration.source_slot, migration.batch):
        digest.update(array.tobytes())
    return int.from_bytes(digest.digest(), "little") >> 1


def _word(layer: int) -> str:
    return "the migration" if layer == _NO_LAYER else f"layer {layer}"
