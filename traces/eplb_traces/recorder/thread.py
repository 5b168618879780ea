"""Writes recorded passes to a file in a thread while the model runs."""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.files.writers import write_trace
from eplb_traces.model_shape import ModelShape
from eplb_traces.routing_trace import RoutingTrace, TokenBatch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MOST_CHUNKS_WAITING = 16
_WAIT_S = 0.2


@final
@dataclass(frozen=True, eq=False)
class RecordedPass:
    """One forward pass, on the host or being copied there.

    Parameters
    ----------
    ids
        [L, T, K] int16, the bits of uint16.
    kept
        [T]: False for a token that is padding; None: all are kept.
    requests
        [T]
    arrived
        Reached when the copies are on the host; None: they are.
    """

    step: int
    ids: "Tensor"
    kept: "Tensor | None"
    requests: NDArray[np.int64]
    arrived: "torch.cuda.Event | None"


@final
class WriterThread:
    """Writes chunks of passes as they arrive; `close` creates the file, `abandon` discards it."""

    def __init__(self, shape: ModelShape, path: str | Path) -> None:
        self.shape = shape
        self.num_tokens = 0
        self._path = path
        self._chunks: queue.Queue[Sequence[RecordedPass] | None] = queue.Queue(_MOST_CHUNKS_WAITING)
        self._abandoned = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="eplb-recorder", daemon=True)
        self._thread.start()

    def put(self, chunk: Sequence[RecordedPass]) -> None:
        """Queue passes for writing; waits while the queue is full.

        Raises
        ------
        Exception
            The exception that ended the thread.
        """
        self._put(chunk)

    def close(self) -> None:
        """Write the remaining passes and create the file.

        Raises
        ------
        Exception
            The exception that ended the thread; InputError if there was no token.
        """
        self._put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def abandon(self) -> None:
        """Stop without creating a file."""
        self._abandoned = True
        try:
            self._put(None)
        except Exception:  # the thread has already ended
            return
        self._thread.join()

    def _put(self, chunk: Sequence[RecordedPass] | None) -> None:
        while True:
            if self._failure is not None:
                raise self._failure
            try:
                return self._chunks.put(chunk, timeout=_WAIT_S)
            except queue.Full:
                continue

    def _run(self) -> None:
        try:
            batches = self._batches()
            first = next(batches, None)
            if first is None:
                raise InputError("nothing was recorded: no forward pass of the model had a token")
            write_trace(RoutingTrace(self.shape, _Arriving(first, batches)), self._path)
        except Exception as error:  # raised again by `put` or `close`
            self._failure = error

    def _batches(self) -> Iterator[TokenBatch]:
        while (chunk := self._chunks.get()) is not None:
            batch = _token_batch(chunk, self.shape)
            self.num_tokens += batch.num_tokens
            if batch.num_tokens:
                yield batch
        if self._abandoned:
            raise InputError("abandoned")


@final
@dataclass(frozen=True, eq=False)
class _Arriving:
    """Batches that arrive over time; the first is available, the rest can be iterated once."""

    first: TokenBatch
    rest: Iterator[TokenBatch]

    def __iter__(self) -> Iterator[TokenBatch]:
        yield self.first
        yield from self.rest


def _token_batch(chunk: Sequence[RecordedPass], shape: ModelShape) -> TokenBatch:
    parts = []
    for one in chunk:
        if one.arrived is not None:
            one.arrived.synchronize()
        kept = slice(None) if one.kept is None else one.kept.numpy()
        ids = one.ids.numpy().view(np.uint16).transpose(1, 0, 2)[kept]
        requests = one.requests[kept]
        parts.append((ids, np.full(len(requests), one.step), requests))
    expert_ids, steps, requests = (np.concatenate(column) for column in zip(*parts, strict=True))
    for column in (expert_ids, steps, requests):
        column.setflags(write=False)
    return TokenBatch(shape, np.ascontiguousarray(expert_ids), steps, requests)
