"""Creates and saves matplotlib figures without pyplot: sizes, axes, titles, legends, colour bars."""

import warnings
from collections.abc import Sequence
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import numpy as np
from numpy.typing import NDArray

from eplb.errors import InputError, MissingExtraError, UnknownNameError
from eplb.report.cell_values import MOST_COLUMNS
from eplb.report.colours import BORDER_COLOUR
from eplb.report.short_names import short_names
from eplb.report.ticks import POINTS_PER_INCH, axes_inches, is_our_figure
from eplb_traces.files.atomic_file import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_DPI = 120
_TALL_ROWS = 16
"""Rows of a heatmap up to which each has the full height."""
_LETTER, _HANDLE = 0.6, 36.0
"""Width of a letter of a legend over its font size, and of a line or marker with the gaps around it in points."""
_LEGEND_SIZES = (10.0, 9.0, 8.0, 7.0)
_LEGEND_ROW, _LEGEND_EDGE = 15.0, 14.0
"""Height in points of a row of a legend, and of the gaps around it."""
_FONT_SIZES = (12.0, 10.0, 9.0, 8.0, 7.0)
_LETTER_SHARE = 0.56
"""Width of a letter over its font size."""
_BAR_ASPECT, _BAR_WIDTH = 10.0, 16.0
"""Least height of a colour bar over its width, and its width in points."""
_TICK_ROOM = 12.0
"""Points between two ticks of a colour bar."""
_ROOM_ABOVE = 1.06
"""Of the height of the data."""


class ImageFormat(StrEnum):
    """File formats of figures."""

    PNG = "png"
    SVG = "svg"
    PDF = "pdf"

    @classmethod
    def named(cls, name: str) -> "ImageFormat":
        """The format of that name; UnknownNameError with the valid names otherwise."""
        try:
            return cls(name)
        except ValueError:
            raise UnknownNameError("image format", name, cls) from None


_NO_DATES: Final[dict[str, dict[str, None]]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""Dates and versions are omitted, so that equal contents give equal bytes."""


def axes_or_new(ax: "Axes | None", *, width: float = 9.0, height: float = 4.2) -> "Axes":
    """The given axes, or those of a new figure; width and height in inches.

    Raises
    ------
    MissingExtraError
        Without matplotlib.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure

        from eplb.report.notebook_axes import NotebookAxes
    except ImportError as error:
        raise MissingExtraError("drawing", "report") from error
    return Figure((width, height), layout="constrained").add_subplot(axes_class=NotebookAxes)


def table_size(num_rows: int, num_columns: int) -> tuple[float, float]:
    """Width and height in inches of a heatmap whose rows and columns differ in kind."""
    width = 12.0 if num_columns > MOST_COLUMNS else min(17.0, max(7.0, 2.4 + 0.27 * num_columns))
    height = 6.4 + 0.17 * (num_rows - _TALL_ROWS) if num_rows > _TALL_ROWS else max(2.6, 1.6 + 0.3 * num_rows)
    return width, min(15.0, height)


def square_size(num_rows: int, *, more_lines: int = 0) -> tuple[float, float]:
    """Width and height in inches of a heatmap with the same ids on both axes; `more_lines` of its title and labels."""
    side = 9.0 if num_rows > MOST_COLUMNS else min(13.0, max(5.5, 1.6 + 0.3 * num_rows))
    return side + 1.0, side + 0.55 + 0.22 * more_lines


def save(axes: "Axes", path: Path) -> None:
    """Write the figure of these axes, in the format of the suffix of `path`.

    Raises
    ------
    InputError
        For another suffix than .png, .svg or .pdf, or a path that cannot be written.
    """
    from matplotlib import rc_context

    figure = cast("Figure", axes.figure)
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in list(ImageFormat):
        raise InputError(f"{path}: expected a name that ends in .png, .svg or .pdf")

    def write(target: Path) -> None:
        figure.savefig(target, dpi=_DPI, format=suffix, metadata=_NO_DATES[suffix])
        if suffix == ImageFormat.PNG:
            _reduce_colours(target)

    with rc_context({"svg.hashsalt": "eplb"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a file name in a script that the font lacks
        atomic_write(path, write)


def _reduce_colours(path: Path) -> None:
    """Rewrite a PNG with a palette of 256 colours: a third of the bytes without a visible difference."""
    from PIL import Image

    with Image.open(path) as image:
        reduced = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    reduced.save(path, format="png", optimize=True, dpi=(_DPI, _DPI))


def figure_text(name: str) -> str:
    """A file name as figure text: `$` escaped, visible in legends (no leading underscore), shortened."""
    (short,) = short_names([name])
    shown = short.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def figure_texts(names: Sequence[str]) -> list[str]:
    """File names as figure texts that differ if the names do."""
    return [figure_text(name) for name in short_names(names)]


def title(axes: "Axes", text: str, *, pad: float = 6.0) -> None:
    """Set the title, in a font in which its longest line fits the width of the axes."""
    size = _fitting(text, POINTS_PER_INCH * axes_inches(axes)[0])
    axes.set_title(text, fontsize=size, pad=pad)


def legend_above(axes: "Axes", *others: "Axes") -> None:
    """Add a legend between title and axes, for the axes and those that share their area.

    A figure of our own grows by the height of the legend, so that the area of the data does not shrink.
    """
    together = [axes, *others]
    lines, labels = (
        [*chain(*found)] for found in zip(*(each.get_legend_handles_labels() for each in together), strict=True)
    )
    # Bars are listed last by matplotlib, but belong to the first plan.
    order = sorted(range(len(lines)), key=lambda place: not isinstance(lines[place], tuple))
    lines, labels = [lines[place] for place in order], [labels[place] for place in order]
    width, figure = POINTS_PER_INCH * axes_inches(axes)[0], cast("Figure", axes.figure)
    letters = max(map(len, labels))
    size = next((size for size in _LEGEND_SIZES if _LETTER * size * letters + _HANDLE <= width), _LEGEND_SIZES[-1])
    column = _LETTER * size * letters + _HANDLE
    num_columns = min(len(labels), max(1, int(width / column)))
    num_rows = -(-len(labels) // num_columns)
    num_columns = -(-len(labels) // num_rows)
    height = _LEGEND_ROW * size / _LEGEND_SIZES[0] * num_rows + _LEGEND_EDGE
    together[-1].legend(
        lines, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=num_columns, frameon=False,
        fontsize=size, borderaxespad=0.2,
    )  # fmt: skip
    title(axes, axes.get_title(), pad=height)
    if is_our_figure(axes):
        figure.set_figheight(figure.get_figheight() + height / POINTS_PER_INCH)


def from_zero(axes: "Axes") -> None:
    """Let the y axis begin at 0 and end above the data."""
    axes.set_ylim(0, _ROOM_ABOVE * axes.get_ylim()[1])


def colour_bar(
    image: "AxesImage",
    label: str,
    *,
    ends: str = "neither",
    ticks: Sequence[float] | None = None,
    numbers: str = "{x:g}",
) -> None:
    """Add a colour bar to an image.

    Parameters
    ----------
    image
        The image.
    label
        The quantity with its unit.
    ends
        The end with values beyond the last colour: neither, both, min or max.
    ticks
        Tick values, of which every second, third, ... is left out if they do not fit, the middle one never; chosen by
        matplotlib by default.
    numbers
        Format of the ticks.
    """
    figure, height = image.axes.figure, POINTS_PER_INCH * axes_inches(image.axes)[1]
    if ticks is not None:
        step = int(np.ceil(len(ticks) * _TICK_ROOM / height))
        ticks = ticks[len(ticks) // 2 % step :: step]
    aspect = max(_BAR_ASPECT, height / _BAR_WIDTH)
    bar = figure.colorbar(
        image, ax=image.axes, pad=0.01, extend=ends, extendfrac=min(0.05, _BAR_WIDTH / height), aspect=aspect,
        ticks=ticks, format=numbers,
    )  # fmt: skip
    bar.set_label(label, fontsize=_fitting(label, height))
    if ticks is not None:
        bar.minorticks_off()


def _fitting(text: str, points: float) -> float:
    """Font size in which the longest line of a text fits a length; the smallest one if none does."""
    letters = max(map(len, text.splitlines()), default=0)
    return next((size for size in _FONT_SIZES if size * _LETTER_SHARE * letters <= points), _FONT_SIZES[-1])


def factor_ticks(most: float) -> list[float]:
    """The powers of two from 1 / `most` to `most`."""
    powers = round(np.log2(most))
    return [2.0**power for power in range(-powers, powers + 1)]


def factor_texts(values: NDArray[np.float64]) -> list[list[str]]:
    """Factors for cells, in at most three letters: 0, .25, 1.2, 16; empty for no value."""
    return [["" if np.isnan(value) else _factor_text(value) for value in row] for row in values]


def _factor_text(value: float) -> str:
    if value < 0.095:
        return f"{value:.2f}".removeprefix("0") if value >= 0.005 else "0"
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def column_borders(axes: "Axes", edges: NDArray[np.int64], colour: str = BORDER_COLOUR) -> None:
    """Draw thin lines before the given columns."""
    for edge in edges:
        axes.axvline(edge - 0.5, color=colour, linewidth=0.8)


def row_borders(axes: "Axes", edges: NDArray[np.int64], colour: str = BORDER_COLOUR) -> None:
    """Draw thin lines before the given rows."""
    for edge in edges:
        axes.axhline(edge - 0.5, color=colour, linewidth=0.8)
