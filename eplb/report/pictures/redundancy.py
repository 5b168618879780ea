"""Draws balance and memory against the number of redundant experts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eplb.errors import InputError
from eplb.planning.redundancy_sweep import SweepPoint
from eplb.report.colours import PLAN_COLOURS
from eplb.report.style import axes_or_new, from_zero, legend_above, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_redundancy(points: Sequence[SweepPoint], *, ax: "Axes | None" = None) -> "Axes":
    """Draw max/mean (left axis) and bytes per rank (right axis) against redundancy.

    Parameters
    ----------
    points
        From `eplb.planning.redundancy_sweep.sweep`.
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        The left axis.

    Raises
    ------
    InputError
        If there are no points.
    MissingExtraError
        Without matplotlib.
    """
    if not points:
        raise InputError("points: expected at least one")
    axes = axes_or_new(ax)
    balance, memory = PLAN_COLOURS[1], PLAN_COLOURS[5]
    redundant = [point.num_redundant for point in points]
    axes.plot(
        redundant,
        [point.max_over_mean_mean for point in points],
        "o-",
        color=balance,
        label="balance, mean of layers and windows",
    )
    axes.plot(
        redundant, [point.max_over_mean_worst for point in points], "^--", color=balance, label="balance, worst of them"
    )
    axes.set_xticks(redundant)
    axes.set_xlabel("redundant experts a layer")
    axes.set_ylabel("max/mean rank load", color=balance)
    from_zero(axes)
    axes.grid(axis="y", alpha=0.3)
    right = axes.twinx()
    right.plot(
        redundant,
        [_memory(point) for point in points],
        "s:",
        color=memory,
        label="memory of a rank",
    )
    in_bytes = points[0].bytes_per_rank is not None
    right.set_ylabel("expert weights of a rank (GB)" if in_bytes else "slots of a rank", color=memory)
    from_zero(right)
    title(axes, "Balance and memory by redundant experts")
    legend_above(axes, right)
    return axes


def _memory(point: SweepPoint) -> float:
    """Gigabytes of a rank; its slots where the bytes of an expert are unknown."""
    return point.slots_per_rank if point.bytes_per_rank is None else point.bytes_per_rank / 1e9
