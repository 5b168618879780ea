"""Draws the number of replicas of every expert in every layer, as a heatmap."""

from typing import TYPE_CHECKING

import numpy as np

from eplb.core.placement import Placement
from eplb.report.style import axes_or_new, colour_bar, colour_map, column_borders, figure_text, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_COLOURS = 8


def draw_replica_counts(
    placement: Placement, *, num_expert_groups: int = 1, name: str = "", ax: "Axes | None" = None
) -> "Axes":
    """Draw the replicas of every expert, one colour per number; eight or more share the last colour."""
    count = placement.logical_replica_count
    axes = axes_or_new(ax, height=min(6.2, 2.6 + 0.1 * placement.num_layers))
    most = int(count.max())
    shown = min(most, _MOST_COLOURS)
    image = axes.imshow(
        count, aspect="auto", cmap=colour_map("cividis", shown), vmin=0.5, vmax=shown + 0.5,
        interpolation="nearest",
    )  # fmt: skip
    ends = "max" if most > shown else "neither"
    over = f" (to {most})" if most > shown else ""
    colour_bar(image, f"replicas of an expert{over}", ticks=range(1, shown + 1), ends=ends)
    column_borders(axes, np.arange(1, num_expert_groups) * (placement.num_experts // num_expert_groups))
    whole_ticks(axes.xaxis, placement.num_experts)
    whole_ticks(axes.yaxis, placement.num_layers)
    axes.set_xlabel("logical expert" + (" (lines: expert groups)" if num_expert_groups > 1 else ""))
    axes.set_ylabel("layer")
    axes.set_title(" ".join(filter(None, ("Replicas of every expert", name and f"in {figure_text(name)}"))))
    return axes
