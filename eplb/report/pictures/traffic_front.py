"""Draws the front between balance and traffic: rank load against nodes a token, one point a load cap."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eplb.planning.traffic_front import FrontPoint
from eplb.report.style import axes_or_new, legend_above, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_traffic_front(points: Sequence[FrontPoint], *, ax: "Axes | None" = None) -> "Axes":
    """Draw nodes a token over busiest / mean rank: on the requests fitted, and on those held out where there are any.

    On a single node, ranks a token take the place of nodes. The first point, marked "greedy", balances alone.
    """
    axes = axes_or_new(ax, width=7.2, height=5.0)
    many = points[0].plan.placement.topology.num_nodes > 1
    fitted = [(point.max_over_mean, point.nodes_per_token if many else point.ranks_per_token) for point in points]
    axes.plot(*zip(*fitted, strict=True), marker="o", label="requests planned for")
    for point, place in zip(points, fitted, strict=True):
        name = "greedy" if point.load_cap is None else f"cap {point.load_cap:g}"
        axes.annotate(name, place, textcoords="offset points", xytext=(6, 4), fontsize="small")
    later = [point.held_out for point in points if point.held_out is not None]
    if later:
        values = [(of.max_over_mean, of.nodes_per_token if many else of.ranks_per_token) for of in later]
        axes.plot(*zip(*values, strict=True), marker="s", linestyle="--", label="held-out requests")
    axes.grid(alpha=0.3)
    axes.set_xlabel("busiest / mean rank load, mean of layers")
    axes.set_ylabel("nodes a token" if many else "ranks a token")
    title(axes, "Balance and traffic: lower left is better")
    legend_above(axes)
    return axes
