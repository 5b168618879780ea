"""Draws max/mean rank load of each part of the traffic, a domain or a file, plan by plan."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from eplb.errors import InputError
from eplb.evaluation.metrics import mean_of_known
from eplb.report.colours import plan_style
from eplb.report.plan_view import PlanView
from eplb.report.style import axes_or_new, figure_texts, legend_above, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BARS: Final = 0.84
"""Of the room of a part."""
_BAR_INCHES: Final = 0.2


def draw_balance_by_part(views: Sequence[PlanView], names: Sequence[str], *, ax: "Axes | None" = None) -> "Axes":
    """Draw one bar for each part and plan: max/mean rank load of the part alone, mean of layers.

    Parameters
    ----------
    views
        Plans that were evaluated part by part.
    names
        Of the parts.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    InputError
        If a plan was not evaluated part by part.
    """
    axes = axes_or_new(ax, height=1.6 + _BAR_INCHES * len(names) * (len(views) + 0.6))
    places, thick = np.arange(len(names)), _BARS / len(views)
    for index, (view, name) in enumerate(zip(views, figure_texts([view.name for view in views]), strict=True)):
        if view.balance_by_part is None or len(view.balance_by_part) != len(names):
            raise InputError(f"plan {view.name}: expected its balance in {len(names)} parts")
        mean = mean_of_known(view.balance_by_part.T)
        centres = places - _BARS / 2 + thick * (index + 0.5)
        bars = axes.barh(centres, mean, 0.9 * thick, color=plan_style(index)[0], label=name)
        axes.bar_label(bars, [f"{value:.2f}x" for value in mean], padding=3, fontsize=8)
    axes.set_yticks(places, figure_texts(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1.1 * axes.get_xlim()[1])
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_xlabel("max/mean rank load, mean of layers")
    axes.set_ylabel("part of the traffic")
    title(axes, "Balance of each part of the traffic alone; 1 is perfect")
    legend_above(axes)
    return axes
