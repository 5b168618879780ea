"""Draws how many token copies each rank sends to each other rank, as a heatmap."""

from typing import TYPE_CHECKING

import numpy as np

from eplb.evaluation.traffic import Traffic
from eplb.report.style import axes_or_new, colour_bar, colour_map, column_borders, figure_text, row_borders, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_traffic(traffic: Traffic, *, name: str = "", most: float | None = None, ax: "Axes | None" = None) -> "Axes":
    """Draw the tokens that each rank (row) sends to each rank (column), in the mean layer; grey: none.

    The diagonal holds the tokens that stay on their rank. `most` is the end of the colour scale, for pictures to be
    compared.
    """
    axes = axes_or_new(ax, width=7.2, height=6.0)
    topology, tokens = traffic.topology, traffic.rank_matrix / traffic.num_layers
    shown = np.where(tokens > 0, tokens, np.nan)
    image = axes.imshow(
        shown, cmap=colour_map("viridis"), vmin=0, vmax=max(1e-9, float(tokens.max()) if most is None else most),
        interpolation="nearest",
    )  # fmt: skip
    colour_bar(image, "tokens of a layer (grey: none)", numbers="{x:,.0f}")
    edges = np.flatnonzero(np.diff(topology.node_of_rank)) + 1
    column_borders(axes, edges, "black")
    row_borders(axes, edges, "black")
    whole_ticks(axes.xaxis, topology.num_ranks)
    whole_ticks(axes.yaxis, topology.num_ranks)
    axes.set_xlabel("to rank" + (" (lines: nodes)" if topology.num_nodes > 1 else ""))
    axes.set_ylabel("from rank" + ("" if traffic.known_sources else " (sources unknown: alike)"))
    spread = traffic.spread
    nodes = f", {spread.nodes_per_token.mean():.2f} nodes" if topology.num_nodes > 1 else ""
    plan = f", {figure_text(name)}" if name else ""
    axes.set_title(f"Dispatch{plan}:\na token visits {spread.ranks_per_token.mean():.2f} ranks{nodes}")
    return axes
