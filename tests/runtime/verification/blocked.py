"""A caller of `run_processes` that never ends: one process waits in a collective for another that blocks."""

import os
import signal
import sys
from pathlib import Path

import torch.distributed as dist

from eplb.runtime.verification.launch import Launch, Member, run_processes


def block(member: Member, folder: Path) -> None:
    """Hold `alive` open for as long as the process lives, say that it began, and wait."""
    alive = os.open(folder / "alive", os.O_WRONLY)
    os.write(alive, b"began\n")
    if member.process == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        os.read(os.open(folder / "never", os.O_RDWR), 1)
    dist.barrier(member.process_group)


if __name__ == "__main__":
    run_processes(Launch(2), block, Path(sys.argv[1]))
