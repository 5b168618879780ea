"""Draws max/mean rank load of every layer, plan by plan."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eplb.report.colours import BOUND_COLOUR, plan_style
from eplb.report.plan_view import PlanView
from eplb.report.style import axes_or_new, figure_texts, from_zero, legend_above, title
from eplb.report.ticks import layer_ticks
from eplb_traces import ModelShape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BOUND_WIDTH = 0.8
"""Of the room of a layer."""


def draw_layer_balance(
    views: Sequence[PlanView], shape: ModelShape | None = None, *, ax: "Axes | None" = None
) -> "Axes":
    """Draw one marker for each plan and layer, mean of windows, and the proven bound of their sum as a dash.

    With `shape`, layers have their numbers in the model. The markers of one layer stand beside each other if there are
    few layers.
    """
    num_layers = views[0].placement.num_layers
    axes = axes_or_new(ax, width=min(14.0, max(9.0, 2.0 + 0.2 * num_layers)))
    layers = np.arange(num_layers)
    mean = views[-1].total_rank_load.mean(axis=1)
    bound = np.divide(views[-1].bound.value, mean, out=np.full(num_layers, np.nan), where=mean > 0)
    for index, (view, name) in enumerate(zip(views, figure_texts([view.name for view in views]), strict=True)):
        colour, marker = plan_style(index)
        axes.plot(
            layers + _BOUND_WIDTH * ((index + 0.5) / len(views) - 0.5), view.evaluation.max_over_mean,
            linestyle="", marker=marker, markersize=6 if num_layers <= 20 else 4, color=colour, label=name,
        )  # fmt: skip
    half = _BOUND_WIDTH / 2
    axes.hlines(bound, layers - half, layers + half, BOUND_COLOUR, linewidth=1.6, zorder=1, label="proven lower bound")
    axes.set_xlim(-0.6, num_layers - 0.4)
    layer_ticks(axes.xaxis, num_layers, None if shape is None else shape.moe_layer_ids)
    from_zero(axes)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_ylabel("max/mean rank load")
    title(axes, "Balance of every layer; 1 is perfect")
    legend_above(axes)
    return axes
