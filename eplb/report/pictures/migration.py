"""Draws how many replicas each rank sends to each other rank, as a heatmap."""

from typing import TYPE_CHECKING

import numpy as np

from eplb.core.migration import Migration
from eplb.report.style import (
    axes_or_new,
    colour_bar,
    colour_map,
    column_borders,
    figure_text,
    row_borders,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_FEW = 8  # up to this many replicas every count has a tick


def draw_migration(migration: Migration, *, name: str = "", ax: "Axes | None" = None) -> "Axes":
    """Draw replicas sent from each rank (row) to each other rank (column), over all layers; grey: none."""
    axes = axes_or_new(ax, width=7.2, height=6.0)
    replicas = migration.link_copies
    topology = migration.topology
    shown = np.where(replicas > 0, replicas, np.nan)
    image = axes.imshow(shown, cmap=colour_map("viridis"), vmin=1, vmax=max(2.0, float(replicas.max())))
    most = round(float(replicas.max()))
    colour_bar(image, "replicas, all layers (grey: none)", ticks=range(1, most + 1) if most <= _FEW else None)
    edges = topology.node_first_rank[1:-1]
    column_borders(axes, edges, "black")
    row_borders(axes, edges, "black")
    whole_ticks(axes.xaxis, topology.num_ranks)
    whole_ticks(axes.yaxis, topology.num_ranks)
    axes.set_xlabel("to rank" + (" (lines: nodes)" if topology.num_nodes > 1 else ""))
    axes.set_ylabel("from rank")
    goal = f" to {figure_text(name)}" if name else ""
    fraction = 100 * migration.moved_fraction
    axes.set_title(f"Migration{goal}:\n{migration.moved_copies:,} replicas, {fraction:.1f} % of the slots")
    return axes
