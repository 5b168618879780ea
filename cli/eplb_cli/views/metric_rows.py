"""Makes rows and tables of metrics."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from eplb_cli import output
from eplb_cli.arguments.files import window_name

if TYPE_CHECKING:
    from eplb.evaluation.metrics import Evaluation

Summary = Mapping[str, float | int]

_MOST_WINDOWS = 12


def metric_facts(summary: Summary) -> list[tuple[str, output.Cell]]:
    """The metrics of one evaluation, one a line."""
    gaps = f"{output.percentage(summary['gap_mean'])} % / {output.percentage(summary['gap_worst'])} %"
    balancedness = f"{summary['balancedness_vllm']:.4f} / {summary['balancedness_sglang']:.4f}"
    rows: list[tuple[str, output.Cell]] = [
        ("busiest / mean rank, mean of layers", summary["max_over_mean_mean"]),
        ("busiest / mean rank, worst layer", summary["max_over_mean_worst"]),
    ]
    if summary["num_windows"] > 1:
        of_total = f"{summary['max_over_mean_mean_of_total']:.4f} / {summary['max_over_mean_worst_of_total']:.4f}"
        rows.append(("busiest / mean rank, p95 of windows and layers", summary["max_over_mean_p95"]))
        rows.append((f"mean / worst, {summary['num_windows']} windows summed", of_total))
    spread: list[tuple[str, output.Cell]] = []
    if "ranks_per_token" in summary:
        visited = f"{summary['ranks_per_token']:.4f} / {summary['nodes_per_token']:.4f}"
        spread.append(("ranks / nodes that a token visits", visited))
    return [
        *rows,
        ("above the lower bound, mean / worst", gaps),
        ("balancedness, vLLM / SGLang", balancedness),
        ("imbalance ratio, TensorRT-LLM", summary["imbalance_ratio_trtllm"]),
        ("duplicates on a rank", summary["duplicate_slots"]),
        *spread,
    ]


def window_table(evaluation: "Evaluation") -> None:
    """Print the metrics of each window, the worst ones where there are many; nothing for a single window."""
    load = evaluation.load
    if load.num_windows == 1:
        return
    by_window = evaluation.max_over_mean_by_window
    rows = [(window_name(load, w), float(of.mean()), float(of.max())) for w, of in enumerate(by_window)]
    title = "Windows"
    if len(rows) > _MOST_WINDOWS:
        title = f"Windows, the worst {_MOST_WINDOWS} of {len(rows)}"
        rows = sorted(rows, key=lambda row: row[1], reverse=True)[:_MOST_WINDOWS]
    output.table(title, ("window", "max/mean", "worst layer"), rows)


def window_objects(evaluation: "Evaluation") -> list[dict[str, object]]:
    """The metrics of each window, for `--json`."""
    return [
        {
            "window": window_name(evaluation.load, w),
            "max_over_mean_mean": float(of.mean()),
            "max_over_mean_worst": float(of.max()),
        }
        for w, of in enumerate(evaluation.max_over_mean_by_window)
    ]
