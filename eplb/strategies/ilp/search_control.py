"""Limits a search by wall time and stops its solvers: one control is shared by all layers and threads of a plan."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Lock
from typing import Protocol, TypeVar, final

NUM_THREADS = 2
"""Layers solved at the same time; without a wall limit the answers do not depend on it."""
STOP_AGAIN_S = 0.1
"""A solver that is stopped before it has begun ignores it: it is stopped again after so long."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Clock = Callable[[], float]


class Stoppable(Protocol):
    """What CP-SAT's solver offers to other threads."""

    def stop_search(self) -> None:
        """End the search as soon as possible."""
        ...


@final
class _Solvers:
    """The solvers that run now, and whether they were told to stop."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.running: list[Stoppable] = []
        self.is_stopped = False


@final
class SearchControl:
    """Wall time that is left to a search, and the switch that ends it.

    Parameters
    ----------
    limit_s
        Wall seconds from now on; infinite for none.
    clock
        Seconds from some fixed moment.
    """

    def __init__(self, limit_s: float, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + limit_s
        self._solvers = _Solvers()

    def within(self, limit_s: float) -> "SearchControl":
        """The same search with an earlier end: at most `limit_s` from now on."""
        part = SearchControl(min(limit_s, self.left_s), self._clock)
        part._solvers = self._solvers
        return part

    @property
    def left_s(self) -> float:
        """Wall seconds left, at least 0; 0 once the search is stopped."""
        return 0.0 if self._solvers.is_stopped else max(0.0, self._end - self._clock())

    def stop(self) -> None:
        """End every solver that runs, and let none begin."""
        with self._solvers.lock:
            self._solvers.is_stopped = True
            for solver in self._solvers.running:
                solver.stop_search()

    @contextmanager
    def running(self, solver: Stoppable) -> Iterator[None]:
        """Count the solver as running."""
        with self._solvers.lock:
            self._solvers.running.append(solver)
        try:
            yield
        finally:
            with self._solvers.lock:
                self._solvers.running.remove(solver)

    def map(
        self, work: Callable[[Item], Result], items: Iterable[Item], done: Callable[[Result], None] | None = None
    ) -> list[Result]:
        """Call `work` on each item, in threads, so that the calling thread can be interrupted; results in order.

        `done` is called in the calling thread with each result. An exception of any call, or an interrupt of the
        calling thread, stops the search; it is raised here once all threads have ended.
        """
        results = []
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            futures = [pool.submit(work, item) for item in items]
            try:
                for future in futures:
                    results.append(future.result())
                    if done is not None:
                        done(results[-1])
            except BaseException:
                self._end_all(futures)
                raise
        return results

    def _end_all(self, futures: Sequence[Future[Result]]) -> None:
        left = {future for future in futures if not future.cancel()}
        while left:
            self.stop()
            left = wait(left, timeout=STOP_AGAIN_S).not_done
