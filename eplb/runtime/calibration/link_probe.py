"""Measures bandwidth and latency between two processes with the exchange that the runtime uses."""

import statistics
import time

import numpy as np
import torch
import torch.distributed as dist

from eplb.cost.links import Link
from eplb.runtime.verification.launch import Launch, Member, run_processes

_SIZES = (2**20, 2**22, 2**24, 2**26, 2**28)
_SMALL_SIZES = (2**12, 2**16, 2**20)
_WARM_UPS, _REPEATS = 5, 15


def measured_link(launch: Launch) -> Link:
    """Time `all_to_all_single` between two processes at several sizes and fit seconds = latency + bytes / rate."""
    answers = run_processes(launch, _timed_exchange, _SIZES if launch.communicator == "nccl" else _SMALL_SIZES)
    sizes = np.array([size for size, _ in answers[0]], dtype=np.float64)
    seconds = np.max([[taken for _, taken in answer] for answer in answers], axis=0)
    # Relative errors count: a latency of 50 us matters at 1 MB and not at 256 MB.
    (latency, per_byte), *_ = np.linalg.lstsq(
        np.stack([np.ones_like(sizes), sizes], axis=1) / seconds[:, None], np.ones_like(sizes), rcond=None
    )
    source = f"measured: all_to_all_single, {launch.communicator}, {launch.num_processes} processes"
    return Link(1e-9 / max(float(per_byte), 1e-15), max(float(latency), 0.0), source)


def _timed_exchange(member: Member, sizes: tuple[int, ...]) -> list[tuple[int, float]]:
    """(bytes that cross each way, median seconds) of each size."""
    return [(size, _seconds(member, size)) for size in sizes]


def _seconds(member: Member, size: int) -> float:
    sent = torch.zeros(2 * size, dtype=torch.uint8, device=member.device)
    received = torch.empty_like(sent)
    taken = []
    for repeat in range(_WARM_UPS + _REPEATS):
        dist.barrier(group=member.control_group)
        start = time.perf_counter()
        dist.all_to_all_single(received, sent, group=member.process_group)
        if member.device.type == "cuda":
            torch.cuda.synchronize(member.device)
        if repeat >= _WARM_UPS:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)
