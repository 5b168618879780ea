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
_ERROR_RATE: Final = 0.05
"""Probability that one of a layer's pairs is listed although the router has no affinity."""
_QUANTILES: Final = (0.001, 0.999)
"""Range of lifts that the colours distinguish; a few pairs are outside."""
_PRIOR_PAIRS: Final = 5.0
"""As in `CoActivation.shrunk_lift`; the page's scripts compute pairs from lifts with it."""

_PART_OF_ALL: Final = 1e100

_Pair = tuple[int, int, int, float]
"""Expert, other expert, tokens that chose both, adjusted lift."""


def coactivation_payload(trace: RoutingTrace, plans: Sequence[PlanView]) -> dict[str, Any]:
    """Co-activation of every layer: lifts quantized to 256 levels; tokens per expert and top pairs exactly.

    The lift is `CoActivation.shrunk_lift`: 1 without affinity.
    """
    levels, tokens, orders, ranges, pairs, texts, expected = [], [], [], [], [], [], []
    for of_layer in coactivations(trace):
        lift = upper_triangle(of_layer.shrunk_lift())
        levels.append(Levels.of(lift))
        ranges.append(_colour_range(lift))
        tokens.append(of_layer.expert_tokens)
        orders.append(of_layer.order())
        pairs.append(top_pairs(of_layer))
        texts.append(_summary(of_layer, trace.shape.num_expert_groups, plans))
        expected.append(factors(of_layer.expected_pairs))
    return {
        "prior_pairs": _PRIOR_PAIRS,
        "tokens": packed(whole_numbers(np.stack(tokens))),
        "factors": packed(np.stack(expected)),
        "levels": packed(np.stack([of_layer.levels for of_layer in levels])),
        "lowest": [of_layer.lowest for of_layer in levels],
        "step": [of_layer.step for of_layer in levels],
        "order": packed(np.stack(orders).astype(np.uint16)),
        "colour_range": packed(np.array(ranges, np.float32)),
        "top_pairs": pairs,
        "summary": texts,
        "note": _note(max(of_layer.largest_error for of_layer in levels)),
    }


def top_pairs(of_layer: CoActivation) -> list[_Pair]:
    """The pairs with the most tokens above `CoActivation.expected_pairs`, if chance does not explain them.

    Under independence the tokens of a pair are at most as dispersed as a Poisson variable. A pair is listed if so many
    tokens or more have a probability below `_ERROR_RATE` over the number of pairs (Bonferroni). Ties go to the lowest
    ids.
    """
    from scipy.special import pdtrc

    expert, other = np.triu_indices(of_layer.num_experts, 1)
    found, chance = of_layer.pairs[expert, other], of_layer.expected_pairs[expert, other]
    order = np.argsort(-(found - chance), kind="stable")
    order = order[(found > chance)[order]]
    significant = pdtrc(found[order] - 1, chance[order]) < _ERROR_RATE / max(found.size, 1)
    return [
        (int(expert[pair]), int(other[pair]), int(found[pair]), float(found[pair] / chance[pair]))
        for pair in order[significant][:_NUM_TOP_PAIRS]
    ]


def factors(expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """[E] x with x[i] * x[j] = expected[i, j] off the diagonal, for the `CoActivation.expected_pairs` of a layer.

    The largest x is found from three experts a, b, c as e[a, b] e[a, c] / e[b, c] = x[a]^2. Where one expert is part of
    every pair, e[b, c] is 0 and x[a] a number so large that the products of the others vanish.
    """
    first, *others = np.argsort(-expected.sum(axis=1), kind="stable")[:3].tolist()
    to_others = expected[first, others]
    if not to_others.any():
        return np.zeros(len(expected))
    if len(others) < 2 or to_others[1] == 0:
        largest = float(np.sqrt(to_others[0]))
    else:
        across = float(expected[others[0], others[1]])
        largest = float(np.sqrt(to_others[0]) * np.sqrt(to_others[1] / across)) if across > 0 else _PART_OF_ALL
    found = expected[first] / largest
    found[first] = largest
    return found


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
    known = lift[~np.isnan(lift)]
    if not known.size:
        return 0.0, 0.0
    low, high = np.quantile(np.log2(known), _QUANTILES)
    return float(low), float(high)


def _note(largest_error: float) -> str:
    return (
        "Lift: pairs of tokens' choices over those expected if experts were chosen without affinity and as often as "
        f"they were; {_PRIOR_PAIRS:g} pairs are added to both, so that rare pairs stay near 1. To keep this file "
        f"small, the heatmap is quantized to 256 levels: a value is at most {100 * largest_error:.1f} % off. The table "
        "is exact and without the added pairs."
    )
