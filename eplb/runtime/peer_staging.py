"""Staging memory that every rank can write into, and the copies into it, in pieces beside the running layers.

    region of a process    headers [N][parts + 1] int64 | part a [N][...] | part b [N][...]     N: most slots of a layer

On a GPU the pieces are copied by the copy engine on streams of their own, over peer memory, so that they take no
multiprocessor from the layers; on a CPU the regions are files that all processes map.
"""

from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import final

import torch
from torch import Tensor

from eplb.errors import InputError
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.exchange.symmetric.availability import symmetric_refusal
from eplb.runtime.exchange.symmetric.memory import memory_of_group
from eplb.runtime.weights.expert_weights import ExpertWeights
from eplb.runtime.weights.fingerprint import as_bytes

_ALIGNMENT = 256
_NUM_STREAMS = 2
"""The engine pauses about 10 us between two copies of one stream, as measured on H200s."""


@final
class PeerStaging:
    """The staging memory of all processes, as this process addresses it. The constructor is a collective call.

    Parameters
    ----------
    weights
        The live weights, whose parts are staged.
    ranks
        The processes.
    most_slots
        N, the same on all processes.

    Raises
    ------
    InputError
        With the reason, if the processes cannot address each other's memory.
    """

    streams: "tuple[torch.cuda.Stream, ...]"
    """On which the copies run in turn, so that one starts while another ends; none on a CPU."""

    def __init__(self, weights: ExpertWeights, ranks: RankGroup, most_slots: int) -> None:
        device = weights.device
        if device.type == "cuda" and (refusal := symmetric_refusal(ranks, device)):
            raise InputError(f"peer memory: {refusal}")
        parts = weights.layer_parts(0)
        self._shapes = {"": ((most_slots, len(parts) + 1), torch.int64)}
        self._shapes |= {name: ((most_slots, *part.shape[1:]), part.dtype) for name, part in parts.items()}
        self._offsets, end = {}, 0
        for name, (shape, dtype) in self._shapes.items():
            self._offsets[name] = end
            end += -(-prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        self._memory = memory_of_group(ranks.process_group, max(end, _ALIGNMENT), device)
        number = _NUM_STREAMS if device.type == "cuda" else 0
        self.streams = tuple(torch.cuda.Stream(device) for _ in range(number))  # type: ignore[no-untyped-call]
        self._next = 0
        self._waiting: deque[tuple[Tensor, Tensor]] = deque()
        self._sent: list[tuple[Tensor, Tensor]] = []

    def parts(self, process: int, index: int) -> dict[str, Tensor]:
        """{part name: tensor} of one staged slot of a process."""
        return {name: self._view(process, name)[index] for name in self._shapes if name}

    def headers(self, process: int) -> Tensor:
        """[N, parts + 1] int64 headers of the staged slots of a process."""
        return self._view(process, "")

    def clear(self) -> None:
        """Drop the copies that wait, wait for those on their way, and erase the own headers."""
        self._waiting.clear()
        self._join()
        self.headers(self._memory.rank).fill_(-1)

    def add(self, copies: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Append copies, each a destination in a region and a source of the same type and size."""
        self._waiting.extend((as_bytes(destination), as_bytes(source)) for destination, source in copies)

    def push(self, num_bytes: int) -> int:
        """Enqueue the next bytes behind the work of the current stream, without waiting; the bytes that still wait.

        Raises
        ------
        InputError
            For less than one byte.
        """
        if num_bytes < 1:
            raise InputError(f"push of {num_bytes} bytes: expected at least 1")
        for stream in self.streams:
            stream.wait_stream(torch.cuda.current_stream())
        self._copy(num_bytes)
        return sum(source.numel() for _, source in self._waiting)

    def finish(self) -> None:
        """Enqueue all that waits; the current stream waits for it."""
        if self._waiting:
            self.push(sum(source.numel() for _, source in self._waiting))
        self._join()

    def _copy(self, num_bytes: int) -> None:
        while self._waiting and num_bytes > 0:
            destination, source = self._waiting.popleft()
            size = min(num_bytes, source.numel())
            with self._stream():
                destination[:size].copy_(source[:size], non_blocking=True)
            self._sent.append((destination, source))  # alive until the copy is done
            num_bytes -= size
            if size < source.numel():
                self._waiting.appendleft((destination[size:], source[size:]))

    def _join(self) -> None:
        for stream in self.streams:
            torch.cuda.current_stream().wait_stream(stream)
        self._sent.clear()

    def _stream(self) -> AbstractContextManager[object]:
        """The stream of the next copy."""
        if not self.streams:
            return nullcontext()
        self._next = (self._next + 1) % len(self.streams)
        return torch.cuda.stream(self.streams[self._next])

    def _view(self, process: int, name: str) -> Tensor:
        shape, dtype = self._shapes[name]
        first = self._offsets[name]
        return self._memory.regions[process][first : first + prod(shape) * dtype.itemsize].view(dtype).view(shape)
