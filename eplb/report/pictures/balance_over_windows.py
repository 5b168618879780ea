"""Draws max/mean rank load in every window, plan by plan."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eplb.errors import InputError
from eplb.evaluation.metrics import mean_of_known
from eplb.report.colours import plan_style
from eplb.report.plan_view import PlanView
from eplb.report.style import axes_or_new, figure_texts, from_zero, legend_above, title
from eplb.report.ticks import id_ticks
from eplb_traces import ExpertLoad

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_MOST_BANDS = 2


def draw_balance_over_windows(views: Sequence[PlanView], windows: ExpertLoad, *, ax: "Axes | None" = None) -> "Axes":
    """Draw the mean over layers as a line; of one or two plans also the range from the best to the worst layer, a band.

    Raises
    ------
    InputError
        If a plan was not evaluated window by window.
    """
    axes = axes_or_new(ax)
    number = np.arange(windows.num_windows)
    bands = len(views) <= _MOST_BANDS
    for index, (view, name) in enumerate(zip(views, figure_texts([view.name for view in views]), strict=True)):
        by_window = view.balance_by_window
        if by_window is None:
            raise InputError(f"plan {view.name}: expected its balance in {windows.num_windows} windows")
        colour, _ = plan_style(index)
        mean = mean_of_known(by_window.T)
        label = f"{name}: {mean_of_known(mean):.3f}x on average"
        axes.plot(number, mean, color=colour, linewidth=1.8, label=label)
        if bands:
            layers = np.ma.masked_invalid(by_window)
            axes.fill_between(number, layers.min(axis=1), layers.max(axis=1), color=colour, alpha=0.15, linewidth=0)
    axes.set_xlim(0, max(1, windows.num_windows - 1))
    id_ticks(axes.xaxis, range(windows.num_windows))
    from_zero(axes)
    axes.grid(axis="y", alpha=0.3)
    axes.set_xlabel(_window_label(windows))
    axes.set_ylabel("max/mean rank load")
    title(axes, f"Balance over time: mean of layers{' (line), best to worst layer (band)' if bands else ''}")
    legend_above(axes)
    return axes


def _window_label(windows: ExpertLoad) -> str:
    if not windows.labels:
        return "window"
    return f"window (0: {windows.labels[0]}; {windows.num_windows - 1}: {windows.labels[-1]})"
