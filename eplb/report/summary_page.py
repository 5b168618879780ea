"""The Markdown page of a report folder: the verdict on top, then numbers, pictures and what the files hold."""

from collections.abc import Mapping, Sequence

from eplb.report.contents import ReportContents
from eplb.report.summary_text import layer_name, megabytes
from eplb.version import eplb_version

_WORST_LAYERS = 12


def summary_page(
    contents: ReportContents, pictures: Mapping[str, str], files: Mapping[str, str], layers: Sequence[int]
) -> str:
    """The page as Markdown.

    Parameters
    ----------
    contents
        What is reported.
    pictures
        {file name: caption}; files that a Markdown viewer cannot show (PDF) are linked.
    files
        {file name: what it holds} of the tables.
    layers
        Layers that are shown closely.
    """
    verdict = [f"- {_plain(sentence)}" for sentence in contents.verdicts[0].splitlines()]
    named = ", ".join(layer_name(contents.load.shape, layer) for layer in layers)
    parts = [
        f"# Where the experts of {_plain(contents.title)} live",
        "\n".join(verdict),
        "## Plans",
        _metrics(contents),
        "Busiest over mean rank is 1 where every rank gets the same. The gaps are above a proven lower bound. "
        "Keys that end in `_of_total` and the gaps are of the load summed over windows. What moves does so on the way "
        f"from the first plan, at {megabytes(contents.expert_bytes)} an expert of a layer.",
        "## Pictures",
        f"Close-ups are of {named}.",
        *(_picture(name, caption) for name, caption in pictures.items()),
        "## Layers",
        _layers(contents),
        "## Files",
        "\n".join(f"- [{name}]({name}): {meaning}" for name, meaning in files.items()),
        f"Made by eplb {eplb_version()} from a load with the digest `{contents.load.digest}`, "
        f"{contents.plans[0].evaluation.dispatch} dispatch.",
    ]
    return "\n\n".join(parts) + "\n"


def _metrics(contents: ReportContents) -> str:
    """One row a metric by its name in `eplb evaluate --json`, one column a plan; a dash where it has none."""
    summaries = [view.metrics() for view in contents.plans]
    head = ["metric", *(_plain(view.name) for view in contents.plans)]
    keys = dict.fromkeys(key for summary in summaries for key in summary)
    rows = [[f"`{key}`", *(_number(summary.get(key)) for summary in summaries)] for key in keys]
    lines = [head, ["---", *("---:" for _ in summaries)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _layers(contents: ReportContents) -> str:
    """The verdict on each layer, the worst before first where there are many."""
    before = contents.plans[0].evaluation.max_over_mean_of_total
    worst = (-before).argsort(kind="stable")[:_WORST_LAYERS].tolist()
    lines = [f"- {_plain(contents.verdicts[1 + layer])}" for layer in worst]
    more = len(before) - len(worst)
    return "\n".join(lines) + (f"\n\n{more} more are in layers.csv." if more else "")


def _picture(name: str, caption: str) -> str:
    shown = f"[{name}]({name})" if name.endswith(".pdf") else f"![{_plain(caption)}]({name})"
    return f"{shown}\n\n{_plain(caption)}"


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _plain(text: str) -> str:
    """Text of which Markdown makes nothing else; file names may hold anything."""
    one_line = " ".join(text.split())
    return "".join(f"\\{char}" if char in "\\`*_[]<>|#$~&" else char for char in one_line)
