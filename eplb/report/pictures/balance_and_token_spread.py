"""Draws balance against token spread: max/mean rank load over the ranks that a token is sent to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eplb.errors import InputError
from eplb.evaluation.metrics import mean_of_known
from eplb.report.plan_view import PlanView
from eplb.report.style import axes_or_new, figure_text, legend_above, plan_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_balance_and_token_spread(views: Sequence[PlanView], *, ax: "Axes | None" = None) -> "Axes":
    """Draw each plan as a point (mean of layers) and its layers as small points; the line joins undominated plans.

    Raises
    ------
    InputError
        If a plan was evaluated without a trace.
    """
    axes = axes_or_new(ax, width=7.2, height=5.0)
    points: list[tuple[float, float]] = []
    for index, view in enumerate(views):
        if view.spread is None:
            raise InputError(f"plan {view.name}: expected the spread of its tokens, which requires a token-level trace")
        colour, marker = plan_style(index)
        ranks, balance = view.spread.ranks_per_token, view.evaluation.max_over_mean
        axes.plot(ranks, balance, linestyle="", marker=marker, markersize=4, color=colour, alpha=0.35)
        points.append((float(ranks.mean()), float(mean_of_known(balance))))
        nodes = f", {view.spread.nodes_per_token.mean():.2f} nodes" if view.placement.topology.num_nodes > 1 else ""
        axes.plot(
            *points[-1], linestyle="", marker=marker, markersize=11, color=colour, markeredgecolor="black",
            label=f"{figure_text(view.name)}: {points[-1][0]:.2f} ranks{nodes}, {points[-1][1]:.3f}x",
        )  # fmt: skip
    best = undominated(points)
    axes.plot([x for x, _ in best], [y for _, y in best], color="black", linewidth=0.8, zorder=0)
    axes.grid(alpha=0.3)
    axes.set_xlabel("ranks per token")
    axes.set_ylabel("max/mean rank load")
    axes.set_title("Balance and token spread: lower left is better\n(large: mean of layers; small: single layers)")
    legend_above(axes)
    return axes


def undominated(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front, sorted by the first coordinate: points that no other point beats in both coordinates."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(set(points)):
        if not best or y < best[-1][1]:
            best.append((x, y))
    return best
