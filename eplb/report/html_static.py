"""Writes the parts of the page that need no script: verdict, table of plans, sentences of the summary."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from eplb.report.contents import ReportContents
from eplb.report.plan_view import PlanView
from eplb.report.recommendation import recommend

_Number = float | int

_COLUMNS: Final[tuple[tuple[str, str, Callable[[_Number], str]], ...]] = (
    ("predicted_step_ms", "predicted ms", lambda value: f"{value:.3f}"),
    ("max_over_mean_mean", "max/mean load", lambda value: f"{value:.3f}"),
    ("max_over_mean_worst", "worst layer", lambda value: f"{value:.3f}"),
    ("gap_mean", "above bound", lambda value: f"{100 * value:.2f} %"),
    ("ranks_per_token", "ranks/token", lambda value: f"{value:.2f}"),
    ("nodes_per_token", "nodes/token", lambda value: f"{value:.2f}"),
    ("num_slots", "slots/layer", lambda value: f"{value:,}"),
    ("moved_copies", "replicas moved", lambda value: f"{value:,}"),
)
"""Metric, heading and number format; a column without any value is left out."""


_CAPTION: Final = (
    "Max/mean load of the ranks (1 is perfect): mean and worst of layers and windows. Above bound: busiest ranks over "
    "the proven lower bound. Moves start from the first plan."
)


def static_parts(contents: ReportContents) -> dict[str, str]:
    """{placeholder of page.html: HTML}; names from files are escaped."""
    overall, *layers = contents.summary_text
    return {
        "verdict": verdict(contents.plans),
        "summary": _items(overall.splitlines()),
        "num_layers": str(len(layers)),
        "layer_summaries": _items(layers),
    }


def verdict(views: Sequence[PlanView]) -> str:
    """The recommended plan and a table plan x number; empty without plans."""
    if not views:
        return ""
    found = recommend(views)
    metrics = [view.metrics() for view in views]
    columns = [column for column in _COLUMNS if any(column[0] in of_plan for of_plan in metrics)]
    head = "".join(
        f'<th scope="col" role="columnheader">{escape(title)}</th>' for title in ("plan", *(c[1] for c in columns))
    )
    rows = [
        _row(view.name, [(title, _text(of_plan, name, form)) for name, title, form in columns], index == found.index)
        for index, (view, of_plan) in enumerate(zip(views, metrics, strict=True))
    ]
    return (
        f'<p id="verdict">{escape(found.sentence)}</p>'
        f'<table id="plan-table" role="table"><caption>{_CAPTION}</caption><thead role="rowgroup"><tr role="row">{head}'
        f'</tr></thead><tbody role="rowgroup">{"".join(rows)}</tbody></table>'
    )


def _row(name: str, cells: Sequence[tuple[str, str]], is_recommended: bool) -> str:
    mark = ' <strong class="mark">recommended</strong>' if is_recommended else ""
    numbers = "".join(f'<td role="cell" data-title="{escape(title)}">{text}</td>' for title, text in cells)
    style = ' class="recommended"' if is_recommended else ""
    return f'<tr role="row"{style}><th scope="row" role="rowheader">{escape(name)}{mark}</th>{numbers}</tr>'


def _text(metrics: dict[str, _Number], name: str, form: Callable[[_Number], str]) -> str:
    return form(metrics[name]) if name in metrics else "\N{EN DASH}"


def _items(sentences: Sequence[str]) -> str:
    return "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
