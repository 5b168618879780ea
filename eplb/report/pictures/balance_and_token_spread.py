"""Draws balance against token spread: max/mean rank load over the ranks that a token is sent to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eplb.errors import InputError
from eplb.evaluation.metrics import mean_of_known
from eplb.report.colours import plan_style
from eplb.report.plan_view import PlanView
from eplb.report.style import axes_or_new, figure_texts, legend_above, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_BEST = 1.0
_ROOM = 0.04


def draw_balance_and_token_spread(views: Sequence[PlanView], *, ax: "Axes | None" = None) -> "Axes":
    """Draw each plan as a point (mean of layers) and its layers as small points; the steps are the Pareto front.

    Both axes begin at 1, the best value: one rank per token, equal loads.

    Raises
    ------
    InputError
        If a plan was evaluated without a trace.
    """
    axes = axes_or_new(ax, width=7.2, height=5.0)
    points: list[tuple[float, float]] = []
    names = figure_texts([view.name for view in views])
    for index, (view, name) in enumerate(zip(views, names, strict=True)):
        if view.spread is None:
            raise InputError(f"plan {view.name}: expected the spread of its tokens, which requires a token-level trace")
        colour, marker = plan_style(index)
        ranks, balance = view.spread.ranks_per_token, view.evaluation.max_over_mean
        axes.plot(ranks, balance, linestyle="", marker=marker, markersize=4, color=colour, alpha=0.35, clip_on=False)
        points.append((float(ranks.mean()), float(mean_of_known(balance))))
        nodes = f", {view.spread.nodes_per_token.mean():.2f} nodes" if view.placement.topology.num_nodes > 1 else ""
        axes.plot(
            *points[-1], linestyle="", marker=marker, markersize=11, color=colour, markeredgecolor="black",
            clip_on=False, label=f"{name}: {points[-1][0]:.2f} ranks{nodes}, {points[-1][1]:.3f}x",
        )  # fmt: skip
    best = undominated(points)
    axes.plot([x for x, _ in best], [y for _, y in best], color="black", linewidth=0.8, zorder=0,
              drawstyle="steps-post")  # fmt: skip
    for low_high, limit in ((axes.get_xlim(), axes.set_xlim), (axes.get_ylim(), axes.set_ylim)):
        limit(_BEST, low_high[1] + _ROOM * (low_high[1] - _BEST))
    axes.grid(alpha=0.3)
    axes.set_xlabel("ranks per token")
    axes.set_ylabel("max/mean rank load")
    title(axes, "Balance and token spread: lower left is better\n(large: mean of layers; small: single layers)")
    legend_above(axes)
    return axes


def undominated(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front, sorted by the first coordinate: points that no other point beats in both coordinates."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(set(points)):
        if not best or y < best[-1][1]:
            best.append((x, y))
    return best
