"""Draws which experts are chosen together in every layer: one small heatmap a layer, all with the same colours."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, cast

import numpy as np
from numpy.typing import NDArray

from eplb.errors import InputError
from eplb.report.colours import around_one
from eplb.report.style import axes_or_new, factor_ticks
from eplb_traces import ModelShape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from eplb_traces.coactivation.layer_coactivation import CoActivation

_HIGHEST: Final = 4.0
_MOST_CELLS: Final = 64
"""Rows of a panel; neighbouring experts are drawn as one cell if there are more."""
_PRIOR_PAIRS: Final = 5.0
"""As in `CoActivation.shrunk_lift`."""
_WIDTH: Final = 13.0
"""Inches of all panels of a row."""
_LARGEST_PANEL, _MOST_COLUMNS = 3.2, 8


def draw_coactivation_overview(coactivations: "Iterable[CoActivation]", shape: ModelShape) -> "Axes":
    """Draw the lift of blocks of experts, ordered by id, in every layer given.

    Lift is (observed + 5) / (expected + 5) pairs of a block, which is neutral at 1 and clipped to 1/4 and 4.

    Parameters
    ----------
    coactivations
        Of the layers to draw; one at a time is held.
    shape
        The model.

    Returns
    -------
    Axes
        The first panel, of a new figure.

    Raises
    ------
    InputError
        If there is no layer.
    """
    lifts = [(of.layer, block_lift(of, _MOST_CELLS)) for of in coactivations]
    if not lifts:
        raise InputError("coactivations: expected at least one layer")
    # One row of up to four layers, else about twice as many columns as rows.
    num_columns = min(_MOST_COLUMNS, max(min(len(lifts), 4), int(np.ceil(np.sqrt(2 * len(lifts))))))
    num_rows = -(-len(lifts) // num_columns)
    panel = min(_LARGEST_PANEL, _WIDTH / num_columns)
    width, height = max(6.0, 1.3 + panel * num_columns), 1.0 + (panel + 0.25) * num_rows
    first = axes_or_new(None, width=width, height=height)
    figure = cast("Figure", first.figure)
    figure.clear()
    kind = {"axes_class": type(first)}  # a notebook shows the whole figure
    panels = figure.subplots(num_rows, num_columns, squeeze=False, subplot_kw=kind).ravel().tolist()
    for axes, (layer, lift) in zip(panels, lifts, strict=False):
        image = axes.imshow(
            np.clip(lift, 1 / _HIGHEST, _HIGHEST), cmap=around_one(), norm="log", vmin=1 / _HIGHEST, vmax=_HIGHEST,
            interpolation="nearest",
        )  # fmt: skip
        axes.set_title(str(layer if shape.moe_layer_ids is None else shape.moe_layer_ids[layer]), fontsize=9, pad=3)
        axes.set(xticks=[], yticks=[])
    for axes in panels[len(lifts) :]:
        axes.set_axis_off()
    bar = figure.colorbar(
        image, ax=panels, ticks=factor_ticks(_HIGHEST), format="{x:g}", extend="both", aspect=5 * height
    )
    bar.set_label("lift: observed / expected pairs", fontsize=9)
    bar.minorticks_off()
    model = "" if shape.moe_layer_ids is None else " in the model"
    figure.suptitle(f"Experts chosen together, by id, layer by layer (numbers: layers{model})", fontsize="medium")
    return cast("Axes", panels[0])


def block_lift(coactivation: "CoActivation", most: int) -> NDArray[np.float64]:
    """[B, B] lift of blocks of neighbouring experts, at most `most`; nan where no pair is expected.

    A block on the diagonal holds the pairs of different experts inside it.
    """
    num_experts = coactivation.num_experts
    first = np.arange(0, num_experts, -(-num_experts // most))
    pairs = coactivation.pairs.astype(np.float64)
    np.fill_diagonal(pairs, 0)
    found, expected = (
        np.add.reduceat(np.add.reduceat(table, first, axis=0), first, axis=1)
        for table in (pairs, coactivation.expected_pairs)
    )
    return np.where(expected > 0, (found + _PRIOR_PAIRS) / (expected + _PRIOR_PAIRS), np.nan)
