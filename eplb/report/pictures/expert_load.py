"""Draws the load of every expert in every layer, as a heatmap."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eplb.report.cell_values import write_values
from eplb.report.colours import around_one
from eplb.report.style import axes_or_new, colour_bar, column_borders, factor_texts, factor_ticks, table_size, title
from eplb.report.ticks import id_ticks, layer_ticks
from eplb_traces import ExpertLoad

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHARE_SHOWN = 0.998
"""Share of the experts that the colours distinguish; the others have the colours of the ends."""
_MOST_POWERS = 4


def draw_expert_load(load: ExpertLoad, *, ax: "Axes | None" = None) -> "Axes":
    """Draw tokens of each expert over the mean of its layer, summed over windows; layers without tokens are grey.

    The scale is logarithmic, neutral at the mean, and ends at most at 1/16 and 16. Up to 64 experts have their value in
    the cell.
    """
    width, height = table_size(load.num_layers, load.num_experts)
    axes = axes_or_new(ax, width=width, height=height)
    mean = load.total.mean(axis=1, keepdims=True)
    ratio = np.divide(load.total, mean, out=np.full_like(load.total, np.nan), where=mean > 0)
    most = 2.0 ** _powers(ratio)
    # Masked, because a log scale would take the colour of no value for an expert without tokens.
    shown = np.ma.masked_invalid(np.where(ratio == 0, np.finfo(np.float64).tiny, ratio))
    image = axes.imshow(
        shown, aspect="auto", cmap=around_one(), norm="log", vmin=1 / most, vmax=most, interpolation="nearest"
    )
    highest = float(np.nanmax(ratio)) if load.total.any() else 1.0
    over = f" (to {highest:.1f})" if highest > most else ""
    colour_bar(image, f"tokens over layer mean{over}", ends="both", ticks=factor_ticks(most), numbers="{x:g}")
    write_values(image, factor_texts(ratio))
    groups = load.shape.num_expert_groups
    column_borders(axes, np.arange(1, groups) * load.shape.experts_per_group)
    id_ticks(axes.xaxis, range(load.num_experts))
    layer_ticks(axes.yaxis, load.num_layers, load.shape.moe_layer_ids)
    axes.set_xlabel("logical expert" + (" (lines: expert groups)" if groups > 1 else ""))
    title(axes, "Load of every expert")
    return axes


def _powers(ratio: NDArray[np.float64]) -> int:
    """Powers of two from one to the ends of the scale: 1 to 4."""
    sizes = np.sort(np.abs(np.log2(ratio[ratio > 0])))
    size = float(sizes[int(_SHARE_SHOWN * (sizes.size - 1))]) if sizes.size else 0.0
    return min(_MOST_POWERS, max(1, int(np.ceil(size))))
