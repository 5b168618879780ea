"""Labels the axes of figures: ids, layers with their numbers in the model, nodes of ranks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

import numpy as np

from eplb.core.topology import Topology

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

POINTS_PER_INCH: Final = 72.0
_STEPS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_SIZES: Final = (10.0, 8.0)
"""Font sizes to try for a label on every tick."""
_LETTER: Final = 0.64
"""Width of a digit over its font size."""
_GAP: Final = 3.0
"""Points between two labels."""
_NODE_SIZE: Final = 9.0
_BESIDE, _ABOVE = 1.5, 0.9
"""Inches that labels and a colour bar take beside the axes, and labels and a title above and below."""
_AFTER_LAYOUT: Final = 0.6
"""Share of the area of the axes of others that their layout leaves."""


def axes_inches(axes: "Axes") -> tuple[float, float]:
    """Width and height of the area of the axes, estimated before the layout makes room for labels."""
    figure = cast("Figure", axes.get_figure(root=True))
    width, height = figure.get_size_inches()
    grid = axes.get_gridspec()
    if is_our_figure(axes) and grid is not None:
        width, height = width / grid.ncols, height / grid.nrows
        return float(max(width / 2, width - _BESIDE)), float(max(height / 2, height - _ABOVE))
    place, share = axes.get_position(), 1.0 if figure.get_layout_engine() is None else _AFTER_LAYOUT
    return float(width * place.width * share), float(height * place.height * share)


def is_our_figure(axes: "Axes") -> bool:
    """Whether the axes are those of a figure that `eplb.report.style.axes_or_new` made."""
    from eplb.report.notebook_axes import NotebookAxes

    return isinstance(axes, NotebookAxes)


def id_ticks(axis: "Axis", names: Sequence[object]) -> None:
    """Label as many of the ids of an axis as fit: all of them, or every second, fourth, eighth, ...

    Parameters
    ----------
    axis
        The x or y axis of the figure, with id i at i.
    names
        What stands at each id.
    """
    texts = [str(name) for name in names]
    room = _points(axis) / len(texts)
    step, size = next(
        ((step, size) for step in _STEPS for size in _SIZES if _along(axis, texts, size) <= room * step),
        (len(texts), _SIZES[-1]),
    )
    axis.set_ticks(np.arange(0, len(texts), step), texts[::step])
    axis.set_tick_params(labelsize=size)


def _is_x(axis: "Axis") -> bool:
    from matplotlib.axis import XAxis

    return isinstance(axis, XAxis)


def _along(axis: "Axis", texts: Sequence[str], size: float) -> float:
    """Points that the longest label takes along the axis, with a gap."""
    return _GAP + (size * _LETTER * max(map(len, texts)) if _is_x(axis) else size)


def _points(axis: "Axis") -> float:
    width, height = axes_inches(axis.axes)
    return POINTS_PER_INCH * (width if _is_x(axis) else height)


def layer_ticks(axis: "Axis", num_layers: int, layer_ids: Sequence[int] | None) -> None:
    """Label layers with their numbers in the model if these are known, else with their index; name the axis."""
    id_ticks(axis, range(num_layers) if layer_ids is None else layer_ids)
    differ = layer_ids is not None and list(layer_ids) != list(range(num_layers))
    axis.set_label_text("layer (number in the model)" if differ else "layer")


def rank_ticks(axis: "Axis", topology: Topology, name: str = "rank") -> None:
    """Label ranks, in a second row the nodes if there are several, and name the axis."""
    id_ticks(axis, range(topology.num_ranks))
    axis.set_label_text(name)
    if topology.num_nodes == 1:
        return
    edges = topology.node_first_rank
    centres = (edges[:-1] + edges[1:] - 1) / 2
    room = _points(axis) / topology.num_nodes
    names = [f"node {node}" for node in range(topology.num_nodes)]
    if _NODE_SIZE * _LETTER * len(names[-1]) + _GAP > room:
        axis.set_label_text(f"{name} (below: node)" if _is_x(axis) else f"{name} (left: node)")
        names = [str(node) for node in range(topology.num_nodes)]
    step = next(step for step in _STEPS if _NODE_SIZE * _LETTER * len(names[-1]) + _GAP <= room * step)
    axis.remove_overlapping_locs = False  # a node of three ranks has its name at the tick of the second
    axis.set_ticks(centres[::step], names[::step], minor=True)
    axis.set_tick_params(which="minor", length=0, labelsize=_NODE_SIZE, pad=_beside_ranks(axis, topology))
    if not _is_x(axis):
        for label in axis.get_ticklabels(minor=True):
            label.set(rotation=90, verticalalignment="center")


def _beside_ranks(axis: "Axis", topology: Topology) -> float:
    """Points between the axis and the names of the nodes, which stand beyond those of the ranks."""
    letters = len(str(topology.num_ranks - 1))
    return 19.0 if _is_x(axis) else 8.0 + _SIZES[0] * _LETTER * letters
