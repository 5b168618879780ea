"""failures: what the other ranks raise when one rank executes a step fewer, stalls, or is killed."""

import os
import signal
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from eplb.errors import EplbError
from eplb.runtime import Member
from eplb.runtime.exchange.symmetric.settings import KernelSettings

from .device_time import enough_gpus
from .exchange_rank import Rank

TIMEOUT_S = 0.5
STALL_CYCLES = 3_000_000_000
"""About 1.5 s."""
CASES = ("a step fewer", "stalls", "killed")
LATE = 1
"""The rank that fails."""


@dataclass(frozen=True)
class Result:
    """What a rank raised."""

    case: str
    rank: int
    raised: str
    seconds: float


def measure(processes: int = 2) -> list[Result]:
    """Every case."""
    if not enough_gpus("failures", processes):
        return []
    with tempfile.TemporaryDirectory(prefix="eplb-") as folder:
        context = mp.get_context("spawn")
        started = [context.Process(target=_rank, args=(rank, processes, Path(folder))) for rank in range(processes)]
        for process in started:
            process.start()
        for process in started:
            process.join(120)
            if process.is_alive():
                print(f"process {process.pid} hangs", flush=True)
                process.kill()
        lines = [line for path in sorted(Path(folder).glob("rank-*")) for line in path.read_text().splitlines()]
    results = []
    for line in lines:
        case, rank, seconds, raised = line.split("|", 3)
        results.append(Result(case, int(rank), raised, float(seconds)))
    for one in sorted(results, key=lambda one: CASES.index(one.case)):
        print(f"{one.case:14} rank {one.rank}: {one.raised} ({one.seconds:.2f} s)", flush=True)
    return results


def _rank(process: int, processes: int, folder: Path) -> None:
    """Write what this rank raised in each case."""
    device = torch.device("cuda", process)
    torch.cuda.set_device(device)
    store, limit = f"file://{folder / 'store'}", timedelta(seconds=60)
    dist.init_process_group("nccl", init_method=store, rank=process, world_size=processes, timeout=limit)
    member = Member(process, device, dist.group.WORLD, dist.group.WORLD)
    for case in CASES:
        rank = Rank(member, 256, KernelSettings(), timeout_s=TIMEOUT_S)
        rank.warm(fast=False)
        rank.fill([256] * processes)
        rank.plan()
        torch.cuda.synchronize()
        dist.barrier()
        start = time.perf_counter()
        if case == "killed" and process == LATE:
            os.kill(os.getpid(), signal.SIGKILL)
        if case == "stalls" and process == LATE:
            torch.cuda._sleep(STALL_CYCLES)
        if case != "a step fewer" or process != LATE:
            rank.dispatch()
        raised = _raised(rank)
        with (folder / f"rank-{process}").open("a") as file:
            file.write(f"{case}|{process}|{time.perf_counter() - start}|{raised}\n")
        if case != "killed":
            dist.barrier()
    os._exit(0)  # the communicator cannot be destroyed without the other rank


def _raised(rank: Rank) -> str:
    torch.cuda.synchronize()
    try:
        rank.state.raise_on_error()
    except EplbError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def as_dicts(results: list[Result]) -> list[dict[str, object]]:
    """The results for --json."""
    return [vars(one) for one in results]
