"""Draws the load of every rank in one layer, plan by plan."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from eplb.report.plan_view import PlanView
from eplb.report.style import BOUND_COLOUR, axes_or_new, figure_text, legend_above, plan_style, whole_ticks
from eplb.report.summary_text import layer_name
from eplb_traces import ModelShape

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_rank_load(views: Sequence[PlanView], layer: int, shape: ModelShape, *, ax: "Axes | None" = None) -> "Axes":
    """Draw the tokens of each rank, summed over windows: the first plan filled, the others as steps.

    The bound is the lower bound on the busiest rank of the last plan. If ranks differ in speed, it is drawn for each
    rank.
    """
    axes = axes_or_new(ax)
    topology = views[0].placement.topology
    edges = np.arange(topology.num_ranks + 1) - 0.5
    for index, view in enumerate(views):
        colour, _ = plan_style(index)
        ratio = view.evaluation.max_over_mean_of_total[layer]
        label = f"{figure_text(view.name)}: busiest {ratio:.3f}x the mean"
        steps = axes.stairs(view.total_rank_load[layer], edges, fill=index == 0, color=colour, label=label)
        steps.set(alpha=0.55) if index == 0 else steps.set(linewidth=2.0)
    bound = views[-1].bound.value[layer] * views[-1].placement.topology.relative_speed
    axes.stairs(bound, edges, baseline=None, color=BOUND_COLOUR, linestyle="--", label="proven lower bound")
    for first in topology.node_first_rank[1:-1]:
        axes.axvline(first - 0.5, color="black", linewidth=0.6, alpha=0.4)
    whole_ticks(axes.xaxis, topology.num_ranks)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rank" + (" (lines: nodes)" if topology.num_nodes > 1 else ""))
    axes.set_ylabel("tokens")
    axes.set_title(f"Load of every rank, {layer_name(shape, layer)}")
    _scale_tokens(axes, float(views[0].total_rank_load[layer].mean()))
    legend_above(axes)
    return axes


def _scale_tokens(axes: "Axes", mean: float) -> None:
    """Label tokens on the left axis in thousands or millions, and multiples of the mean on the right axis."""
    from matplotlib.ticker import EngFormatter

    axes.yaxis.set_major_formatter(EngFormatter())
    if mean > 0:
        right = axes.secondary_yaxis("right", functions=(partial(np.multiply, 1 / mean), partial(np.multiply, mean)))
        right.set_ylabel("over the mean rank (x)")
