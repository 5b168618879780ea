"""Allocates memory that every rank of an exchange can address: on GPUs of one host, on one device, or in files.

Each rank owns one region of equal size. `addresses` holds the address of every rank's region as this process sees it,
so a kernel reaches byte `o` of rank `r` at `addresses[r] + o`.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from eplb.errors import InputError


@final
@dataclass(frozen=True, eq=False)
class SymmetricMemory:
    """The regions of all ranks, as one rank addresses them."""

    rank: int
    regions: tuple[Tensor, ...]
    """P uint8 tensors of equal size; entry `rank` is this rank's own region."""
    addresses: Tensor
    """[P] int64 on the device."""
    owner: object = None
    """Keeps the mapping of remote memory alive."""

    @property
    def num_ranks(self) -> int:
        """P."""
        return len(self.regions)

    @property
    def own(self) -> Tensor:
        """The region of this rank."""
        return self.regions[self.rank]

    @property
    def device(self) -> torch.device:
        """Where the regions live."""
        return self.addresses.device


def memory_in_process(num_ranks: int, num_bytes: int, device: torch.device | str) -> list[SymmetricMemory]:
    """The regions of several virtual ranks of this process, on one device."""
    regions = tuple(torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in range(num_ranks))
    addresses = torch.tensor([region.data_ptr() for region in regions], dtype=torch.int64, device=device)
    return [SymmetricMemory(rank, regions, addresses) for rank in range(num_ranks)]


def memory_over_nvlink(process_group: dist.ProcessGroup, num_bytes: int, device: torch.device) -> SymmetricMemory:
    """Torch's symmetric memory: one process for each GPU of a host, peer access over NVLink.

    Multicast is not used; set TORCH_SYMM_MEM_DISABLE_MULTICAST=1 to keep the rendezvous from creating multicast
    objects. The backend is torch's default for CUDA; choosing it by name raises in torch 2.11.
    """
    import torch.distributed._symmetric_memory as symm_mem

    buffer = symm_mem.empty(num_bytes, dtype=torch.uint8, device=device)
    handle = symm_mem.rendezvous(buffer, process_group)
    buffer.zero_()
    torch.cuda.synchronize(device)
    dist.barrier(process_group)
    peers = range(process_group.size())
    regions = tuple(
        buffer if rank == handle.rank else handle.get_buffer(rank, (num_bytes,), torch.uint8) for rank in peers
    )
    addresses = torch.tensor(list(handle.buffer_ptrs), dtype=torch.int64, device=device)
    return SymmetricMemory(handle.rank, regions, addresses, handle)


def memory_over_files(process_group: dist.ProcessGroup, num_bytes: int, folder: Path) -> SymmetricMemory:
    """Files mapped into every process of this machine, for kernels in Triton's interpreter.

    Raises
    ------
    InputError
        If the folder does not hold the files of all ranks, because the processes run on several machines.
    """
    rank, num_ranks = process_group.rank(), process_group.size()
    with (folder / f"region-{rank}").open("wb") as file:
        os.truncate(file.fileno(), num_bytes)
    dist.barrier(process_group)
    paths = [folder / f"region-{peer}" for peer in range(num_ranks)]
    if missing := [path.name for path in paths if not path.exists()]:
        raise InputError(f"{folder}: {missing} missing, expected the regions of {num_ranks} processes of one machine")
    regions = tuple(torch.from_file(str(path), shared=True, size=num_bytes, dtype=torch.uint8) for path in paths)
    dist.barrier(process_group)
    return SymmetricMemory(rank, regions, torch.tensor([region.data_ptr() for region in regions], dtype=torch.int64))


def memory_of_group(process_group: dist.ProcessGroup | None, num_bytes: int, device: torch.device) -> SymmetricMemory:
    """The memory that suits the device: peer access for GPUs, mapped files on the CPU. A collective call."""
    if process_group is None:
        return memory_in_process(1, num_bytes, device)[0]
    if device.type == "cuda":
        return memory_over_nvlink(process_group, num_bytes, device)
    folder = [tempfile.mkdtemp(prefix="eplb-region-") if process_group.rank() == 0 else ""]
    dist.broadcast_object_list(folder, group=process_group, group_src=0)
    memory = memory_over_files(process_group, num_bytes, Path(folder[0]))
    dist.barrier(process_group)
    if process_group.rank() == 0:
        shutil.rmtree(folder[0])  # the mappings stay
    return memory
