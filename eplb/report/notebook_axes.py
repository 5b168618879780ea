"""Axes that a notebook shows as their figure. Importing this module loads matplotlib."""

import io
from typing import cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure


class NotebookAxes(Axes):
    """The axes of a new figure that a drawing function returns; a notebook shows the figure without `.figure`."""

    def _repr_png_(self) -> bytes:
        """The whole figure as PNG."""
        content = io.BytesIO()
        cast(Figure, self.figure).savefig(content, format="png")
        return content.getvalue()
