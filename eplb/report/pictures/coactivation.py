"""Draws which experts of a layer are chosen together, as a heatmap."""

from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eplb.report.style import (
    BORDER_COLOUR,
    axes_or_new,
    colour_bar,
    colour_map,
    column_borders,
    row_borders,
    whole_ticks,
)
from eplb.report.summary_text import layer_name
from eplb_traces import ModelShape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from eplb_traces.coactivation.layer_coactivation import CoActivation

_LOWEST, _HIGHEST = 1 / 8, 8.0
_PRIOR_PAIRS = 5.0


class Measure(StrEnum):
    """Meaning of the colour of a pair."""

    TOKENS = "tokens"
    """Tokens that chose both."""
    LIFT = "lift"
    """The same divided by the expectation for independent experts with the same loads; 1: independent."""


class Order(StrEnum):
    """Order of the experts on both axes."""

    BY_ID = "by id"
    BY_LIKENESS = "by likeness"
    """Experts that are chosen with the same other experts are adjacent, so that blocks appear."""


def draw_coactivation(
    coactivation: "CoActivation",
    shape: ModelShape,
    *,
    measure: Measure = Measure.LIFT,
    order: Order = Order.BY_ID,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw every pair of experts of a layer; the diagonal and pairs with an unused expert are grey.

    Both measures use log scales; lift is clipped to 1/8 and 8. Pairs that no token chose are grey in tokens. For lift,
    a few pairs are added to the observed and the expected count, which shrinks rare pairs towards 1;
    `CoActivation.adjusted_lift` is the value without shrinking. Expert groups are separated by lines if experts are
    ordered by id, and marked by a strip of colours otherwise.
    """
    axes = axes_or_new(ax, width=7.4, height=6.4)
    places = np.arange(shape.num_experts) if order is Order.BY_ID else coactivation.order()
    if measure is Measure.LIFT:
        _draw_lift(axes, _shrunk_lift(coactivation)[np.ix_(places, places)])
    else:
        _draw_tokens(axes, coactivation.pairs[np.ix_(places, places)])
    if order is Order.BY_ID:
        whole_ticks(axes.xaxis, shape.num_experts)
        whole_ticks(axes.yaxis, shape.num_experts)
        edges = np.arange(1, shape.num_expert_groups) * shape.experts_per_group
        colour = "black" if measure is Measure.LIFT else BORDER_COLOUR
        column_borders(axes, edges, colour)
        row_borders(axes, edges, colour)
        label = "logical expert" + (" (lines: expert groups)" if shape.num_expert_groups > 1 else "")
    else:
        axes.set_xticks([])
        axes.set_yticks([])
        label = "logical expert, ordered by similarity"
        if shape.num_expert_groups > 1:
            _draw_group_strip(axes, places // shape.experts_per_group, shape.num_expert_groups)
            label += " (strip: expert group)"
    axes.set_xlabel(label)
    axes.set_title(
        f"Experts chosen together, {layer_name(shape, coactivation.layer)}, {coactivation.num_tokens:,} tokens"
    )
    return axes


def _shrunk_lift(coactivation: "CoActivation") -> NDArray[np.float64]:
    """[E, E] observed / expected pairs with `_PRIOR_PAIRS` added to both; nan if an expert has no tokens."""
    lift = (coactivation.pairs + _PRIOR_PAIRS) / (coactivation.expected_pairs + _PRIOR_PAIRS)
    used = coactivation.expert_tokens > 0
    return np.where(used[:, None] & used, lift, np.nan)


def _draw_lift(axes: "Axes", lift: NDArray[np.float64]) -> None:
    shown = np.clip(lift, _LOWEST, _HIGHEST)
    np.fill_diagonal(shown, np.nan)
    image = axes.imshow(
        shown, cmap=colour_map("PuOr_r"), norm="log", vmin=_LOWEST, vmax=_HIGHEST, interpolation="nearest"
    )
    ticks = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]
    colour_bar(image, "lift: observed / expected pairs", ends="both", ticks=ticks, numbers="{x:g}")


def _draw_tokens(axes: "Axes", pairs: NDArray[np.int64]) -> None:
    shown = np.where(pairs > 0, pairs.astype(np.float64), np.nan)
    np.fill_diagonal(shown, np.nan)
    most = 1.0 if np.isnan(shown).all() else float(np.nanmax(shown))
    image = axes.imshow(
        shown, cmap=colour_map("viridis"), norm="log", vmin=1, vmax=max(10.0, most), interpolation="nearest"
    )
    colour_bar(image, "tokens that chose both (grey: none)", numbers="{x:,.0f}")


def _draw_group_strip(axes: "Axes", group: NDArray[np.int64], num_groups: int) -> None:
    strip = axes.inset_axes((-0.035, 0.0, 0.025, 1.0))
    strip.imshow(group[:, None], aspect="auto", cmap="viridis", vmin=0, vmax=num_groups - 1, interpolation="nearest")
    strip.set_xticks([])
    strip.set_yticks([])
