"""Executes a `Migration` on running ranks, layer by layer; a layer is moved completely or not at all.

A layer moves in four steps. After each step the ranks compare their state; if one failed, none continues::

    step        live slots      staging        maps       a failure leaves
    stage       old, only read  filling        old        the old layer
    check       old             complete       old        the old layer
    commit      old -> new      new -> old     old        the old layer: swapped slots are swapped back
    publish     new             old            -> new     the old layer: first weights, then maps are restored

Weights never change their address. From the commit on, staging holds the old weights, so that a failed commit can be
undone. Layers are independent: tokens may flow before, between and after them, and between `stage` and `commit`.
One failure cannot be undone: a rank that fails between the last comparison and its own publish. The other ranks then
find the group broken, or a different epoch, at their next comparison.

With `Transport.PEER_MEMORY` the transfer runs beside the layers: `begin` a layer, `push` a piece before each forward
pass or each FFN, then `stage` what is left. `push` waits for no other rank and not for the device.

On a GPU run all calls on the stream that runs the layers, so that the commit comes after the last read of the layer.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eplb.core.migration import Migration
from eplb.core.named_enum import NamedEnum
from eplb.core.placement import Placement
from eplb.errors import EplbError, InputError
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.experts.slot_experts import SlotExperts
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.peer_staging import PeerStaging
from eplb.runtime.staged_experts import StagedExperts
from eplb.runtime.weights.expert_weights import ExpertWeights

_NO_LAYER = -1


class MigrationError(EplbError):
    """A migration stopped. The layer named in the message has its old weights and maps on every rank that answers."""


class MigrationPoint(StrEnum):
    """Points at which the observer is called on every rank."""

    PREPARED = "prepared"
    """Before a layer is staged."""
    EXCHANGED = "exchanged"
    """Some experts have arrived in staging and are not checked yet."""
    STAGED = "staged"
    """Staging is complete and checked."""
    COMMITTING = "committing"
    """One more slot has its new weights."""
    PUBLISHED = "published"
    """The maps are published; the other ranks may still fail."""


class Transport(NamedEnum):
    """How experts travel between processes."""

    MESSAGES = "messages"
    """Sends and receives of the communicator, on the stream of the layers."""
    PEER_MEMORY = "peer_memory"
    """Copies into the staging memory of the receiver, on a stream of their own; needs GPUs with peer access."""


Staging = Mapping[int, Mapping[str, Tensor]]
"""Parts of the experts in staging, by global slot; only slots of this process."""
Observer = Callable[[MigrationPoint, int, Staging], None]
"""Called with the point, the layer and the staging. An exception counts as a failure of that step on its rank."""


def unobserved(point: MigrationPoint, layer: int, staging: Staging) -> None:
    """The observer that does nothing."""


def migrate(migration: Migration, weights: ExpertWeights, tables: PlacementTables, ranks: RankGroup) -> None:
    """Execute a migration, layer by layer; see `LiveMigration`.

    Raises
    ------
    MigrationError
        On every rank, if the migration stopped. Layers before the one named have moved, the others have not.
    """
    live = LiveMigration(migration, weights, tables, ranks)
    for layer in live.layers:
        live.stage(layer)
        live.commit(layer)


@final
class LiveMigration:
    """One rank's part of a migration; all ranks create one and call the same methods in the same order.

    Parameters
    ----------
    migration
        The replicas to move, the same on all ranks: `Migration.between` of the published and the new placement.
    weights
        The weights of this process: the slots of all ranks that it executes, in order.
    tables
        The maps that are published.
    ranks
        The processes that take part and the ranks of each.
    observer
        Called at every step; for tests and for the verifier's injected faults.
    transport
        How experts travel.

    Raises
    ------
    MigrationError
        On every rank, if one has another plan, its sizes do not fit, or there is no peer memory.
    """

    layers: tuple[int, ...]
    """Layers that change, ascending."""

    def __init__(  # noqa: PLR0913  # what a migration is made of
        self,
        migration: Migration,
        weights: ExpertWeights,
        tables: PlacementTables,
        ranks: RankGroup,
        observer: Observer = unobserved,
        transport: Transport = Transport.MESSAGES,
    ) -> None:
        self._migration, self._tables, self._ranks, self._observer = migration, tables, ranks, observer
        self._device = weights.device
        self._plan_hash = _plan_hash(migration)
        self._staged_layer, self._begun_layer = _NO_LAYER, _NO_LAYER
        self._peers: PeerStaging | None = None
        self.layers = _changed_layers(migration.before, migration.after)
        self._on_all_ranks(_NO_LAYER, "planning", partial(self._create, weights))
        self._on_all_ranks(_NO_LAYER, "allocating", partial(self._allocate, transport))

    def begin(self, layer: int) -> None:
        """Start the transfer of a layer's new experts; `push` moves them, `stage` moves the rest.

        Raises
        ------
        InputError
            With another transport than peer memory.
        MigrationError
            On every rank, if one failed. The layer is unchanged.
        """
        peers = self._peer_staging()
        self._staged_layer = self._begun_layer = _NO_LAYER
        self._on_all_ranks(layer, "preparing", partial(self._prepare, layer))
        self._on_all_ranks(layer, "starting", partial(self._staging.start, layer, peers))
        self._begun_layer = layer

    def push(self, num_bytes: int) -> int:
        """Copy the next bytes beside what the stream of the layers runs from now on, without waiting for anything.

        Returns
        -------
        int
            Bytes that this process still has to send.

        Raises
        ------
        InputError
            With another transport than peer memory.
        """
        return self._peer_staging().push(num_bytes)

    @property
    def copy_streams(self) -> "tuple[torch.cuda.Stream, ...]":
        """The streams of the copies over peer memory; none on a CPU."""
        return self._peer_staging().streams

    def stage(self, layer: int) -> None:
        """Transfer the layer's new experts into staging and check them; live weights are only read.

        Raises
        ------
        MigrationError
            On every rank, if one failed. The layer is unchanged.
        """
        if self._peers is None:
            self._staged_layer = _NO_LAYER
            self._on_all_ranks(layer, "preparing", partial(self._prepare, layer))
            for transfers in self._staging.exchanges(layer):
                self._on_all_ranks(layer, "exchanging", partial(self._exchange, layer, transfers))
        else:
            if self._begun_layer != layer:
                self.begin(layer)
            self._begun_layer = _NO_LAYER
            self._on_all_ranks(layer, "pushing", self._peers.finish)
            self._on_all_ranks(layer, "exchanging", partial(self._observe, MigrationPoint.EXCHANGED, layer))
        self._on_all_ranks(layer, "checking", partial(self._check, layer))
        self._staged_layer = layer

    def commit(self, layer: int) -> None:
        """Give the layer its new weights, then publish its new maps.

        Raises
        ------
        MigrationError
            On every rank, if one failed or has not staged this layer. The layer is unchanged.
        """
        swapped: list[int] = []
        epoch = int(self._tables.epoch_L[layer])
        try:
            self._on_all_ranks(layer, "committing", partial(self._commit, layer, swapped))
        except MigrationError:
            self._swap_back(layer, swapped)
            raise
        try:
            self._on_all_ranks(layer, "publishing", partial(self._publish, layer))
        except MigrationError:
            self._swap_back(layer, swapped)
            _publish_row(self._tables, self._migration.before, layer)
            self._tables.epoch_L[layer] = epoch + 2  # published twice, also on ranks where publishing failed
            raise
        finally:
            self._staged_layer = _NO_LAYER

    def _on_all_ranks(self, layer: int, doing: str, step: Callable[[], None]) -> None:
        """Execute a step, then compare over the ranks: success, plan and epoch."""
        place = f"{doing} the migration" if layer == _NO_LAYER else f"{doing} layer {layer}"
        failure: Exception | None = None
        try:
            step()
        except Exception as error:  # any failure must be reported to the other ranks
            failure = error
        epoch = int(self._tables.epoch_L[layer]) if layer != _NO_LAYER else 0
        try:
            states = self._gather([failure is not None, epoch, self._plan_hash])
        except (RuntimeError, ValueError) as error:
            raise MigrationError(f"{place}: the other ranks do not answer: {error}") from error
        failed = [process for process, state in enumerate(states) if state[0]]
        if failed:
            cause = "its own message has the cause" if failure is None else failure
            raise MigrationError(f"{place}: failed on rank {failed[0]}: {cause}") from failure
        for name, values in (("epoch", [s[1] for s in states]), ("plan", [s[2] for s in states])):
            if len(set(values)) > 1:
                other = next(i for i, value in enumerate(values) if value != values[0])
                raise MigrationError(f"{place}: rank {other} has {name} {values[other]}, rank 0 has {values[0]}")

    def _gather(self, state: list[int]) -> list[list[int]]:
        own = torch.tensor(state, dtype=torch.int64, device=self._device)
        return [[int(value) for value in other] for other in self._ranks.all_gather(own).tolist()]

    def _observe(self, point: MigrationPoint, layer: int) -> None:
        self._observer(point, layer, self._staging.parts)

    def _create(self, weights: ExpertWeights) -> None:
        self._staging = StagedExperts(self._migration, weights, self._ranks)

    def _allocate(self, transport: Transport) -> None:
        if transport is Transport.PEER_MEMORY:
            self._peers = self._staging.allocate_for_peers()
        else:
            self._staging.allocate()

    def _peer_staging(self) -> PeerStaging:
        if self._peers is None:
            raise InputError("transport messages moves a whole layer in stage(): expected peer_memory")
        return self._peers

    def _prepare(self, layer: int) -> None:
        published = self._tables.phy2log_LP[layer].cpu().numpy()
        if not np.array_equal(published, self._migration.before.physical_to_logical_map[layer]):
            raise InputError(f"layer {layer}: the published map is not the one that the migration starts from")
        self._staging.begin(layer)
        self._observe(MigrationPoint.PREPARED, layer)

    def _exchange(self, layer: int, transfers: NDArray[np.int64]) -> None:
        self._staging.exchange(layer, transfers)
        self._observe(MigrationPoint.EXCHANGED, layer)

    def _check(self, layer: int) -> None:
        self._staging.check_received()
        self._staging.copy_local(layer)
        self._observe(MigrationPoint.STAGED, layer)

    def _commit(self, layer: int, swapped: list[int]) -> None:
        if self._staged_layer != layer:
            raise InputError(f"layer {layer} is not staged")
        for slot in self._staging.parts:
            self._staging.swap(layer, slot)
            swapped.append(slot)
            self._observe(MigrationPoint.COMMITTING, layer)

    def _swap_back(self, layer: int, swapped: list[int]) -> None:
        for slot in swapped:
            self._staging.swap(layer, slot)

    def _publish(self, layer: int) -> None:
        _publish_row(self._tables, self._migration.after, layer)
        self._observe(MigrationPoint.PUBLISHED, layer)


@final
@dataclass(frozen=True)
class PushingExperts:
    """`SlotExperts` that push the next piece of a migration under each call, where the wire is idle.

    Not for captured layers, whose calls are recorded once: there push between two replays.

    Parameters
    ----------
    experts
        The experts that compute.
    live
        A migration over peer memory; without a layer that was begun nothing is pushed.
    piece_bytes
        Bytes of a piece; it should take less time than the experts.
    """

    experts: SlotExperts
    live: LiveMigration
    piece_bytes: int

    def forward(self, layer: int, x_RH: Tensor, rows_per_slot: Tensor) -> Tensor:
        """See `SlotExperts`."""
        self.live.push(self.piece_bytes)
        return self.experts.forward(layer, x_RH, rows_per_slot)


def _publish_row(tables: PlacementTables, placement: Placement, layer: int) -> None:
    weights = placement.replica_weights
    tables.publish(layer, placement.physical_to_logical_map[layer], None if weights is None else weights[layer])


def _changed_layers(before: Placement, after: Placement) -> tuple[int, ...]:
    """Layers in which a slot or a replica's share changes."""
    changed = (before.physical_to_logical_map != after.physical_to_logical_map).any(axis=1)
    old, new = before.replica_weights, after.replica_weights
    if (old is None) != (new is None):
        changed[:] = True
    elif old is not None and new is not None:
        changed |= (old != new).any(axis=1)
    return tuple(np.nonzero(changed)[0].tolist())


def _plan_hash(migration: Migration) -> int:
    """63-bit hash of everything that must be equal on all ranks."""
    digest = hashlib.blake2b(digest_size=8)
    for placement in (migration.before, migration.after):
        digest.update(f"{placement.topology!r} {placement.num_experts};".encode())
        digest.update(placement.physical_to_logical_map.tobytes())
        if placement.replica_weights is not None:
            digest.update(placement.replica_weights.tobytes())
    for array in (migration.layer, migration.slot, migration.source_slot, migration.batch):
        digest.update(array.tobytes())
    return int.from_bytes(digest.digest(), "little") >> 1
