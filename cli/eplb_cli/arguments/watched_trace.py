"""Counts the tokens of a trace as they are read, for a bar with rate and time left."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from eplb_traces import RoutingTrace, TokenBatch


@final
class _Watched:
    """The batches of a trace; each is announced with its number of tokens when the next one is asked for."""

    def __init__(self, trace: "RoutingTrace", on_tokens: Callable[[int], None]) -> None:
        self._trace, self._on_tokens = trace, on_tokens

    def __iter__(self) -> "Iterator[TokenBatch]":
        for batch in self._trace.batches():
            yield batch
            self._on_tokens(batch.num_tokens)

    def column(self, name: str) -> "Iterator[NDArray[Any]]":
        """Steps or requests, read alone where the trace can; they are not announced."""
        return self._trace.column(name)


def watched_trace(trace: "RoutingTrace", on_tokens: Callable[[int], None]) -> "RoutingTrace":
    """The same trace, which calls `on_tokens` with the tokens of each batch that has been used."""
    from eplb_traces import RoutingTrace

    return RoutingTrace(trace.shape, _Watched(trace, on_tokens), trace.num_tokens, trace.domain_names)
