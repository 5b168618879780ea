"""Maps ranks to processes and wraps the collectives between processes.

    Q processes   R ranks of the plan   P slots   H hidden

Q <= R processes execute the R ranks of a plan. Each executes consecutive ranks and holds consecutive slots.

    ranks      0 1 2 | 3 4 | 5 6      R = 7
    processes  0     | 1   | 2        Q = 3
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from eplb.core.topology import Topology
from eplb.errors import InputError

Allocate = Callable[[Sequence[int], torch.dtype, torch.device], Tensor]
"""Allocates a receive buffer; the verifier uses one that is filled with NaN."""


def uninitialised(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised buffer."""
    return torch.empty(tuple(shape), dtype=dtype, device=device)


# torch 2.13 renamed the two collectives and warns about the old names; torch 2.11 has only the old names.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@final
@dataclass(frozen=True)
class RankGroup:
    """The processes that execute the ranks of a plan, and the number of this process.

    Parameters
    ----------
    topology
        The plan's ranks and slots.
    num_processes, process
        Q, and the number of this process.
    process_group
        The communicator; None for a single process. Several processes without it raise at the first exchange.
    allocate
        Allocates receive buffers.

    Raises
    ------
    InputError
        If there are more processes than ranks.
    """

    topology: Topology
    num_processes: int = 1
    process: int = 0
    process_group: dist.ProcessGroup | None = None
    allocate: Allocate = field(default=uninitialised, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.num_processes <= self.topology.num_ranks:
            raise InputError(
                f"{self.num_processes} processes: expected 1 to {self.topology.num_ranks} (the plan's ranks)"
            )
        if not 0 <= self.process < self.num_processes:
            raise InputError(f"process = {self.process}: expected 0 <= process < {self.num_processes}")

    @classmethod
    def of(
        cls, topology: Topology, process_group: dist.ProcessGroup, allocate: Allocate = uninitialised
    ) -> "RankGroup":
        """The group of all processes of a communicator."""
        return cls(topology, process_group.size(), process_group.rank(), process_group, allocate)

    def first_rank(self, process: int) -> int:
        """First rank that a process executes; R for process Q."""
        return process * self.topology.num_ranks // self.num_processes

    def first_slot(self, process: int) -> int:
        """First slot that a process holds; P for process Q."""
        return int(self.topology.rank_first_slot[self.first_rank(process)])

    @property
    def ranks(self) -> range:
        """Ranks that this process executes."""
        return range(self.first_rank(self.process), self.first_rank(self.process + 1))

    @property
    def slots(self) -> range:
        """Slots that this process holds."""
        return range(self.first_slot(self.process), self.first_slot(self.process + 1))

    def process_of_rank(self, device: torch.device | str) -> Tensor:
        """[R] int64 process that executes each rank."""
        firsts = [self.first_rank(process) for process in range(self.num_processes + 1)]
        sizes = torch.tensor(firsts, device=device).diff()
        numbers = torch.arange(self.num_processes, device=device)
        return torch.repeat_interleave(numbers, sizes, output_size=self.topology.num_ranks)

    def rank_of_slot(self, slot: Tensor) -> Tensor:
        """[*] int64 rank of each slot; slots must lie in [0, P)."""
        ends_R = torch.from_numpy(self.topology.rank_first_slot[1:].copy()).to(slot.device)
        return torch.searchsorted(ends_R, slot, right=True)

    def check_slots_of(self, topology: Topology, name: str) -> None:
        """Check that a placement has the slots of this group: the backends drop what goes to other slots.

        Raises
        ------
        InputError
            If there are other ranks, or a rank has another number of slots; with `name` for the placement.
        """
        if not np.array_equal(topology.rank_first_slot, self.topology.rank_first_slot):
            raise InputError(
                f"{name} is for {topology.num_ranks} ranks with {topology.num_slots} slots: "
                f"the group has {self.topology.num_ranks} ranks with {self.topology.num_slots} slots"
            )

    def all_gather(self, x: Tensor) -> Tensor:
        """[Q, N, *] the tensors of all processes; `x` [N, *] must have the same shape on every process."""
        if self._is_alone():
            return x[None]
        flat = as_bytes_if_float8(x.contiguous())
        gathered = self.allocate((self.num_processes, *flat.shape), flat.dtype, flat.device)
        _all_gather(gathered.flatten(0, 1), flat, group=self.process_group)
        return gathered.view(x.dtype)

    def all_to_all(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Rows from every process, in the order of processes.

        Parameters
        ----------
        x
            [sum(send), *] rows, those for process 0 first.
        send, receive
            [Q] rows to and from each process.

        Returns
        -------
        Tensor
            [sum(receive), *].
        """
        if self._is_alone():
            return x
        flat = as_bytes_if_float8(x.contiguous())
        received = self.allocate((sum(receive), *flat.shape[1:]), flat.dtype, flat.device)
        dist.all_to_all_single(received, flat, receive, send, group=self.process_group)
        return received.view(x.dtype)

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """[*] sum over processes of this process's part of x [Q, *]."""
        if self._is_alone():
            return x[0]
        if dist.get_backend(self.process_group) == "gloo":
            # gloo reduces all of x on every process and slices it; an exchange and a local sum move 1/Q of the bytes.
            parts = torch.empty_like(x)
            dist.all_to_all_single(parts, x.contiguous(), group=self.process_group)
            return parts.sum(dim=0)
        own = self.allocate(x.shape[1:], x.dtype, x.device)
        _reduce_scatter(own, x.contiguous().flatten(0, 1), group=self.process_group)
        return own

    def _is_alone(self) -> bool:
        """Whether there is no other process to exchange with."""
        if self.process_group is None and self.num_processes > 1:
            raise InputError(f"{self.num_processes} processes without a communicator: expected a process_group")
        return self.process_group is None


def as_bytes_if_float8(x: Tensor) -> Tensor:
    """A uint8 view of one-byte floats, which communicators do not support; other tensors unchanged."""
    return x.view(torch.uint8) if x.dtype.is_floating_point and x.dtype.itemsize == 1 else x
