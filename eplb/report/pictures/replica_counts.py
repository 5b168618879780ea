"""Draws the number of replicas of every expert in every layer, as a heatmap."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eplb.core.placement import Placement
from eplb.report.cell_values import write_values
from eplb.report.colours import REPLICA_COLOURS, replica_colours
from eplb.report.style import axes_or_new, colour_bar, column_borders, figure_text, table_size, title
from eplb.report.ticks import id_ticks, layer_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_replica_counts(
    placement: Placement,
    *,
    num_expert_groups: int = 1,
    layer_ids: Sequence[int] | None = None,
    name: str = "",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the replicas of every expert, one colour per number; six or more share the last colour.

    `layer_ids` are the numbers of the layers in the model, where they are known.
    """
    count = placement.logical_replica_count
    width, height = table_size(placement.num_layers, placement.num_experts)
    axes = axes_or_new(ax, width=width, height=height)
    most = int(count.max())
    shown = min(most, len(REPLICA_COLOURS))
    image = axes.imshow(
        count, aspect="auto", cmap=replica_colours(shown), vmin=0.5, vmax=shown + 0.5, interpolation="nearest"
    )
    over = f" (to {most})" if most > shown else ""
    ends = "max" if over else "neither"
    colour_bar(image, f"replicas of an expert{over}", ticks=range(1, shown + 1), ends=ends, numbers="{x:g}")
    write_values(image, [[str(replicas) for replicas in of_layer] for of_layer in count.tolist()])
    column_borders(axes, np.arange(1, num_expert_groups) * (placement.num_experts // num_expert_groups))
    id_ticks(axes.xaxis, range(placement.num_experts))
    layer_ticks(axes.yaxis, placement.num_layers, layer_ids)
    axes.set_xlabel("logical expert" + (" (lines: expert groups)" if num_expert_groups > 1 else ""))
    title(axes, " ".join(filter(None, ("Replicas of every expert", name and f"in {figure_text(name)}"))))
    return axes
