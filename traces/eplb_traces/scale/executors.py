"""Runs a function on many cases and merges the results; the protocol, and the threads of this process."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import Final, Protocol, TypeVar, final

from eplb_traces.usable_cores import usable_cores

Case = TypeVar("Case")
Result = TypeVar("Result")


def never() -> bool:
    """A function that runs elsewhere is stopped with its process."""
    return False


class Executor(Protocol):
    """Runs cases in any order. A function must give the same result however often it runs on a case."""

    @property
    def stopped(self) -> Callable[[], bool]:
        """What a function asks now and then: whether its result is no longer wanted."""
        ...

    def map(
        self, function: Callable[[Case], Result], cases: Sequence[Case], on_done: Callable[[int, Result], None]
    ) -> list[Result]:
        """The results in the order of the cases; `on_done` is called in this process with the number of each case."""
        ...

    def map_reduce(
        self,
        function: Callable[[Case], Result],
        cases: Sequence[Case],
        merge: Callable[[Result, Result], Result],
        on_done: Callable[[int, Result], None],
    ) -> Result:
        """All results merged in any order, of at least one case; `merge` is commutative and associative."""
        ...


@final
class InOrder:
    """One thread, one case after the other: for functions whose time is measured."""

    stopped = staticmethod(never)

    def map(
        self, function: Callable[[Case], Result], cases: Sequence[Case], on_done: Callable[[int, Result], None]
    ) -> list[Result]:
        """See `Executor`."""
        found = []
        for number, case in enumerate(cases):
            found.append(function(case))
            on_done(number, found[-1])
        return found

    def map_reduce(
        self,
        function: Callable[[Case], Result],
        cases: Sequence[Case],
        merge: Callable[[Result, Result], Result],
        on_done: Callable[[int, Result], None],
    ) -> Result:
        """See `Executor`."""
        return functools.reduce(merge, self.map(function, cases, on_done))


IN_ORDER: Final = InOrder()
"""It has no state."""


@final
class Threads:
    """Threads of this process, as many as it has cores: for functions that release the interpreter's lock."""

    def __init__(self) -> None:
        self._stop = Event()

    @property
    def stopped(self) -> Callable[[], bool]:
        """Whether an error or Ctrl-C has ended the run."""
        return self._stop.is_set

    def map(
        self, function: Callable[[Case], Result], cases: Sequence[Case], on_done: Callable[[int, Result], None]
    ) -> list[Result]:
        """See `Executor`."""
        found: dict[int, Result] = {}

        def keep(number: int, result: Result) -> None:
            found[number] = result
            on_done(number, result)

        self._run(function, cases, keep)
        return [found[number] for number in range(len(cases))]

    def map_reduce(
        self,
        function: Callable[[Case], Result],
        cases: Sequence[Case],
        merge: Callable[[Result, Result], Result],
        on_done: Callable[[int, Result], None],
    ) -> Result:
        """See `Executor`; each result is merged as it arrives, so that one is held beside the sum."""
        merged: list[Result] = []

        def add(number: int, result: Result) -> None:
            on_done(number, result)
            merged[:] = [merge(merged[0], result) if merged else result]

        self._run(function, cases, add)
        return merged[0]

    def _run(
        self, function: Callable[[Case], Result], cases: Sequence[Case], take: Callable[[int, Result], None]
    ) -> None:
        self._stop.clear()
        with ThreadPoolExecutor(max(1, min(usable_cores(), len(cases)))) as pool:
            number_of = {pool.submit(function, case): number for number, case in enumerate(cases)}
            try:
                for future in as_completed(number_of):
                    take(number_of.pop(future), future.result())
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
