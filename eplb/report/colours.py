"""Colours and markers of a report, the same in the pictures of a folder and on the light page.

They are safe for colour-blind readers: Okabe and Ito's set for plans and parts, cividis for amounts, blue and orange
for values below and above one. A test compares them with `page/`.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

PLAN_COLOURS: Final = ("#8c959f", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00")
"""Colours of the plans of a report in order, the first in grey; repeated if there are more plans."""
PLAN_MARKERS: Final = "osD^PX"
"""Markers of the plans, which distinguish plans without colours."""
REPLICA_COLOURS: Final = ("#8c959f", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#d55e00")
"""Colours of one, two, ... replicas; the last one is of all larger numbers."""
STEP_COLOURS: Final = {"dispatch": "#56b4e9", "ffn": "#0072b2", "waiting": "#e69f00", "combine": "#009e73"}
"""Colours of the parts of a predicted step."""
BOUND_COLOUR: Final = "#b34700"
BELOW_COLOUR: Final = "#0072b2"
"""End of the scale below one."""
NEUTRAL_COLOUR: Final = "#f2f2f2"
"""Colour of one: as expected."""
ABOVE_COLOUR: Final = "#b34700"
"""End of the scale above one."""
NOTHING_COLOUR: Final = "#c8c8c8"
"""Colour of cells without a value."""
BORDER_COLOUR: Final = "#000000"
"""Lines between expert groups and nodes."""


def plan_style(index: int) -> tuple[str, str]:
    """Colour and marker of the plan with that index in a report."""
    return PLAN_COLOURS[index % len(PLAN_COLOURS)], PLAN_MARKERS[index % len(PLAN_MARKERS)]


def amounts() -> "Colormap":
    """Colours of amounts, the smallest dark; cells without a value are grey."""
    from matplotlib import colormaps

    return colormaps["cividis"].with_extremes(bad=NOTHING_COLOUR)


def around_one() -> "Colormap":
    """Colours of factors on a log scale: blue below one, neutral at one, orange above; no value is grey."""
    from matplotlib.colors import LinearSegmentedColormap

    ends = [BELOW_COLOUR, NEUTRAL_COLOUR, ABOVE_COLOUR]
    return LinearSegmentedColormap.from_list("around one", ends).with_extremes(bad=NOTHING_COLOUR)


def replica_colours(most: int) -> "Colormap":
    """One colour for each number of replicas from one to `most`."""
    from matplotlib.colors import ListedColormap

    return ListedColormap(REPLICA_COLOURS[:most]).with_extremes(bad=NOTHING_COLOUR)
