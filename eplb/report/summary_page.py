"""The Markdown page of a report folder: summary, metrics, figures, layers and files."""

from collections.abc import Mapping, Sequence

from eplb.report.contents import ReportContents
from eplb.report.hottest import hottest_experts
from eplb.report.summary_text import layer_name, megabytes
from eplb.report.traffic_text import max_over_mean_expert
from eplb.version import eplb_version

_WORST_LAYERS = 12
_HOTTEST = 10


def summary_page(
    contents: ReportContents, pictures: Mapping[str, str], files: Mapping[str, str], layers: Sequence[int]
) -> str:
    """The page as Markdown.

    Parameters
    ----------
    contents
        The contents of the report.
    pictures
        {file name: caption}; PDF files, which a Markdown viewer cannot show, are linked.
    files
        {file name: description} of the tables.
    layers
        Layers that are shown in detail.
    """
    summary = [f"- {_plain(sentence)}" for sentence in contents.summary_text[0].splitlines()]
    named = ", ".join(layer_name(contents.load.shape, layer) for layer in layers)
    parts = [
        f"# Expert placement for {_plain(contents.title)}",
        "\n".join(summary),
        *(_plans(contents) if contents.plans else ()),
        "## Figures",
        f"Layer details are of {named}.",
        *(_picture(name, caption) for name, caption in pictures.items()),
        "## Layers",
        _layers(contents),
        "## Hottest experts",
        _hottest(contents),
        "## Files",
        "\n".join(f"- [{name}]({name}): {meaning}" for name, meaning in files.items()),
        f"Made by eplb {eplb_version()} from a load with the digest `{contents.load.digest}`"
        + (f", {contents.plans[0].evaluation.dispatch} dispatch." if contents.plans else "."),
    ]
    return "\n\n".join(parts) + "\n"


def _bytes(expert_bytes: float | None) -> str:
    if expert_bytes is None:
        return " and are counted in replicas, as the bytes of an expert are unknown (`--expert-bytes`)"
    return f"; an expert of a layer has {megabytes(expert_bytes)}"


def _plans(contents: ReportContents) -> tuple[str, ...]:
    return (
        "## Plans",
        _metrics(contents),
        "Max/mean is 1 if every rank has the same load. Gaps are relative to a proven lower bound. Keys that end in "
        "`_of_total` and gaps refer to the load summed over windows. Migrations start from the first plan"
        f"{_bytes(contents.expert_bytes)}.",
    )


def _metrics(contents: ReportContents) -> str:
    """One row per metric, named as in `eplb evaluate --json`, one column per plan; a dash for missing values."""
    summaries = [view.metrics() for view in contents.plans]
    head = ["metric", *(_plain(view.name) for view in contents.plans)]
    keys = dict.fromkeys(key for summary in summaries for key in summary)
    rows = [[f"`{key}`", *(_number(summary.get(key)) for summary in summaries)] for key in keys]
    lines = [head, ["---", *("---:" for _ in summaries)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _layers(contents: ReportContents) -> str:
    """The summary of each layer, sorted by max/mean under the first plan or of the experts; at most twelve."""
    plans = contents.plans
    before = plans[0].evaluation.max_over_mean if plans else max_over_mean_expert(contents.load)
    worst = (-before).argsort(kind="stable")[:_WORST_LAYERS].tolist()  # layers without tokens, NaN, are last
    lines = [f"- {_plain(contents.summary_text[1 + layer])}" for layer in worst]
    more = len(before) - len(worst)
    return "\n".join(lines) + (f"\n\n{more} more layers are in layers.csv." if more else "")


def _hottest(contents: ReportContents) -> str:
    """The experts with the most tokens over their layer's mean, with their replicas in each plan."""
    lines = []
    for hot in hottest_experts(contents.load, _HOTTEST):
        counts = (view.placement.logical_replica_count[hot.layer, hot.expert] for view in contents.plans)
        held = ", ".join(f"{count} in {view.name}" for count, view in zip(counts, contents.plans, strict=True))
        name = layer_name(contents.load.shape, hot.layer)
        replicas = f"; replicas: {held}" if held else ""
        lines.append(f"- {_plain(f'{name}, expert {hot.expert}: {hot.over_mean:.2f}x the mean{replicas}')}")
    return "\n".join(lines) or "No expert has more tokens than the others of its layer."


def _picture(name: str, caption: str) -> str:
    shown = f"[{name}]({name})" if name.endswith(".pdf") else f"![{_plain(caption)}]({name})"
    return f"{shown}\n\n{_plain(caption)}"


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _plain(text: str) -> str:
    """Text with Markdown characters escaped; file names may contain any character."""
    one_line = " ".join(text.split())
    return "".join(f"\\{char}" if char in "\\`*_[]<>|#$~&" else char for char in one_line)
