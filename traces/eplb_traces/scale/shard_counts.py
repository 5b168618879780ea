"""Counts the tokens of one file of a trace, so that the counts of all files add up to those of the whole trace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import EplbError, InputError, naming_place
from eplb_traces.files.remote import borrowed
from eplb_traces.model_shape import ModelShape, merge_shapes
from eplb_traces.readers import read
from eplb_traces.readers.dialect import ReadOptions, Wanted
from eplb_traces.routing_trace import RoutingTrace, TokenBatch
from eplb_traces.scale.executors import never


class StoppedError(EplbError):
    """A count was given up, because its result is no longer wanted."""


_NOTHING_SAID = ReadOptions()


@final
@dataclass(frozen=True)
class Shard:
    """One file of a trace, and how its tokens are counted."""

    path: str
    options: ReadOptions = _NOTHING_SAID
    dialect: str | None = None
    window: int | None = None
    """Steps of a window; None: one window."""
    first_step: int | None = None
    """First step of the first window of the whole trace; None without windows."""
    step_offset: int = 0
    """What is added to the steps of the file to give those of the whole trace."""


@final
@dataclass(frozen=True, eq=False)
class ShardCounts:
    """Tokens of some files. Sums of integers: the order in which they are added does not matter."""

    shape: ModelShape
    num_tokens: int
    windows: dict[int, NDArray[np.int64]]
    """{first step: counts [L, E]} of the windows that hold tokens."""


@final
@dataclass(frozen=True)
class StepRange:
    """The steps of a file."""

    first: int | None
    """None where the file has no tokens."""
    last: int


@contextmanager
def open_shard(shard: Shard) -> Iterator[RoutingTrace]:
    """The trace in the file, to be read inside the block; an object of a store is copied for its time.

    Raises
    ------
    InputError
        If it cannot be read or holds no tokens but loads.
    """
    with naming_place(shard.path), borrowed(shard.path) as path:
        content = read(path, replace(shard.options, wants=Wanted.TRACE), format=shard.dialect).content
        if not isinstance(content, RoutingTrace):  # `read` has refused it
            raise InputError("holds loads only: see eplb trace merge")
        yield content


def count_shard(shard: Shard, stopped: Callable[[], bool] = never) -> ShardCounts:
    """Count the tokens of a file, as a stream.

    Raises
    ------
    InputError
        As `open_shard` and as the batches of the trace.
    StoppedError
        If `stopped` was true between two batches.
    """
    first = None if shard.first_step is None else shard.first_step - shard.step_offset
    with open_shard(shard) as trace:
        batches = _Stoppable(trace, stopped)
        counts = RoutingTrace(trace.shape, batches).counts_by_window(shard.window, first)
    windows = {start + shard.step_offset if shard.window is not None else 0: of for start, of in counts.items()}
    return ShardCounts(trace.shape, batches.num_tokens, windows)


def step_range(shard: Shard) -> StepRange:
    """The first and last step of a file; of a file of columns only this one is read."""
    first: int | None = None
    last = -1
    with open_shard(shard) as trace:
        for values in trace.column("step"):
            if values.size:
                least = int(values.min())
                first = least if first is None else min(first, least)
                last = max(last, int(values.max()))
    return StepRange(first, last)


def added(one: ShardCounts, other: ShardCounts) -> ShardCounts:
    """The counts of both.

    Raises
    ------
    ShapeConflictError
        If they are of different models.
    """
    shape = merge_shapes(one.shape, other.shape)
    windows = dict(one.windows)
    for start, counts in other.windows.items():
        windows[start] = windows[start] + counts if start in windows else counts
    return ShardCounts(shape, one.num_tokens + other.num_tokens, windows)


@final
class _Stoppable:
    """The batches of a trace until they are no longer wanted, and how many tokens the last reading has given."""

    def __init__(self, trace: RoutingTrace, stopped: Callable[[], bool]) -> None:
        self._trace, self._stopped, self.num_tokens = trace, stopped, 0

    def __iter__(self) -> Iterator[TokenBatch]:
        self.num_tokens = 0
        for batch in self._trace.batches():
            if self._stopped():
                raise StoppedError("the count was stopped")
            self.num_tokens += batch.num_tokens
            yield batch
