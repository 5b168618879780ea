"""Draws the load of every rank in one layer, plan by plan."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from eplb.report.colours import BOUND_COLOUR, plan_style
from eplb.report.plan_view import PlanView
from eplb.report.style import axes_or_new, figure_texts, from_zero, legend_above, title
from eplb.report.summary_text import layer_name
from eplb.report.ticks import rank_ticks
from eplb_traces import ModelShape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR = 0.84
"""Width of a bar over the distance of two ranks."""


def draw_rank_load(views: Sequence[PlanView], layer: int, shape: ModelShape, *, ax: "Axes | None" = None) -> "Axes":
    """Draw the tokens of each rank, summed over windows: bars for the first plan, a dash a rank for each other plan.

    With several other plans, their dashes stand beside each other in the width of a bar. The bound is the lower bound
    on the busiest rank of the last plan. If ranks differ in speed, it is drawn for each rank.
    """
    topology = views[0].placement.topology
    axes = axes_or_new(ax, width=min(14.0, max(9.0, 2.0 + 0.2 * topology.num_ranks)))
    ranks, names = np.arange(topology.num_ranks), figure_texts([view.name for view in views])
    share = _BAR / max(1, len(views) - 1)
    for index, (view, name) in enumerate(zip(views, names, strict=True)):
        colour, _ = plan_style(index)
        ratio, tokens = view.evaluation.max_over_mean_of_total[layer], view.total_rank_load[layer]
        label = f"{name}: busiest {ratio:.3f}x the mean"
        if index == 0:
            axes.bar(ranks, tokens, _BAR, color=colour, alpha=0.6, label=label)
        else:
            left = ranks - _BAR / 2 + share * (index - 1)
            axes.hlines(tokens, left, left + share, color=colour, linewidth=2.5, label=label)
    bound = views[-1].bound.value[layer] * views[-1].placement.topology.relative_speed
    axes.hlines(
        bound, ranks - 0.5, ranks + 0.5, color=BOUND_COLOUR, linestyle=(0, (2, 1.5)), linewidth=1.2,
        label="proven lower bound",
    )  # fmt: skip
    for first in topology.node_first_rank[1:-1]:
        axes.axvline(first - 0.5, color="black", linewidth=0.6, alpha=0.4)
    rank_ticks(axes.xaxis, topology)
    axes.set_xlim(-0.5, topology.num_ranks - 0.5)
    from_zero(axes)
    axes.set_ylabel("tokens")
    title(axes, f"Load of every rank, {layer_name(shape, layer)}")
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
