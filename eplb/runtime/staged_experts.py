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
        self.parts = {}
        self._check_sizes()
        own = self._process_of(migration.slot) == ranks.process
        most_slots = int(np.bincount(migration.layer[own], minlength=1).max())
        self._buffers = {
            name: torch.empty((most_slots, *part.shape[1:]), dtype=part.dtype, device=part.device)
            for name, part in weights.layer_parts(0).items()
        }

    def begin(self, layer: int) -> None:
        """Assign staging memory to the slots of this process that change in a layer."""
        plan = self._migration
        own = (plan.layer == layer) & (self._process_of(plan.slot) == self._ranks.process)
        self._headers = {}
        self.parts = {
            slot: {name: buffer[index] for name, buffer in self._buffers.items()}
            for index, slot in enumerate(plan.slot[own].tolist())
        }

    def exchanges(self, layer: int) -> Iterator[NDArray[np.int64]]:
        """Transfers between processes, a few batches at a time, by expert and slot; the same on all processes."""
        plan = self._migration
        crossing = (plan.layer == layer) & (self._process_of(plan.slot) != self._process_of(plan.source_slot))
        for first in range(0, int(plan.num_batches_by_layer[layer]), BATCHES_PER_EXCHANGE):
            transfers = np.nonzero(crossing & (plan.batch >= first) & (plan.batch < first + BATCHES_PER_EXCHANGE))[0]
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


def _header(parts: Mapping[str, Tensor], expert: int) -> Tensor:
    """[parts + 1] int64 fingerprint of each part, then the id of the expert."""
    number = torch.tensor(expert, dtype=torch.int64, device=next(iter(parts.values())).device)
    return torch.stack([*(fingerprint(part) for part in parts.values()), number])
