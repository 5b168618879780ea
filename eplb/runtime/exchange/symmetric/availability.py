"""Finds out whether the processes of a group can use the symmetric exchange, and why not.

Every process states its own reason; all of them get the first one, so that they choose the same backend.
"""

import socket
from importlib.util import find_spec

import torch
import torch.distributed as dist

from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.exchange.symmetric.region import MOST_RANKS
from eplb.runtime.kernels.launch import interpreted

_CAPABILITY = (9, 0)
"""On which the kernels were verified and timed."""
_LEAST_TORCH = (2, 6)


def symmetric_refusal(group: RankGroup, device: torch.device) -> str:
    """Why the symmetric exchange cannot be used; empty if it can. A collective call of all processes."""
    own = _own_refusal(group, device)
    if group.process_group is None:
        return own
    facts: list[tuple[str, str]] = [("", "")] * group.num_processes
    dist.all_gather_object(facts, (own, socket.gethostname()), group=group.process_group)
    for process, (refusal, _) in enumerate(facts):
        if refusal:
            return f"process {process}: {refusal}"
    hosts = sorted({host for _, host in facts})
    return "" if len(hosts) == 1 else f"processes on {len(hosts)} hosts, and peer memory ends at the host"


def kernel_refusal(device: torch.device) -> str:
    """Why the exchange kernels cannot run on this device; empty if they can."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if device.type != "cuda":
        return "" if device.type == "cpu" and interpreted() else f"tensors on {device.type}, the kernels need a GPU"
    return "TRITON_INTERPRET is set, and Triton's interpreter does not run on a GPU" if interpreted() else ""


def _own_refusal(group: RankGroup, device: torch.device) -> str:
    """What this process lacks."""
    if group.num_processes > MOST_RANKS:
        return f"{group.num_processes} processes, at most {MOST_RANKS}"
    if (refusal := kernel_refusal(device)) or device.type != "cuda":
        return refusal
    version = tuple(int(number) for number in torch.__version__.split("+")[0].split(".")[:2])
    if version < _LEAST_TORCH or find_spec("torch.distributed._symmetric_memory") is None:
        return f"torch {torch.__version__} has no symmetric memory"
    capability = torch.cuda.get_device_capability(device)
    if capability != _CAPABILITY:
        return f"GPU of compute capability {capability[0]}.{capability[1]}, the kernels need 9.0"
    own = device.index if device.index is not None else torch.cuda.current_device()
    for other in range(min(torch.cuda.device_count(), group.num_processes)):
        if other != own and not torch.cuda.can_device_access_peer(own, other):
            return f"GPU {own} has no peer access to GPU {other}"
    if torch.cuda.device_count() < group.num_processes:
        return f"{group.num_processes} processes and {torch.cuda.device_count()} GPUs"
    return ""
