"""Draws the experts with the most tokens over their layer's mean, with their replicas."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from eplb.report.colours import ABOVE_COLOUR
from eplb.report.hottest import hottest_experts
from eplb.report.plan_view import PlanView
from eplb.report.style import axes_or_new, figure_texts, title
from eplb.report.ticks import axes_inches
from eplb_traces import ExpertLoad

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_EXPERTS: Final = 16
_BAR_INCHES, _LEAST_BAR_INCHES = 0.26, 0.18


def draw_hottest_experts(load: ExpertLoad, views: Sequence[PlanView] = (), *, ax: "Axes | None" = None) -> "Axes":
    """Draw at most 16 experts, the hottest first: tokens over the mean of the layer, summed over windows.

    Each bar ends with its value and the replicas under each of the plans. Low axes show fewer experts.
    """
    found, ids = hottest_experts(load, MOST_EXPERTS), load.shape.moe_layer_ids
    axes = axes_or_new(ax, height=1.8 + _BAR_INCHES * len(found))
    found = found[: max(1, int(axes_inches(axes)[1] / _LEAST_BAR_INCHES))]
    bars = axes.barh(range(len(found)), [hot.over_mean for hot in found], 0.8, color=ABOVE_COLOUR, alpha=0.75)
    counts = [view.placement.logical_replica_count for view in views]
    texts = [
        ", ".join([f"{hot.over_mean:.1f}x", *("/".join(str(of[hot.layer, hot.expert]) for of in counts),)])
        if counts
        else f"{hot.over_mean:.1f}x"
        for hot in found
    ]
    axes.bar_label(bars, texts, padding=3, fontsize=9)
    layers = [hot.layer if ids is None else ids[hot.layer] for hot in found]
    axes.set_yticks(range(len(found)), [f"{layer}: {hot.expert}" for layer, hot in zip(layers, found, strict=True)])
    axes.set_ylim(max(1, len(found)) - 0.5, -0.5)
    axes.set_xlim(0, 1.2 * max((hot.over_mean for hot in found), default=1.0))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_xlabel("tokens over the mean of the layer")
    axes.set_ylabel("layer: expert" if ids is None else "layer in the model: expert")
    behind = (
        f"\nbehind the value: replicas in {' / '.join(figure_texts([view.name for view in views]))}" if views else ""
    )
    title(axes, f"Hottest experts{behind}")
    return axes
