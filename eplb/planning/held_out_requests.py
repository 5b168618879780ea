"""Splits a trace by request into one to fit and one that is held out, and states a plan's traffic on the latter."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, final

import numpy as np

from eplb.core.arrays import Ints
from eplb.core.placement import Placement
from eplb.core.problem import Plan, Problem
from eplb.evaluation.metrics import evaluate
from eplb.evaluation.traffic import token_spread
from eplb.strategies.greedy.greedy import Greedy
from eplb_traces import RoutingTrace, TokenBatch

HELD_OUT_EVERY: Final = 5
"""Every fifth request, by ascending id, is held out."""


@final
@dataclass(frozen=True)
class HeldOutFigures:
    """Means over layers, on requests that a plan was not made from."""

    nodes_per_token: float
    ranks_per_token: float
    max_over_mean: float
    """Busiest over mean rank load."""


@final
@dataclass(frozen=True, eq=False)
class _OfRequests(Iterable[TokenBatch]):
    """The tokens of some requests, selected anew each time the trace is read."""

    trace: RoutingTrace
    held_out: Ints
    kept: bool
    """Whether the tokens of these requests are wanted, or those of all others."""

    def __iter__(self) -> Iterator[TokenBatch]:
        for batch in self.trace:
            yield batch.select(np.isin(batch.request, self.held_out) == self.kept)


def split_requests(trace: RoutingTrace) -> tuple[RoutingTrace, RoutingTrace | None]:
    """Split a trace into the one to fit and the one held out; (the trace, None) if it has fewer than 5 requests.

    Reads the trace once; both parts read it again whenever they are read.
    """
    requests: Ints = np.empty(0, np.int64)
    for of_tokens in trace.column("request"):
        requests = np.union1d(requests, of_tokens)
    held_out = requests[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    if not held_out.size:
        return trace, None
    fit, rest = (
        RoutingTrace(trace.shape, _OfRequests(trace, held_out, kept), domain_names=trace.domain_names)
        for kept in (False, True)
    )
    return fit, rest


def held_out_figures(placement: Placement, held_out: RoutingTrace) -> HeldOutFigures:
    """Evaluate a placement on the held-out requests, under even dispatch."""
    spread = token_spread(placement, held_out)
    evaluation = evaluate(placement, held_out.load())
    return HeldOutFigures(
        float(spread.nodes_per_token.mean()),
        float(spread.ranks_per_token.mean()),
        float(evaluation.max_over_mean_of_total.mean()),
    )


def balanced_plan(problem: Problem, seed: int) -> Plan:
    """The plan of `greedy` for the same load: what a traffic-aware plan is compared with."""
    return Greedy()(replace(problem, trace=None, load_cap=None), seed=seed)


def held_out_notes(made: Plan, problem: Problem, held_out: RoutingTrace | None, seed: int) -> tuple[str, ...]:
    """The note on the traffic and the load of a plan against the balanced one, on the held-out requests."""
    if held_out is None:
        return (f"held-out saving unknown: the trace has fewer than {HELD_OUT_EVERY} requests, all are fitted",)
    found = held_out_figures(made.placement, held_out)
    balanced = held_out_figures(balanced_plan(problem, seed).placement, held_out)
    return (
        f"held-out requests (every {HELD_OUT_EVERY}th), this plan against greedy: "
        f"{_against('nodes', found.nodes_per_token, balanced.nodes_per_token)}, "
        f"{_against('ranks', found.ranks_per_token, balanced.ranks_per_token)}; "
        f"max/mean {found.max_over_mean:.3f} against {balanced.max_over_mean:.3f}",
    )


def _against(places: str, found: float, balanced: float) -> str:
    return f"{found:.3f} {places} a token against {balanced:.3f} ({found / balanced - 1:+.1%})"
