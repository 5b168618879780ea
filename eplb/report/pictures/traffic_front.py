"""Draws the front between balance and traffic: rank load against nodes a token, one point a load cap."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from eplb.planning.traffic_front import FrontPoint
from eplb.report.colours import plan_style
from eplb.report.style import axes_or_new, legend_above, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BEST: Final = 1.0
_NEAR: Final = 0.05
"""Share of the axes within which points have one label together."""


def draw_traffic_front(points: Sequence[FrontPoint], *, ax: "Axes | None" = None) -> "Axes":
    """Draw nodes a token over busiest / mean rank: on the requests fitted, and on those held out where there are any.

    On a single node, ranks a token take the place of nodes. The first point, marked "greedy", balances alone. Both axes
    begin at 1, the best value.
    """
    axes = axes_or_new(ax, width=7.2, height=5.0)
    many = points[0].plan.placement.topology.num_nodes > 1
    names = ["greedy" if point.load_cap is None else f"cap {point.load_cap:g}" for point in points]
    fitted = [(point.max_over_mean, point.nodes_per_token if many else point.ranks_per_token) for point in points]
    later = {
        name: (of.max_over_mean, of.nodes_per_token if many else of.ranks_per_token)
        for name, of in zip(names, (point.held_out for point in points), strict=True)
        if of is not None
    }
    colour, marker = plan_style(1)
    axes.plot(*zip(*fitted, strict=True), marker=marker, color=colour, label="requests planned for", clip_on=False)
    if later:
        colour, marker = plan_style(5)
        axes.plot(
            *zip(*later.values(), strict=True), marker=marker, color=colour, linestyle="", label="held-out requests"
        )
    shown = np.array([*fitted, *later.values()])
    axes.set_xlim(_BEST, _BEST + 1.15 * max(0.01, shown[:, 0].max() - _BEST))
    axes.set_ylim(_BEST, _BEST + 1.08 * max(0.01, shown[:, 1].max() - _BEST))
    _label(axes, names, fitted)
    _label(axes, list(later), list(later.values()))
    axes.grid(alpha=0.3)
    axes.set_xlabel("busiest / mean rank load, mean of layers")
    axes.set_ylabel("nodes a token" if many else "ranks a token")
    title(axes, "Balance and traffic: lower left is better")
    legend_above(axes)
    return axes


def _label(axes: "Axes", names: Sequence[str], places: Sequence[tuple[float, float]]) -> None:
    """Name the points; points that are near each other have one label together."""
    extent = np.array([np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())])
    groups: list[list[int]] = []
    for index, place in enumerate(places):
        near = [of for of in groups if (np.abs(np.subtract(place, places[of[0]])) < _NEAR * extent).all()]
        if near:
            near[0].append(index)
        else:
            groups.append([index])
    for turn, of in enumerate(groups):
        offset = (6, 4) if turn % 2 == 0 else (2, -12)  # in turn above and below
        text = ", ".join(names[index] for index in of).replace(", cap ", ", ")
        axes.annotate(text, places[of[0]], textcoords="offset points", xytext=offset, fontsize="small")
