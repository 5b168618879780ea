"""Knows what the page says of experts that are chosen together, layer by layer; counts nothing itself."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from eplb.report.html_arrays import Levels, packed, upper_triangle, whole_numbers
from eplb.report.plan_view import PlanView
from eplb_traces import RoutingTrace
from eplb_traces.coactivation.layer_coactivation import CoActivation, coactivations

_NUM_TOP_PAIRS: Final = 12
_QUANTILES: Final = (0.001, 0.999)
"""Between them lie the lifts that the colours tell apart; a few pairs of nearly unused experts lie outside."""


def coactivation_payload(trace: RoutingTrace, plans: Sequence[PlanView]) -> dict[str, Any]:
    """Co-activation of every layer: lifts in 256 levels, the expert's own tokens and the top pairs exactly."""
    levels, tokens, orders, ranges, pairs, words = [], [], [], [], [], []
    for of_layer in coactivations(trace):
        lift = np.nan_to_num(upper_triangle(of_layer.lift()), nan=0.0)
        levels.append(Levels.of(lift))
        ranges.append(_colour_range(lift))
        tokens.append(np.diagonal(of_layer.pairs))
        orders.append(of_layer.order())
        pairs.append(of_layer.top_pairs(_NUM_TOP_PAIRS))
        words.append(_words(of_layer, trace.shape.num_expert_groups, plans))
    return {
        "num_tokens": trace.num_tokens,
        "tokens": packed(whole_numbers(np.stack(tokens))),
        "levels": packed(np.stack([of_layer.levels for of_layer in levels])),
        "lowest": [of_layer.lowest for of_layer in levels],
        "step": [of_layer.step for of_layer in levels],
        "order": packed(np.stack(orders).astype(np.uint16)),
        "colour_range": packed(np.array(ranges, np.float32)),
        "top_pairs": pairs,
        "words": words,
        "no_affinity": _no_affinity(trace),
        "note": _note(trace, max(of_layer.largest_error for of_layer in levels)),
    }


def _no_affinity(trace: RoutingTrace) -> float:
    """The lift of experts without affinity: a token's K choices differ, which leaves (K - 1) / K of the pairs."""
    top_k = trace.shape.top_k or 1
    return (top_k - 1) / top_k if top_k > 1 else 1.0


def _note(trace: RoutingTrace, largest_error: float) -> str:
    return (
        "Lift: how many times as often tokens choose both experts as they would if each were chosen by itself. A "
        f"token's choices differ, so that without any affinity it is about {_no_affinity(trace):.2f} here, not 1. "
        "To keep this file small the heatmap is shown in 256 levels: a value is at most "
        f"{100 * largest_error:.1f} % off. The table is exact."
    )


def _words(of_layer: CoActivation, num_groups: int, plans: Sequence[PlanView]) -> str:
    """What the pairs of a layer mean for groups and for traffic."""
    sentences = []
    if of_layer.num_pairs == 0:
        sentences.append("No token chose two experts here.")
    elif num_groups > 1:
        experts_per_group = of_layer.num_experts // num_groups
        inside = of_layer.share_inside(np.arange(of_layer.num_experts) // experts_per_group)
        sentences.append(
            f"{100 * inside.observed:.1f} % of a token's pairs of experts lie inside an expert group "
            f"({100 * inside.expected:.1f} % without affinity)."
        )
    for view in plans:
        if view.spread is not None:
            ranks, nodes = (
                float(of[of_layer.layer]) for of in (view.spread.ranks_per_token, view.spread.nodes_per_token)
            )
            sentences.append(f"With {view.name} a token's choices lie on {ranks:.2f} ranks and {nodes:.2f} nodes.")
    return " ".join(sentences)


def _colour_range(lift: NDArray[np.float64]) -> tuple[float, float]:
    positive = lift[lift > 0]
    if not positive.size:
        return 0.0, 0.0
    low, high = np.quantile(np.log2(positive), _QUANTILES)
    return float(low), float(high)
