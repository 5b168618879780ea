"""Creates and saves matplotlib figures without pyplot: colours, sizes, axes, legends.

Colours are safe for colour-blind readers: Okabe and Ito's set for plans, cividis and viridis for amounts, PuOr for
values above and below one.
"""

import warnings
from collections.abc import Sequence
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import numpy as np
from numpy.typing import NDArray

from eplb.errors import InputError, MissingExtraError, UnknownNameError
from eplb_traces.files.atomic_file import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

PLAN_COLOURS: Final = ("#999999", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours of the plans of a report in order, the first in grey; repeated if there are more plans."""
MARKERS: Final = "sovD^Pv"
"""Markers of the plans, which distinguish plans without colours."""
BOUND_COLOUR: Final = "#000000"
NOTHING_COLOUR: Final = "#e8e8e8"
"""Colour of cells without a value."""
BORDER_COLOUR: Final = "#ffffff"

_DPI = 120
_MOST_TICKS = 20
_TICK_STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_LONGEST_NAME = 40
_LETTERS_IN_A_ROW = 50
_LEGEND_EDGE, _LEGEND_ROW = 0.05, 0.065  # of the height of the axes


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
    """A file name as figure text: `$` escaped, visible in legends (no leading underscore), truncated."""
    shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    shown = shown.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def plan_style(index: int) -> tuple[str, str]:
    """Colour and marker of the plan with that index in a report."""
    return PLAN_COLOURS[index % len(PLAN_COLOURS)], MARKERS[index % len(MARKERS)]


def legend_above(axes: "Axes", *others: "Axes") -> None:
    """Add a legend for the axes and those that share their area, and extend the y range so that it covers no data."""
    together = [axes, *others]
    lines, labels = (
        [*chain(*found)] for found in zip(*(each.get_legend_handles_labels() for each in together), strict=True)
    )
    num_columns = len(labels) if sum(map(len, labels)) <= _LETTERS_IN_A_ROW else 1
    share = _LEGEND_EDGE + _LEGEND_ROW * -(-len(labels) // num_columns)
    for each in together:
        bottom, top = each.get_ylim()
        each.set_ylim(bottom, bottom + (top - bottom) / (1 - share))
    together[-1].legend(lines, labels, loc="upper center", ncols=num_columns)


def colour_bar(
    image: "AxesImage",
    label: str,
    *,
    ends: str = "neither",
    ticks: Sequence[float] | None = None,
    numbers: str | None = None,
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
        Tick values; chosen by matplotlib by default.
    numbers
        Format of the ticks, as in ``{x:g}``.
    """
    figure = image.axes.figure
    bar = figure.colorbar(image, ax=image.axes, label=label, pad=0.01, extend=ends, ticks=ticks, format=numbers)
    if ticks is not None:
        bar.minorticks_off()


def colour_map(name: str, num_colours: int | None = None) -> "Colormap":
    """A colour map, optionally resampled, in which cells without a value are light grey."""
    from matplotlib import colormaps

    found = colormaps[name] if num_colours is None else colormaps[name].resampled(num_colours)
    return found.with_extremes(bad=NOTHING_COLOUR)


def whole_ticks(axis: "Axis", count: int) -> None:
    """Set ticks of an axis of `count` ids at integers, at most 20."""
    step = next(step for step in (*_TICK_STEPS, count) if count <= step * _MOST_TICKS)
    axis.set_ticks(np.arange(0, count, step))


def column_borders(axes: "Axes", edges: NDArray[np.int64], colour: str = BORDER_COLOUR) -> None:
    """Draw thin lines before the given columns."""
    for edge in edges:
        axes.axvline(edge - 0.5, color=colour, linewidth=0.8)


def row_borders(axes: "Axes", edges: NDArray[np.int64], colour: str = BORDER_COLOUR) -> None:
    """Draw thin lines before the given rows."""
    for edge in edges:
        axes.axhline(edge - 0.5, color=colour, linewidth=0.8)
