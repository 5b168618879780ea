"""Writes the values of a heatmap into its cells where they fit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from eplb.report.ticks import POINTS_PER_INCH, axes_inches

if TYPE_CHECKING:
    from matplotlib.image import AxesImage
    from matplotlib.path import Path

MOST_COLUMNS: Final = 64
"""Cells of heatmaps with more rows or columns are not labelled."""
_LARGEST, _SMALLEST = 9.0, 5.5
"""Font sizes in points; nothing is written in a smaller one."""
_LETTER: Final = 0.62
"""Width of a digit over its font size."""
_LINE: Final = 1.3
"""Height of a line over its font size."""
_MIDDLE: Final = 0.365
"""Height of the middle of a digit over its font size."""
_SHARE: Final = 0.94
"""Of the width of a cell that a text may take."""
_LUMINANCE: Final = np.array([0.2126, 0.7152, 0.0722])
"""Of red, green and blue."""
_DARK: Final = 0.45
"""Texts are white on cells of a smaller luminance."""


def write_values(image: "AxesImage", texts: Sequence[Sequence[str]]) -> None:
    """Write [rows][columns] texts into the cells of an image, in black or white; nothing if they do not fit.

    An empty text leaves its cell empty. Cells with the same text are one collection of markers, with that text after an
    underscore as its label: thousands of matplotlib's text objects take seconds to draw.
    """
    from matplotlib.collections import PathCollection
    from matplotlib.transforms import IdentityTransform

    size = _font_size(image, texts)
    if size is None:
        return
    cells: dict[str, list[tuple[int, int]]] = {}
    for row, of_row in enumerate(texts):
        for column, text in enumerate(of_row):
            if text:
                cells.setdefault(text, []).append((row, column))
    colour = np.asarray(image.to_rgba(np.ma.asarray(image.get_array())))
    luminance = colour[..., :3] @ _LUMINANCE
    for text, places in cells.items():
        colours = ["white" if luminance[place] < _DARK else "black" for place in places]
        offsets = [(column, row) for row, column in places]
        drawn = PathCollection(
            [_centred(text, size)], sizes=[1.0], offsets=offsets, offset_transform=image.axes.transData,
            facecolors=colours, linewidths=0.0, label=f"_{text}", zorder=3,
        )  # fmt: skip
        drawn.set_transform(IdentityTransform())  # the size of a text is in points, its place in cells
        drawn.set_in_layout(False)
        image.axes.add_collection(drawn, autolim=False)


def _centred(text: str, size: float) -> "Path":
    """The outline of a text around the origin, in points."""
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    path = TextPath((0, 0), text, size=size)
    return Affine2D().translate(-path.get_extents().width / 2, -_MIDDLE * size).transform_path(path)


def _font_size(image: "AxesImage", texts: Sequence[Sequence[str]]) -> float | None:
    """The largest font in which every text fits its cell; None if that is unreadable."""
    rows, columns = len(texts), len(texts[0])
    letters = max((len(text) for of_row in texts for text in of_row), default=0)
    if letters == 0 or max(rows, columns) > MOST_COLUMNS:
        return None
    width, height = (POINTS_PER_INCH * inches for inches in axes_inches(image.axes))
    cell_width, cell_height = width / columns, height / rows
    if image.axes.get_aspect() == 1.0:
        cell_width = cell_height = min(cell_width, cell_height)
    size = min(_LARGEST, _SHARE * cell_width / (_LETTER * letters), cell_height / _LINE)
    return size if size >= _SMALLEST else None
