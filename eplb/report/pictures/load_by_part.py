"""Draws how the load of each part of the traffic, a domain or a file, differs from that of all; a panel for each."""

from typing import TYPE_CHECKING, Final, cast

import numpy as np
from numpy.typing import NDArray

from eplb.errors import InputError
from eplb.report.cell_values import MOST_COLUMNS, write_values
from eplb.report.colours import around_one
from eplb.report.short_names import short_names
from eplb.report.style import (
    axes_or_new,
    colour_bar,
    column_borders,
    factor_texts,
    factor_ticks,
    figure_text,
    table_size,
    title,
)
from eplb.report.ticks import id_ticks, layer_ticks
from eplb_traces import ExpertLoad

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HIGHEST: Final = 8.0
_PRIOR_TOKENS: Final = 5.0
"""Added to the tokens of an expert and to those expected: experts with few tokens stay near 1."""
MOST_PANELS: Final = 8
_MOST_HEIGHT: Final = 24.0
"""Inches of all panels."""
_LEAST_HEIGHT: Final = 2.2
"""Inches of a panel without values in its cells."""


def draw_load_by_part(parts: ExpertLoad, *, ax: "Axes | None" = None) -> "Axes":
    """Draw each expert's share of a part's tokens over its share of all tokens, layer by layer.

    Of two parts, the second is drawn over the first in one panel. Of more than eight, those with the most tokens are
    drawn. The scale is logarithmic, neutral at 1, and clipped to 1/8 and 8; five tokens are added to the observed and
    the expected ones. With `ax`, only the first panel is drawn.

    Parameters
    ----------
    parts
        One window for each part, labelled by its name.
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        The first panel.

    Raises
    ------
    InputError
        If there is only one part, or the parts have no names.
    """
    if parts.num_windows < 2 or not parts.labels:
        raise InputError(f"parts = {parts}: expected at least two windows with labels")
    panels = _panels(parts)
    if ax is not None:
        panels, places = panels[:1], [ax]
    else:
        width, height = table_size(parts.num_layers, parts.num_experts)
        if parts.num_experts > MOST_COLUMNS:
            height = max(_LEAST_HEIGHT, 0.9 + 0.15 * parts.num_layers)
        of_panel = min(height, _MOST_HEIGHT / len(panels))
        first = axes_or_new(None, width=width, height=of_panel * len(panels))
        figure = cast("Figure", first.figure)
        figure.clear()
        kind = {"axes_class": type(first)}  # a notebook shows the whole figure
        places = figure.subplots(len(panels), 1, sharex=True, squeeze=False, subplot_kw=kind)[:, 0].tolist()
    for axes, (name, factors) in zip(places, panels, strict=True):
        _draw(axes, name, factors, parts)
    groups = parts.shape.num_expert_groups
    places[-1].set_xlabel("logical expert" + (" (lines: expert groups)" if groups > 1 else ""))
    return places[0]


def _panels(parts: ExpertLoad) -> list[tuple[str, NDArray[np.float64]]]:
    """Title and [L, E] factors of each panel."""
    names = [figure_text(name) for name in short_names(parts.labels)]
    if parts.num_windows == 2:
        heading = f"Share of the tokens in {names[1]}\nover that in {names[0]}"
        return [(heading, share_factors(parts.tokens[1], parts.tokens[0]))]
    size = parts.tokens.sum(axis=(1, 2))
    largest = sorted(np.argsort(-size, kind="stable")[:MOST_PANELS].tolist())
    left_out = parts.num_windows - len(largest)
    more = f"; {left_out} smaller parts are not shown" if left_out else ""
    return [
        (
            f"{names[part]}: {size[part] / parts.num_layers:,.0f} choices of a layer{more if place == 0 else ''}",
            share_factors(parts.tokens[part], parts.tokens.sum(axis=0)),
        )
        for place, part in enumerate(largest)
    ]


def share_factors(tokens: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """[L, E] each expert's share of `tokens` [L, E] over its share of `reference` [L, E]; rare experts are near 1.

    The expected tokens of an expert are the tokens of the layer times its share of the reference; `_PRIOR_TOKENS` are
    added to observed and expected tokens of both, so that neither few tokens nor a short reference show as a factor.
    nan in layers without tokens in one of them.
    """
    size, whole = tokens.sum(axis=1, keepdims=True), reference.sum(axis=1, keepdims=True)
    known = (size > 0) & (whole > 0)
    scale = np.divide(size, whole, out=np.ones_like(size), where=known)
    # A prior worth five tokens on the side that has fewer.
    prior = _PRIOR_TOKENS * np.maximum(1.0, scale)
    return np.where(known, (tokens + prior) / (reference * scale + prior), np.nan)


def _draw(axes: "Axes", name: str, factors: NDArray[np.float64], parts: ExpertLoad) -> None:
    shown = np.clip(factors, 1 / _HIGHEST, _HIGHEST)
    image = axes.imshow(
        shown, aspect="auto", cmap=around_one(), norm="log", vmin=1 / _HIGHEST, vmax=_HIGHEST, interpolation="nearest"
    )
    ticks = factor_ticks(_HIGHEST)
    colour_bar(image, "share / expected share", ends="both", ticks=ticks, numbers="{x:g}")
    write_values(image, factor_texts(shown))
    shape = parts.shape
    column_borders(axes, np.arange(1, shape.num_expert_groups) * shape.experts_per_group)
    id_ticks(axes.xaxis, range(parts.num_experts))
    layer_ticks(axes.yaxis, parts.num_layers, shape.moe_layer_ids)
    title(axes, name)
