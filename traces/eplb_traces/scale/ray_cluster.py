"""Runs cases on a Ray cluster: lost workers are replaced and their cases run again; results are merged in a tree.

Modules and files must be where the workers find them: eplb installed on every machine, paths shared or URLs.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, final

from eplb_traces.errors import EplbError, MissingExtraError
from eplb_traces.scale.executors import Case, Result, never

MOST_RETRIES = 5
"""How often a case is run again after its worker was lost."""


class ClusterError(EplbError):
    """The cluster cannot be reached, or has lost a case too often."""


@contextmanager
def ray_cluster(address: str) -> Iterator["RayCluster"]:
    """Connect to a cluster for the time of the block.

    Parameters
    ----------
    address
        `auto` for the cluster of this machine, `HOST:PORT` or `ray://HOST:PORT`, or `local` to start one here.

    Raises
    ------
    MissingExtraError
        If ray is not installed.
    ClusterError
        If there is no cluster at the address.
    """
    ray = _import_ray()
    connects = not ray.is_initialized()
    if connects:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # each kind of address has its own
            raise ClusterError(f"Ray at {address}: {type(error).__name__}: {error}") from error
    try:
        yield RayCluster(ray)
    finally:
        if connects:
            ray.shutdown()


@final
class RayCluster:
    """The cluster to which this process is connected; see `Executor`."""

    def __init__(self, ray: ModuleType) -> None:
        self._ray = ray
        self._call = ray.remote(num_cpus=1, max_retries=MOST_RETRIES)(_call)

    @property
    def stopped(self) -> Callable[[], bool]:
        """Never: a task ends with its worker."""
        return never

    def map(
        self, function: Callable[[Case], Result], cases: Sequence[Case], on_done: Callable[[int, Result], None]
    ) -> list[Result]:
        """See `Executor`."""
        found: dict[int, Result] = {}
        number_of = self._submit(function, cases)
        while number_of:
            ref = self._first(list(number_of))
            number = number_of.pop(ref)
            found[number] = self._get(ref)
            on_done(number, found[number])
        return [found[number] for number in range(len(cases))]

    def map_reduce(
        self,
        function: Callable[[Case], Result],
        cases: Sequence[Case],
        merge: Callable[[Result, Result], Result],
        on_done: Callable[[int, Result], None],
    ) -> Result:
        """See `Executor`. Two results of one depth are merged on a worker as soon as both are there."""
        merge_refs = self._ray.remote(num_cpus=1, max_retries=MOST_RETRIES)(merge)
        number_of = self._submit(function, cases)
        depth_of: dict[Any, int] = {}
        waiting: dict[int, Any] = {}
        while number_of or depth_of:
            ref = self._first([*number_of, *depth_of])
            if ref in number_of:
                on_done(number_of.pop(ref), self._get(ref))
                depth = 0
            else:
                depth = depth_of.pop(ref)
            if depth in waiting:
                depth_of[merge_refs.remote(waiting.pop(depth), ref)] = depth + 1
            else:
                waiting[depth] = ref
        rest = [waiting[depth] for depth in sorted(waiting)]
        while len(rest) > 1:
            rest[:2] = [merge_refs.remote(rest[0], rest[1])]
        result: Result = self._get(rest[0])
        return result

    def _submit(self, function: Callable[[Case], Result], cases: Sequence[Case]) -> dict[Any, int]:
        """{reference to the result: number of the case}; the function travels once."""
        shipped = self._ray.put(function)
        return {self._call.remote(shipped, case): number for number, case in enumerate(cases)}

    def _first(self, refs: list[Any]) -> Any:  # noqa: ANN401  # ray is untyped
        done, _ = self._ray.wait(refs, num_returns=1)
        return done[0]

    def _get(self, ref: Any) -> Any:  # noqa: ANN401  # ray is untyped
        """The result; the error of a case as it was raised, and a lost case as ClusterError."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            raise ClusterError(f"a worker was lost {MOST_RETRIES + 1} times: {error}") from error


def _call(function: Callable[[Case], Result], case: Case) -> Result:
    return function(case)


def _import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("a Ray cluster", "scale") from error
    module: ModuleType = ray
    return module
