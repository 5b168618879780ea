"""Makes rows and tables of metrics."""

from collections.abc import Mapping
from math import isnan
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
    if summary["num_empty_windows"] or summary["num_empty_layers"]:
        rows += _left_out(summary)
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


def _left_out(summary: Summary) -> list[tuple[str, output.Cell]]:
    """How many windows and layers have no token, and what they count as in the metrics of engines."""
    from eplb.evaluation.metrics import EMPTY_IN_ENGINES

    counts = f"{summary['num_empty_windows']} / {summary['num_empty_layers']}"
    return [
        ("windows / layers without tokens, left out", counts),
        *((f"  in the metric of {engine} they count", how) for engine, how in EMPTY_IN_ENGINES.items()),
    ]


def window_table(evaluation: "Evaluation") -> None:
    """Print the metrics of each window, the worst ones where there are many; nothing for a single window."""
    from eplb.evaluation.metrics import mean_of_known, worst_of_known

    load = evaluation.load
    if load.num_windows == 1:
        return
    by_window = evaluation.max_over_mean_by_window
    with_tokens = [w for w in range(load.num_windows) if not load.empty_windows[w]]
    rows = [
        (window_name(load, w), float(mean_of_known(by_window[w])), worst_of_known(by_window[w])) for w in with_tokens
    ]
    title = "Windows"
    if len(rows) > _MOST_WINDOWS:
        title = f"Windows, the worst {_MOST_WINDOWS} of {len(rows)}"
        rows = sorted(rows, key=lambda row: row[1], reverse=True)[:_MOST_WINDOWS]
    output.table(title, ("window", "max/mean", "worst layer"), rows)


def layer_objects(evaluation: "Evaluation") -> list[dict[str, object]]:
    """The balance of each layer, for `--json`; null for a layer without tokens.

    `max_over_mean` is the mean over windows, `rank_load` the tokens of each rank summed over windows.
    """
    total, bound = evaluation.total_rank_load.tolist(), evaluation.bound
    return [
        {
            "layer": layer,
            "max_over_mean": _known(evaluation.max_over_mean[layer]),
            "max_over_mean_of_total": _known(evaluation.max_over_mean_of_total[layer]),
            "gap": _known(evaluation.gap[layer]),
            "lower_bound": float(bound.value[layer]),
            "binding_bound": bound.binding[layer].value,
            "busiest_rank": int(evaluation.total_rank_time[layer].argmax()),
            "rank_load": total[layer],
            "duplicate_slots": int(evaluation.placement.duplicate_slots[layer].sum()),
        }
        for layer in range(evaluation.placement.num_layers)
    ]


def _known(value: float) -> float | None:
    return None if isnan(value) else float(value)


def window_objects(evaluation: "Evaluation") -> list[dict[str, object]]:
    """The metrics of each window, for `--json`; null for a window without tokens."""
    from eplb.evaluation.metrics import mean_of_known, worst_of_known

    empty = evaluation.load.empty_windows
    return [
        {
            "window": window_name(evaluation.load, w),
            "max_over_mean_mean": None if empty[w] else float(mean_of_known(of)),
            "max_over_mean_worst": None if empty[w] else worst_of_known(of),
        }
        for w, of in enumerate(evaluation.max_over_mean_by_window)
    ]
