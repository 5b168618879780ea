"""Times one call on a device: a CUDA graph between two events after a flush of L2, or a clock on the CPU."""

import time
from collections.abc import Callable
from typing import Protocol, final

import torch

from eplb.errors import InputError

_FLUSH_BYTES = 512 * 2**20
"""Several times the L2 of any GPU."""


class Timer(Protocol):
    """A way to time a call on one device."""

    @property
    def device(self) -> torch.device:
        """Where the call runs."""
        ...

    def seconds(self, call: Callable[[], object], *, repeats: int) -> list[float]:
        """Seconds of each of so many repetitions, after a warm-up."""
        ...


@final
class CudaTimer:
    """Captures the call in a CUDA graph, so that launching it from the host is not measured.

    The memory of all graphs is one pool. An empty graph keeps the pool alive while graphs come and go.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # untyped in torch
        self._pool = torch.cuda.graph_pool_handle()
        self._anchor = self._captured(lambda: self._flush[:1].zero_())

    def seconds(self, call: Callable[[], object], *, repeats: int) -> list[float]:
        """See `Timer`; the L2 is flushed before each repetition."""
        graph = self._captured(call)
        graph.replay()
        pairs = [(_event(), _event()) for _ in range(repeats)]
        for start, end in pairs:
            self._flush.zero_()
            start.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize(self.device)
        graph.reset()
        return [start.elapsed_time(end) * 1e-3 for start, end in pairs]

    def _captured(self, call: Callable[[], object]) -> torch.cuda.CUDAGraph:
        # torch.cuda.graph() collects garbage each time, which takes longer than what is measured here.
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.device)
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool)
            try:
                call()
            finally:
                graph.capture_end()
        torch.cuda.synchronize(self.device)
        return graph


@final
class CpuTimer:
    """The clock of the process."""

    device = torch.device("cpu")

    def seconds(self, call: Callable[[], object], *, repeats: int) -> list[float]:
        """See `Timer`."""
        call()
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        return taken


def make_timer(device: str) -> Timer:
    """The timer of a device: "cpu" or "cuda".

    Raises
    ------
    InputError
        For another device, or if there is no GPU.
    """
    if device == "cpu":
        return CpuTimer()
    if device != "cuda":
        raise InputError(f"device = {device!r}: expected cuda or cpu")
    if not torch.cuda.is_available():
        raise InputError("device = cuda: this process sees no GPU")
    return CudaTimer(torch.device("cuda", torch.cuda.current_device()))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call, no-any-return, unused-ignore]
