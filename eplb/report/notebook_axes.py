"""Axes that a notebook shows as their figure. Importing this module loads matplotlib."""

import io

from matplotlib.axes import Axes


class NotebookAxes(Axes):  # type: ignore[misc]  # matplotlib has no type information
    """The axes of a new figure that a drawing function returns; a notebook shows the figure without `.figure`."""

    def _repr_png_(self) -> bytes:
        """The whole figure as PNG."""
        content = io.BytesIO()
        self.figure.savefig(content, format="png")
        return content.getvalue()
