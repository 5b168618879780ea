"""Draws tokens/s per GPU over the number of GPUs, a line for each placement, with the knee and the recommended row."""

from typing import TYPE_CHECKING

from eplb.planning.advice import Advice, Deployment
from eplb.report.colours import BOUND_COLOUR, plan_style
from eplb.report.style import axes_or_new, from_zero, legend_above, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_advice(advice: Advice, *, ax: "Axes | None" = None) -> "Axes":
    """Draw the best redundancy and dispatch of each placement; hollow: does not fit, or misses the SLO."""
    axes = axes_or_new(ax, width=8.0, height=5.0)
    for index, strategy in enumerate(dict.fromkeys(row.strategy for row in advice.deployments)):
        colour, marker = plan_style(index)
        rows = _best_of_each_size(advice, strategy)
        axes.plot([row.num_ranks for row in rows], [row.tokens_per_s for row in rows], color=colour, zorder=1)
        for eligible, face in ((True, colour), (False, "white")):
            shown = [row for row in rows if row.eligible is eligible]
            axes.scatter(
                [row.num_ranks for row in shown],
                [row.tokens_per_s for row in shown],
                marker=marker,
                facecolors=face,
                edgecolors=colour,
                zorder=2,
                label=strategy if eligible or not any(row.eligible for row in rows) else None,
            )
    _mark(axes, advice)
    sizes = sorted({row.num_ranks for row in advice.deployments})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    from_zero(axes)
    axes.grid(axis="y", alpha=0.3)
    axes.set_xlabel("GPUs of the expert-parallel group; hollow: does not fit, or misses the SLO")
    axes.set_ylabel("tokens/s per GPU, MoE layers alone")
    title(axes, f"Predicted: {advice.cost.title}")
    legend_above(axes)
    return axes


def _best_of_each_size(advice: Advice, strategy: str) -> list[Deployment]:
    best: dict[int, Deployment] = {}
    for row in advice.deployments:
        if row.strategy == strategy and (row.num_ranks not in best or _order(row) > _order(best[row.num_ranks])):
            best[row.num_ranks] = row
    return [best[ranks] for ranks in sorted(best)]


def _order(row: Deployment) -> tuple[bool, float]:
    """What fits and meets the SLO comes first, then the fastest."""
    return row.eligible, row.tokens_per_s


def _mark(axes: "Axes", advice: Advice) -> None:
    row = advice.recommended
    if row is None:
        return
    axes.axvline(row.num_ranks, color=BOUND_COLOUR, linestyle=":", linewidth=1, label="knee")
    axes.scatter(
        [row.num_ranks], [row.tokens_per_s], s=220, marker="o", facecolors="none", edgecolors=BOUND_COLOUR,
        label="recommended",
    )  # fmt: skip
