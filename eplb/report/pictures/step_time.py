"""Draws the predicted time of each layer by part: dispatch, FFN, waiting, combine; a panel for each plan."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

import numpy as np

from eplb.evaluation.step_cost import PredictedStep, StepCost
from eplb.report.colours import STEP_COLOURS
from eplb.report.plan_view import PlanView
from eplb.report.style import axes_or_new, figure_texts, title
from eplb.report.ticks import layer_ticks
from eplb_traces import ModelShape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PARTS: Final = {
    "dispatch": ("dispatch", ""),
    "ffn": ("FFN, mean rank", ""),
    "waiting": ("waiting for the slowest rank", "////"),
    "combine": ("combine", ""),
}
_PANEL_INCHES: Final = 2.6


def draw_step_times(
    views: Sequence[PlanView], cost: StepCost, shape: ModelShape | None = None, *, ax: "Axes | None" = None
) -> "Axes":
    """Draw one panel for each plan with a predicted step, all on one scale; with `ax`, the last plan into it.

    With `shape`, layers have their numbers in the model.
    """
    names = figure_texts([view.name for view in views])
    shown = [(name, view.step) for view, name in zip(views, names, strict=True) if view.step is not None]
    most = max(float(step.times.step_s.max()) for _, step in shown) * 1e3
    if ax is not None:
        shown = shown[-1:]
        panels = [ax]
    else:
        first = axes_or_new(None, height=1.2 + _PANEL_INCHES * len(shown))
        figure = cast("Figure", first.figure)
        figure.clear()
        kind = {"axes_class": type(first)}  # a notebook shows the whole figure
        panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False, subplot_kw=kind)[:, 0].tolist()
        figure.suptitle(f"Predicted: {cost.title}", fontsize="medium")
    num_layers = views[0].placement.num_layers
    for axes, (name, step) in zip(panels, shown, strict=True):
        _draw(axes, name, step)
        axes.set_xlim(-0.6, num_layers - 0.4)
        axes.set_ylim(0, 1.05 * most)
    layer_ticks(panels[-1].xaxis, num_layers, None if shape is None else shape.moe_layer_ids)
    panels[0].figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(_PARTS))
    return panels[0]


def _draw(axes: "Axes", name: str, step: PredictedStep) -> None:
    """One bar for each layer with tokens, its parts in order of time."""
    layers, milliseconds = list(step.times.layers), step.layer_ms()
    bottom = np.zeros(len(layers))
    for part, (label, hatch) in _PARTS.items():
        axes.bar(
            layers, milliseconds[part], bottom=bottom, width=0.85, label=label, color=STEP_COLOURS[part], hatch=hatch,
            edgecolor="white", linewidth=0,
        )  # fmt: skip
        bottom = bottom + milliseconds[part]
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_ylabel("ms")
    total = step.summary()["predicted_step_ms"]
    title(axes, f"{name}: {total:.2f} ms in {step.num_moe_layers} MoE layers")
