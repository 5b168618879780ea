"""Draws how many token copies each rank sends to each other rank, as a heatmap."""

from typing import TYPE_CHECKING

import numpy as np

from eplb.evaluation.traffic import Traffic
from eplb.report.cell_values import write_values
from eplb.report.colours import amounts
from eplb.report.style import axes_or_new, colour_bar, column_borders, figure_text, row_borders, square_size, title
from eplb.report.ticks import rank_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_traffic(traffic: Traffic, *, name: str = "", most: float | None = None, ax: "Axes | None" = None) -> "Axes":
    """Draw the tokens that each rank (row) sends to each rank (column), in the mean layer; grey: none.

    The diagonal holds the tokens that stay on their rank. `most` is the end of the colour scale, for pictures to be
    compared.
    """
    width, height = square_size(traffic.topology.num_ranks, more_lines=2)
    axes = axes_or_new(ax, width=width, height=height)
    topology, tokens = traffic.topology, traffic.rank_matrix / traffic.num_layers
    shown = np.where(tokens > 0, tokens, np.nan)
    image = axes.imshow(
        shown, cmap=amounts(), vmin=0, vmax=max(1e-9, float(tokens.max()) if most is None else most),
        interpolation="nearest",
    )  # fmt: skip
    colour_bar(image, "tokens of a layer (grey: none)", numbers="{x:,.0f}")
    write_values(image, [["" if np.isnan(count) else f"{count:,.0f}" for count in row] for row in shown])
    edges = topology.node_first_rank[1:-1]
    column_borders(axes, edges)
    row_borders(axes, edges)
    rank_ticks(axes.xaxis, topology, "to rank")
    rank_ticks(axes.yaxis, topology, "from rank" + ("" if traffic.known_sources else " (sources unknown: alike)"))
    spread = traffic.spread
    nodes = f", {spread.nodes_per_token.mean():.2f} nodes" if topology.num_nodes > 1 else ""
    plan = f", {figure_text(name)}" if name else ""
    title(axes, f"Dispatch{plan}:\na token visits {spread.ranks_per_token.mean():.2f} ranks{nodes}")
    return axes
