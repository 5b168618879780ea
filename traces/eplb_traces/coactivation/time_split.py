"""Splits a trace in two halves by time: one to estimate on, the other held out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.routing_trace import RoutingTrace, TokenBatch


def split(trace: RoutingTrace) -> tuple[RoutingTrace, RoutingTrace]:
    """Cut a trace into its earlier and its later steps, about as many tokens in each, both still streamed.

    Of a trace of one step every second request, by ascending number, goes to the second half. (Not the higher numbers:
    neighbours are often of one kind of text.)

    Raises
    ------
    InputError
        If the trace has only one step with one request, or no tokens.
    """
    tokens_of_step = _count_values(trace, "step")
    if not tokens_of_step:
        raise InputError("the trace has no tokens: expected some to hold out")
    if len(tokens_of_step) > 1:
        middle = _middle(tokens_of_step)
        return trace.select_steps(0, middle), trace.select_steps(middle, max(tokens_of_step) + 1)
    requests = sorted(_count_values(trace, "request"))
    if len(requests) == 1:
        raise InputError(f"the trace has one step and one request ({requests[0]}): expected two to hold one out")
    first, second = (
        RoutingTrace(trace.shape, _Requests(trace, np.array(part)), domain_names=trace.domain_names)
        for part in (requests[::2], requests[1::2])
    )
    return first, second


@final
@dataclass(frozen=True, eq=False)
class _Requests:
    """The batches of a trace cut down to some requests."""

    trace: RoutingTrace
    requests: NDArray[np.int64]

    def __iter__(self) -> Iterator[TokenBatch]:
        for batch in self.trace.batches():
            inside = np.isin(batch.request, self.requests)
            if inside.any():
                yield batch.select(inside)


def _count_values(trace: RoutingTrace, column: str) -> dict[int, int]:
    """{step or request: its tokens}."""
    counts: dict[int, int] = {}
    for of_tokens in trace.column(column):
        values, tokens = np.unique(of_tokens, return_counts=True)
        for value, count in zip(values.tolist(), tokens.tolist(), strict=True):
            counts[value] = counts.get(value, 0) + count
    return counts


def _middle(tokens_of_step: dict[int, int]) -> int:
    """The step, not the first one, before which the number of tokens is nearest to one half; the earliest of equals."""
    steps = sorted(tokens_of_step)
    before = np.cumsum([tokens_of_step[step] for step in steps])
    return steps[1 + int(np.argmin(np.abs(2 * before[:-1] - before[-1])))]
