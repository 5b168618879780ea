"""Prepares the co-activation data of the page, layer by layer."""

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
"""Range of lifts that the colours distinguish; a few pairs of rarely used experts are outside."""


def coactivation_payload(trace: RoutingTrace, plans: Sequence[PlanView]) -> dict[str, Any]:
    """Co-activation of every layer: lifts quantized to 256 levels; tokens per expert and top pairs exactly."""
    levels, tokens, orders, ranges, pairs, texts = [], [], [], [], [], []
    for of_layer in coactivations(trace):
        lift = np.nan_to_num(upper_triangle(of_layer.lift()), nan=0.0)
        levels.append(Levels.of(lift))
        ranges.append(_colour_range(lift))
        tokens.append(np.diagonal(of_layer.pairs))
        orders.append(of_layer.order())
        pairs.append(of_layer.top_pairs(_NUM_TOP_PAIRS))
        texts.append(_summary(of_layer, trace.shape.num_expert_groups, plans))
    return {
        "num_tokens": trace.num_tokens,
        "tokens": packed(whole_numbers(np.stack(tokens))),
        "levels": packed(np.stack([of_layer.levels for of_layer in levels])),
        "lowest": [of_layer.lowest for of_layer in levels],
        "step": [of_layer.step for of_layer in levels],
        "order": packed(np.stack(orders).astype(np.uint16)),
        "colour_range": packed(np.array(ranges, np.float32)),
        "top_pairs": pairs,
        "summary": texts,
        "independent_lift": _independent_lift(trace),
        "note": _note(trace, max(of_layer.largest_error for of_layer in levels)),
    }


def _independent_lift(trace: RoutingTrace) -> float:
    """The lift of independent experts: (K - 1) / K, because the K choices of a token are distinct."""
    top_k = trace.shape.top_k or 1
    return (top_k - 1) / top_k if top_k > 1 else 1.0


def _note(trace: RoutingTrace, largest_error: float) -> str:
    return (
        "Lift: tokens that chose both experts, divided by the number expected if experts were chosen independently. "
        f"The choices of a token are distinct, so the lift of independent experts is about "
        f"{_independent_lift(trace):.2f} here, not 1. To keep this file small, the heatmap is quantized to 256 levels: "
        f"a value is at most {100 * largest_error:.1f} % off. The table is exact."
    )


def _summary(of_layer: CoActivation, num_groups: int, plans: Sequence[PlanView]) -> str:
    """Share of pairs inside expert groups, and ranks and nodes per token under each plan."""
    sentences = []
    if of_layer.num_pairs == 0:
        sentences.append("No token chose two experts in this layer.")
    elif num_groups > 1:
        experts_per_group = of_layer.num_experts // num_groups
        inside = of_layer.share_inside(np.arange(of_layer.num_experts) // experts_per_group)
        sentences.append(
            f"{100 * inside.observed:.1f} % of a token's pairs of experts are inside one expert group "
            f"({100 * inside.expected:.1f} % if experts were independent)."
        )
    for view in plans:
        if view.spread is not None:
            ranks, nodes = (
                float(of[of_layer.layer]) for of in (view.spread.ranks_per_token, view.spread.nodes_per_token)
            )
            sentences.append(f"With {view.name} a token's choices are on {ranks:.2f} ranks and {nodes:.2f} nodes.")
    return " ".join(sentences)


def _colour_range(lift: NDArray[np.float64]) -> tuple[float, float]:
    positive = lift[lift > 0]
    if not positive.size:
        return 0.0, 0.0
    low, high = np.quantile(np.log2(positive), _QUANTILES)
    return float(low), float(high)
