"""Draws max/mean rank load of every layer, plan by plan."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eplb.report.plan_view import PlanView
from eplb.report.style import BOUND_COLOUR, axes_or_new, figure_text, legend_above, plan_style, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_layer_balance(views: Sequence[PlanView], *, ax: "Axes | None" = None) -> "Axes":
    """Draw one line per plan over the layers, mean of windows, and the proven bound of their sum."""
    axes = axes_or_new(ax)
    num_layers = views[0].placement.num_layers
    layers = np.arange(num_layers)
    for index, view in enumerate(views):
        colour, marker = plan_style(index)
        axes.plot(
            layers,
            view.evaluation.max_over_mean,
            color=colour,
            marker=marker,
            markersize=4,
            label=figure_text(view.name),
        )
    mean = views[-1].total_rank_load.mean(axis=1)
    bound = np.divide(views[-1].bound.value, mean, out=np.full(num_layers, np.nan), where=mean > 0)
    axes.plot(layers, bound, color=BOUND_COLOUR, linestyle=":", label="proven lower bound")
    whole_ticks(axes.xaxis, num_layers)
    axes.set_ylim(bottom=min(0.95, float(np.nanmin(bound)) - 0.05))
    axes.grid(axis="y", alpha=0.3)
    axes.set_xlabel("layer")
    axes.set_ylabel("max/mean rank load")
    axes.set_title("Balance of every layer; 1 is perfect")
    legend_above(axes)
    return axes
