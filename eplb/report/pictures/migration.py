"""Draws how many replicas each rank sends to each other rank, as a heatmap."""

from typing import TYPE_CHECKING

import numpy as np

from eplb.core.migration import Migration
from eplb.report.cell_values import write_values
from eplb.report.colours import amounts
from eplb.report.style import axes_or_new, colour_bar, column_borders, figure_text, row_borders, square_size, title
from eplb.report.ticks import rank_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_FEW = 8  # up to this many replicas every count has a tick


def draw_migration(migration: Migration, *, name: str = "", ax: "Axes | None" = None) -> "Axes":
    """Draw replicas sent from each rank (row) to each other rank (column), over all layers; grey: none."""
    topology = migration.topology
    width, height = square_size(topology.num_ranks, more_lines=2)
    axes = axes_or_new(ax, width=width, height=height)
    replicas = migration.link_copies
    shown = np.where(replicas > 0, replicas, np.nan)
    image = axes.imshow(shown, cmap=amounts(), vmin=0, vmax=max(1.0, float(replicas.max())), interpolation="nearest")
    most = round(float(replicas.max()))
    colour_bar(
        image, "replicas, all layers (grey: none)", ticks=range(most + 1) if most <= _FEW else None, numbers="{x:g}"
    )
    write_values(image, [["" if np.isnan(count) else f"{count:.0f}" for count in row] for row in shown])
    edges = topology.node_first_rank[1:-1]
    column_borders(axes, edges)
    row_borders(axes, edges)
    rank_ticks(axes.xaxis, topology, "to rank")
    rank_ticks(axes.yaxis, topology, "from rank")
    goal = f" to {figure_text(name)}" if name else ""
    fraction = 100 * migration.moved_fraction
    title(axes, f"Migration{goal}:\n{migration.moved_copies:,} replicas, {fraction:.1f} % of the slots")
    return axes
