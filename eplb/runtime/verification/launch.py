"""Starts processes on this machine that form one communicator, and collects their results.

The rendezvous is a file in a temporary folder, so no port is needed. Processes are forked from one server process that
imports torch once; the server is kept for later calls. A process ends at once when its caller is interrupted or gone,
also inside a collective.
"""

import multiprocessing
import multiprocessing.connection
import os
import pickle
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Generic, TypeVar, final

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessRaisedException, start_processes

from eplb.core.counts import check_count
from eplb.errors import EplbError, InputError

_Argument = TypeVar("_Argument")
_Answer = TypeVar("_Answer")

COMMUNICATORS = {"gloo": "cpu", "nccl": "cuda"}
"""Communicator and the type of device whose tensors it moves."""


@final
@dataclass(frozen=True)
class Launch:
    """How the processes are started.

    Parameters
    ----------
    num_processes
        Number of processes.
    communicator
        gloo (CPU) or nccl (one GPU per process).
    timeout_s
        Seconds after which a collective fails.

    Raises
    ------
    InputError
        For an unknown communicator, or fewer GPUs than processes.
    """

    num_processes: int
    communicator: str = "gloo"
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        check_count("processes", self.num_processes)
        if self.communicator not in COMMUNICATORS:
            raise InputError(f"unknown communicator {self.communicator!r}: expected one of {', '.join(COMMUNICATORS)}")
        num_gpus = torch.cuda.device_count()
        if self.communicator == "nccl" and num_gpus < self.num_processes:
            raise InputError(f"nccl with {self.num_processes} processes: expected a GPU for each, found {num_gpus}")


@final
@dataclass(frozen=True)
class Member:
    """The number, device and communicators of a started process."""

    process: int
    device: torch.device
    process_group: dist.ProcessGroup
    """Moves tensors of `device`."""
    control_group: dist.ProcessGroup
    """Moves Python objects and CPU tensors."""


@final
@dataclass(frozen=True)
class _Job(Generic[_Argument, _Answer]):
    worker: Callable[[Member, _Argument], _Answer]
    argument: _Argument
    launch: Launch
    folder: Path
    environment: dict[str, str]
    """Environment of the caller: that of the server may be older."""


def run_processes(launch: Launch, worker: Callable[[Member, _Argument], _Answer], argument: _Argument) -> list[_Answer]:
    """Start processes, run a worker on each, return the results.

    Parameters
    ----------
    launch
        Number of processes, and the communicator.
    worker
        A module-level function; the new process imports it by name.
    argument
        Argument of the worker; pickled.

    Returns
    -------
    list
        The results in the order of processes.

    Raises
    ------
    EplbError
        The EplbError that a process raised, with its message.
    """
    with tempfile.TemporaryDirectory(prefix="eplb-") as name:
        job = _Job(worker, argument, launch, Path(name), dict(os.environ))
        multiprocessing.set_forkserver_preload(["torch", "torch.distributed"])
        try:
            _start_and_join(job)
        except ProcessRaisedException:
            for path in sorted(job.folder.glob("error-*")):
                kind, message = pickle.loads(path.read_bytes())
                error = kind.__new__(kind)
                error.args = (message,)
                raise error from None
            raise
        return [pickle.loads((job.folder / f"answer-{i}").read_bytes()) for i in range(launch.num_processes)]


def _start_and_join(job: _Job[_Argument, _Answer]) -> None:
    """Start the processes and wait for them; they are killed if the wait is interrupted.

    Daemonic processes are ended by multiprocessing when the caller ends while it starts them.
    """
    context = start_processes(  # type: ignore[no-untyped-call]  # torch has no types here
        _member, (job,), job.launch.num_processes, join=False, daemon=True, start_method="forkserver"
    )
    try:
        while not context.join():
            pass
    except KeyboardInterrupt:
        for process in context.processes:
            process.kill()
            process.join()
        raise


def _end_with_caller() -> None:
    """End this process when the process that started it is gone, whatever it is waiting for.

    The sentinel is a pipe that the caller holds open, so that it works on every system and after a SIGKILL.
    """
    caller = multiprocessing.parent_process()
    if caller is None:
        return

    def wait_for_end() -> None:
        multiprocessing.connection.wait([caller.sentinel])
        os._exit(1)

    threading.Thread(target=wait_for_end, daemon=True).start()


def _member(process: int, job: _Job[_Argument, _Answer]) -> None:
    """Join the communicator, run the worker, write the result to the folder."""
    _end_with_caller()
    launch = job.launch
    os.environ.update(job.environment)
    torch.set_num_threads(1)
    if os.path.isdir("/sys/class/net/lo"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all processes are on this machine
    device = torch.device("cpu")
    if COMMUNICATORS[launch.communicator] == "cuda":
        device = torch.device("cuda", process)
        torch.cuda.set_device(device)
    dist.init_process_group(
        launch.communicator,
        init_method=f"file://{job.folder / 'store'}",
        rank=process,
        world_size=launch.num_processes,
        timeout=timedelta(seconds=launch.timeout_s),
    )
    world = dist.group.WORLD
    if world is None:
        raise EplbError("the communicator did not start")
    control = world if launch.communicator == "gloo" else dist.new_group(backend="gloo")
    try:
        answer = job.worker(Member(process, device, world, control), job.argument)
        (job.folder / f"answer-{process}").write_bytes(pickle.dumps(answer))
    except EplbError as error:
        (job.folder / f"error-{process}").write_bytes(pickle.dumps((type(error), str(error))))
        raise
    finally:
        dist.destroy_process_group()
