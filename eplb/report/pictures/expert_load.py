"""Draws the load of every expert in every layer, as a heatmap."""

from typing import TYPE_CHECKING

import numpy as np

from eplb.report.style import axes_or_new, colour_bar, colour_map, column_borders, whole_ticks
from eplb_traces import ExpertLoad

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CLIP_PERCENTILE = 99.5


def draw_expert_load(load: ExpertLoad, *, ax: "Axes | None" = None) -> "Axes":
    """Draw tokens of each expert over the mean of its layer, summed over windows; layers without tokens are grey.

    The scale ends at the 99.5th percentile, so that a few large values do not hide the differences of the others.
    """
    axes = axes_or_new(ax, height=min(6.2, 2.6 + 0.1 * load.num_layers))
    mean = load.total.mean(axis=1, keepdims=True)
    ratio = np.divide(load.total, mean, out=np.full_like(load.total, np.nan), where=mean > 0)
    highest = float(np.nanmax(ratio)) if load.total.any() else 1.0
    ceiling = max(2.0, float(np.nanpercentile(ratio, _CLIP_PERCENTILE))) if load.total.any() else 1.0
    image = axes.imshow(ratio, aspect="auto", cmap=colour_map("cividis"), vmin=0, vmax=ceiling)
    over = f" (to {highest:.1f})" if highest > ceiling else ""
    colour_bar(image, f"tokens over layer mean{over}", ends="max" if over else "neither")
    column_borders(axes, np.arange(1, load.shape.num_expert_groups) * load.shape.experts_per_group)
    whole_ticks(axes.xaxis, load.num_experts)
    whole_ticks(axes.yaxis, load.num_layers)
    axes.set_xlabel("logical expert" + (" (lines: expert groups)" if load.shape.num_expert_groups > 1 else ""))
    axes.set_ylabel("layer")
    axes.set_title("Load of every expert")
    return axes
