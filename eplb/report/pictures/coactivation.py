"""Draws which experts of a layer are chosen together, as a heatmap."""

from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eplb.report.cell_values import write_values
from eplb.report.colours import amounts, around_one
from eplb.report.style import (
    axes_or_new,
    colour_bar,
    column_borders,
    factor_texts,
    factor_ticks,
    row_borders,
    square_size,
    title,
)
from eplb.report.summary_text import layer_name
from eplb.report.ticks import POINTS_PER_INCH, axes_inches, id_ticks
from eplb_traces import ModelShape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from eplb_traces.coactivation.layer_coactivation import CoActivation

_HIGHEST = 8.0
_STRIP_LEFT, _STRIP_WIDTH = -0.03, 0.022  # of the width of the axes


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

    Both measures use log scales; lift is clipped to 1/8 and 8, and neutral at 1. Pairs that no token chose are grey in
    tokens. Lift is `CoActivation.shrunk_lift`: rare pairs are near 1. Expert groups are separated by lines if experts
    are ordered by id, and marked by a strip of colours otherwise. Up to 64 experts have their value in the cell.
    """
    width, height = square_size(shape.num_experts)
    axes = axes_or_new(ax, width=width, height=height)
    places = np.arange(shape.num_experts) if order is Order.BY_ID else coactivation.order()
    if measure is Measure.LIFT:
        _draw_lift(axes, coactivation.shrunk_lift()[np.ix_(places, places)])
    else:
        _draw_tokens(axes, coactivation.pairs[np.ix_(places, places)])
    id_ticks(axes.xaxis, places.tolist())
    id_ticks(axes.yaxis, places.tolist())
    _mark_groups(axes, shape, places, order)
    name = layer_name(shape, coactivation.layer)
    title(axes, f"Experts chosen together, {name}, {coactivation.num_tokens:,} tokens")
    return axes


def _mark_groups(axes: "Axes", shape: ModelShape, places: NDArray[np.int64], order: Order) -> None:
    """Separate expert groups by lines, or mark them by a strip, and name both axes."""
    groups = shape.num_expert_groups
    label = "logical expert" + (", ordered by similarity" if order is Order.BY_LIKENESS else "")
    if groups > 1 and order is Order.BY_ID:
        edges = np.arange(1, groups) * shape.experts_per_group
        column_borders(axes, edges)
        row_borders(axes, edges)
        label += " (lines: expert groups)"
    elif groups > 1:
        _draw_group_strip(axes, places // shape.experts_per_group, groups)
        label += " (strip: expert group)"
    axes.set_xlabel(label)
    axes.set_ylabel("logical expert")


def _draw_lift(axes: "Axes", lift: NDArray[np.float64]) -> None:
    shown = np.clip(lift, 1 / _HIGHEST, _HIGHEST)
    np.fill_diagonal(shown, np.nan)
    image = axes.imshow(shown, cmap=around_one(), norm="log", vmin=1 / _HIGHEST, vmax=_HIGHEST, interpolation="nearest")
    ticks = factor_ticks(_HIGHEST)
    colour_bar(image, "lift: observed / expected pairs (rare pairs: near 1)", ends="both", ticks=ticks, numbers="{x:g}")
    write_values(image, factor_texts(shown))


def _draw_tokens(axes: "Axes", pairs: NDArray[np.int64]) -> None:
    shown = np.where(pairs > 0, pairs.astype(np.float64), np.nan)
    np.fill_diagonal(shown, np.nan)
    most = 1.0 if np.isnan(shown).all() else float(np.nanmax(shown))
    image = axes.imshow(shown, cmap=amounts(), norm="log", vmin=1, vmax=max(10.0, most), interpolation="nearest")
    colour_bar(image, "tokens that chose both (grey: none)", numbers="{x:,.0f}")
    write_values(image, [["" if np.isnan(count) else _short(count) for count in row] for row in shown])


def _short(count: float) -> str:
    """A count in at most four letters: 980, 12k, 3M."""
    return f"{count:.0f}" if count < 1e3 else f"{count / 1e3:.0f}k" if count < 999.5e3 else f"{count / 1e6:.0f}M"


def _draw_group_strip(axes: "Axes", group: NDArray[np.int64], num_groups: int) -> None:
    """Draw a strip between the axes and the ids of the rows."""
    strip = axes.inset_axes((_STRIP_LEFT, 0.0, _STRIP_WIDTH, 1.0))
    strip.imshow(group[:, None], aspect="auto", cmap=amounts(), vmin=0, vmax=num_groups - 1, interpolation="nearest")
    strip.set_xticks([])
    strip.set_yticks([])
    axes.tick_params(axis="y", length=0, pad=8.0 - _STRIP_LEFT * POINTS_PER_INCH * axes_inches(axes)[0])
