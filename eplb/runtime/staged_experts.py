"""Receives the new experts of a layer into staging memory, checks them, and swaps them with the live weights."""

from collections.abc import Callable, Iterator, Mapping
from typing import final

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from eplb.core.migration import Migration
from eplb.errors import InputError, VerificationError
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.peer_staging import PeerStaging
from eplb.runtime.weights.expert_weights import ExpertWeights
from eplb.runtime.weights.fingerprint import as_bytes, fingerprint

BATCHES_PER_EXCHANGE = 8
"""Batches of a migration in one `batch_isend_irecv`: hundreds of operations in one call hang NCCL."""


@final
class StagedExperts:
    """Staging memory of one process, large enough for any layer of a migration.

    Parameters
    ----------
    migration
        The replicas to move.
    weights
        The live weights of this process: the slots of all ranks that it executes.
    ranks
        The processes and the ranks of each.

    Raises
    ------
    InputError
        If the migration or the weights do not fit the ranks.
    """

    parts: dict[int, dict[str, Tensor]]
    """{global slot of this process: {part name: tensor}} for the layer that is staged."""

    def __init__(self, migration: Migration, weights: ExpertWeights, ranks: RankGroup) -> None:
        self._migration, self._weights, self._ranks = migration, weights, ranks
        self._first_slot = np.array([ranks.first_slot(process) for process in range(ranks.num_processes + 1)])
        self._headers: dict[int, Tensor] = {}
        self._peers: PeerStaging | None = None
        self._buffers: dict[str, Tensor] = {}
        self.parts = {}
        self._check_sizes()

    def allocate(self) -> None:
        """Staging memory that only this process writes into."""
        own = self._process_of(self._migration.slot) == self._ranks.process
        most_slots = int(np.bincount(self._migration.layer[own], minlength=1).max())
        self._buffers = {
            name: torch.empty((most_slots, *part.shape[1:]), dtype=part.dtype, device=part.device)
            for name, part in self._weights.layer_parts(0).items()
        }

    def allocate_for_peers(self) -> PeerStaging:
        """Staging memory that all processes write into; a collective call."""
        plan, processes = self._migration, self._ranks.num_processes
        key = plan.layer.astype(np.int64) * processes + self._process_of(plan.slot)
        self._peers = PeerStaging(self._weights, self._ranks, int(np.bincount(key, minlength=1).max()))
        return self._peers

    def begin(self, layer: int) -> None:
        """Assign staging memory to the slots of this process that change in a layer."""
        own, self._headers = self._ranks.process, {}
        index_of_slot = self._indices(layer, own)
        if self._peers is None:
            self.parts = {
                slot: {name: buffer[index] for name, buffer in self._buffers.items()}
                for slot, index in index_of_slot.items()
            }
            return
        self._peers.clear()
        self.parts = {slot: self._peers.parts(own, index) for slot, index in index_of_slot.items()}
        for i in self._crossing(layer).tolist():
            if (slot := int(self._migration.slot[i])) in index_of_slot:
                self._headers[i] = self._peers.headers(own)[index_of_slot[slot]]

    def start(self, layer: int, peers: PeerStaging) -> None:
        """Add this process's copies into the staging of others: headers in as few copies as possible, then parts."""
        plan, copies = self._migration, []
        headers: dict[int, dict[int, Tensor]] = {}
        for i in self._crossing(layer).tolist():
            sender, receiver = self._process_of(plan.source_slot[[i]])[0], int(self._process_of(plan.slot[[i]])[0])
            if sender != self._ranks.process:
                continue
            index = self._indices(layer, receiver)[int(plan.slot[i])]
            live, staged = self._live(layer, int(plan.source_slot[i])), peers.parts(receiver, index)
            headers.setdefault(receiver, {})[index] = _header(live, int(plan.expert[i]))
            copies += [(staged[name], part) for name, part in live.items()]
        for receiver, header_of_place in headers.items():
            peers.add(_runs(peers.headers(receiver), header_of_place))
        peers.add(copies)

    def exchanges(self, layer: int) -> Iterator[NDArray[np.int64]]:
        """Transfers between processes, a few batches at a time, by expert and slot; the same on all processes."""
        plan, crossing = self._migration, self._crossing(layer)
        for first in range(0, int(plan.num_batches_by_layer[layer]), BATCHES_PER_EXCHANGE):
            batch = plan.batch[crossing]
            transfers = crossing[(batch >= first) & (batch < first + BATCHES_PER_EXCHANGE)]
            yield transfers[np.lexsort((plan.slot[transfers], plan.expert[transfers]))]

    def exchange(self, layer: int, transfers: NDArray[np.int64]) -> None:
        """Send and receive; each expert is preceded by its header, see `_header`."""
        plan, operations = self._migration, []
        senders, receivers = self._process_of(plan.source_slot[transfers]), self._process_of(plan.slot[transfers])
        for i, sender, receiver in zip(transfers.tolist(), senders.tolist(), receivers.tolist(), strict=True):
            if sender == self._ranks.process:
                parts = self._live(layer, int(plan.source_slot[i]))
                operations += self._operations(dist.isend, receiver, _header(parts, int(plan.expert[i])), parts)
            elif receiver == self._ranks.process:
                parts = self.parts[int(plan.slot[i])]
                self._headers[i] = torch.empty(len(parts) + 1, dtype=torch.int64, device=self._weights.device)
                operations += self._operations(dist.irecv, sender, self._headers[i], parts)
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()

    def check_received(self) -> None:
        """Compare what arrived with its header.

        Raises
        ------
        VerificationError
            Naming the slot whose weights differ from what was sent.
        """
        plan = self._migration
        for i, header in self._headers.items():
            slot, expert = int(plan.slot[i]), int(plan.expert[i])
            if not torch.equal(header, _header(self.parts[slot], expert)):
                raise VerificationError(
                    f"slot {slot} received other data than expert {expert} of slot {plan.source_slot[i]}"
                )

    def copy_local(self, layer: int) -> None:
        """Fill staging from slots of this process, after everything from other processes has arrived."""
        plan = self._migration
        local = [i for i in np.nonzero(plan.layer == layer)[0].tolist() if int(plan.slot[i]) in self.parts]
        old_row = plan.before.physical_to_logical_map[layer]
        # Sources that are themselves filled by this migration come last: they may be local copies too.
        is_new = old_row[plan.source_slot] != plan.expert
        for i in sorted(set(local) - self._headers.keys(), key=lambda i: bool(is_new[i])):
            slot, source = int(plan.slot[i]), int(plan.source_slot[i])
            parts = self.parts[source] if is_new[i] else self._live(layer, source)
            for name, part in parts.items():
                self.parts[slot][name].copy_(part)

    def swap(self, layer: int, slot: int) -> None:
        """Exchange a live slot with its staging memory, in place."""
        for name, live in self._live(layer, slot).items():
            old = live.clone()
            live.copy_(self.parts[slot][name])
            self.parts[slot][name].copy_(old)

    def _check_sizes(self) -> None:
        shape, before = self._weights.shape, self._migration.before
        if before.topology != self._ranks.topology:
            raise InputError("the migration is for another topology than the ranks have")
        expected = (before.num_layers, len(self._ranks.slots))
        if (shape.num_layers, shape.num_slots) != expected:
            raise InputError(
                f"the expert weights have {shape.num_layers} layers of {shape.num_slots} slots: "
                f"expected {expected[0]} of {expected[1]}"
            )

    def _crossing(self, layer: int) -> NDArray[np.int64]:
        """Transfers of a layer between processes."""
        plan = self._migration
        crosses = self._process_of(plan.slot) != self._process_of(plan.source_slot)
        return np.flatnonzero((plan.layer == layer) & crosses)

    def _indices(self, layer: int, process: int) -> dict[int, int]:
        """{slot: place in the staging memory} of the slots of a process that change in a layer."""
        plan = self._migration
        changed = plan.slot[(plan.layer == layer) & (self._process_of(plan.slot) == process)]
        return {slot: index for index, slot in enumerate(changed.tolist())}

    def _process_of(self, slots: NDArray[np.int32]) -> NDArray[np.int64]:
        """Process that holds each slot."""
        return np.searchsorted(self._first_slot, slots, side="right").astype(np.int64) - 1

    def _live(self, layer: int, slot: int) -> dict[str, Tensor]:
        return self._weights.slot_parts(layer, slot - self._ranks.slots.start)

    def _operations(
        self, kind: Callable[..., object], process: int, header: Tensor, parts: Mapping[str, Tensor]
    ) -> list[dist.P2POp]:
        group = self._ranks.process_group
        peer = process if group is None else dist.get_global_rank(group, process)
        return [dist.P2POp(kind, as_bytes(tensor), peer, group) for tensor in (header, *parts.values())]


def _runs(destination: Tensor, source_of_place: Mapping[int, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """A copy for each run of consecutive places of the destination."""
    places = np.array(sorted(source_of_place))
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return [
        (destination[run[0] : run[-1] + 1], torch.stack([source_of_place[place] for place in run.tolist()]))
        for run in runs
    ]


def _header(parts: Mapping[str, Tensor], expert: int) -> Tensor:
    """[parts + 1] int64 fingerprint of each part, then the id of the expert."""
    number = torch.tensor(expert, dtype=torch.int64, device=next(iter(parts.values())).device)
    return torch.stack([*(fingerprint(part) for part in parts.values()), number])
