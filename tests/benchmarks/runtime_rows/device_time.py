"""Times calls of several ranks on the device, and counts their launches and host waits.

A time is that between two CUDA events around a call, behind a barrier of all ranks on the device. Before the barrier
the device spins for a millisecond. The host enqueues the call meanwhile, so that neither launches from the host nor the
difference between hosts are part of the time.
"""

import os
import statistics
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeVar

import torch
import torch.distributed as dist

from eplb.runtime import Launch, Member, run_processes

CALLS, REPLAYS, WARM_UPS, REPEATS = 10, 9, 10, 30
_SPIN_CYCLES = 2_000_000
_FLUSH_BYTES = 256 * 2**20

Call = Callable[[], object]
_Argument = TypeVar("_Argument")
_Answer = TypeVar("_Answer")


def on_gpus(
    rows: str, processes: int, worker: Callable[[Member, _Argument], _Answer], argument: _Argument
) -> list[_Answer]:
    """The answers of a worker in one process for each GPU; none on fewer GPUs."""
    if not enough_gpus(rows, processes):
        return []
    return run_processes(Launch(processes, "nccl"), worker, argument)


def enough_gpus(rows: str, processes: int) -> bool:
    """Whether there is a GPU for each process; NVLink multicast is switched off."""
    if torch.cuda.device_count() < processes:
        print(f"{rows}: {processes} GPUs needed, found {torch.cuda.device_count()}: nothing was measured", flush=True)
        return False
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
    return True


def captured(*steps: Call, calls: int = 1) -> torch.cuda.CUDAGraph:
    """The steps, `calls` times, in one graph."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # the communicator uses other threads
        for _ in range(calls):
            for step in steps:
                step()
    return graph


def timed(call: Call, flush: torch.Tensor | None = None) -> float:
    """Microseconds of a call."""
    if flush is not None:
        flush.zero_()
    torch.cuda._sleep(_SPIN_CYCLES)
    dist.all_reduce(torch.zeros(1, device="cuda"))
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def chain_us(*steps: Call) -> float:
    """Microseconds of the steps: a graph of ten calls, the median of nine replays."""
    for step in steps:
        step()  # compiled and loaded on every rank before the first capture
    torch.cuda.synchronize()
    dist.barrier()
    graph = captured(*steps, calls=CALLS)
    return statistics.median(timed(graph.replay) / CALLS for _ in range(REPLAYS))


def single_us(step: Call) -> float:
    """Microseconds of one eager call after a flush of the L2 cache: the median of 30 after 10."""
    flush = torch.empty(_FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")
    return statistics.median([timed(step, flush) for _ in range(WARM_UPS + REPEATS)][WARM_UPS:])


def host_waits(*steps: Call) -> int:
    """Waits of the host for the device in the steps, by torch's own check."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in steps:
            step()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def launches(*steps: Call) -> int:
    """Kernels, copies and fills in a graph of the steps; -1 without the package cuda-bindings."""
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return -1
    from cuda.bindings import runtime

    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for step in steps:
            step()
    _, _, count = runtime.cudaGraphGetNodes(runtime.cudaGraph_t(graph.raw_cuda_graph()))
    return int(count)
