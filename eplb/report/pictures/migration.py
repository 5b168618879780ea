"""Which rank sends how many expert copies to which, as a heatmap."""

from typing import TYPE_CHECKING

import numpy as np

from eplb.core.migration import Migration
from eplb.report.style import (
    axes_or_new,
    colour_bar,
    colour_map,
    column_borders,
    in_words,
    row_borders,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_FEW = 8  # copies that are named one by one


def draw_migration(migration: Migration, *, name: str = "", ax: "Axes | None" = None) -> "Axes":
    """Draw copies from each rank (row) to each other rank (column), over all layers; grey where nothing goes."""
    axes = axes_or_new(ax, width=7.2, height=6.0)
    copies = migration.link_bytes / migration.expert_bytes
    topology = migration.topology
    shown = np.where(copies > 0, copies, np.nan)
    image = axes.imshow(shown, cmap=colour_map("viridis"), vmin=1, vmax=max(2.0, float(copies.max())))
    most = round(float(copies.max()))
    colour_bar(image, "expert copies, all layers (grey: none)", ticks=range(1, most + 1) if most <= _FEW else None)
    edges = np.arange(1, topology.num_nodes) * topology.ranks_per_node
    column_borders(axes, edges, "black")
    row_borders(axes, edges, "black")
    whole_ticks(axes.xaxis, topology.num_ranks)
    whole_ticks(axes.yaxis, topology.num_ranks)
    axes.set_xlabel("to rank" + (" (lines: nodes)" if topology.num_nodes > 1 else ""))
    axes.set_ylabel("from rank")
    goal = f" on the way to {in_words(name)}" if name else ""
    fraction = 100 * migration.moved_fraction
    axes.set_title(f"What moves{goal}:\n{migration.moved_copies:,} copies, {fraction:.1f} % of the slots")
    return axes
