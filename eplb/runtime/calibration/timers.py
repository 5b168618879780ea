"""Times calls on a device: between two events after a flush of L2 on a GPU, with a clock on the CPU."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol, final

import numpy as np
import torch

from eplb.core.arrays import Floats
from eplb.errors import InputError

WARM_S = 20e-3
"""Work before a measurement, so that clocks and power are those of a GPU that computes all the time."""

_FLUSH_BYTES = 2**30
"""Many times the L2 of any GPU; the flush also gives the host time to enqueue the next call."""
_FLUSHES_AHEAD = 8

Call = Callable[[], object]
"""Enqueues work on the device; it does not wait for the device."""


class Timer(Protocol):
    """A way to time calls on one device."""

    @property
    def device(self) -> torch.device:
        """Where the calls run."""
        ...

    def seconds(self, calls: Sequence[Call], *, repeats: int, warm_s: float = WARM_S) -> Floats:
        """Seconds of each call, the median of so many rounds in which all calls run one after the other.

        Parameters
        ----------
        calls
            What is timed.
        repeats
            Timed rounds.
        warm_s
            Seconds of untimed rounds before, at least one round; 0: none.

        Returns
        -------
        NDArray
            [calls]
        """
        ...


@final
class CudaTimer:
    """Enqueues all rounds at once, so that the device never waits for the host.

    Launches from the host are not part of the time: while the device flushes its L2, the host enqueues the next call.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)

    def seconds(self, calls: Sequence[Call], *, repeats: int, warm_s: float = WARM_S) -> Floats:
        """See `Timer`; the L2 is flushed before each timed call."""
        self._warm_up(calls, warm_s)
        for _ in range(_FLUSHES_AHEAD):
            self._flush.zero_()
        rounds = [[self._timed(call) for call in calls] for _ in range(repeats)]
        torch.cuda.synchronize(self.device)
        taken = [[start.elapsed_time(end) * 1e-3 for start, end in pairs] for pairs in rounds]
        return np.median(np.array(taken), axis=0)

    def _warm_up(self, calls: Sequence[Call], warm_s: float) -> None:
        if warm_s > 0:
            self._round_s(calls)  # loads kernels, which is no work of the device
        spent = 0.0
        while spent < warm_s:
            spent += self._round_s(calls)

    def _round_s(self, calls: Sequence[Call]) -> float:
        start = time.perf_counter()
        for call in calls:
            call()
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def _timed(self, call: Call) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = _event(), _event()
        self._flush.zero_()
        start.record()
        call()
        end.record()
        return start, end


@final
class CpuTimer:
    """The clock of the process."""

    device = torch.device("cpu")

    def seconds(self, calls: Sequence[Call], *, repeats: int, warm_s: float = WARM_S) -> Floats:
        """See `Timer`; one round of warm-up, if any is asked for."""
        if warm_s > 0:
            for call in calls:
                call()
        taken = [[_clocked(call) for call in calls] for _ in range(repeats)]
        return np.median(np.array(taken), axis=0)


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


def _clocked(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call, no-any-return, unused-ignore]
