"""Builds the JSON data of the page, under the names that its scripts read."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from eplb.core.migration import Migration
from eplb.evaluation.step_cost import PredictedStep
from eplb.report.contents import ReportContents
from eplb.report.html_arrays import packed, whole_numbers
from eplb.report.html_coactivation import coactivation_payload
from eplb.report.html_domains import domains_payload
from eplb.report.plan_view import PlanView
from eplb.report.recommendation import recommend
from eplb.report.summary_text import counted
from eplb.version import eplb_version
from eplb_traces import ModelShape

Payload = dict[str, Any]

_METRIC_MEANINGS: Final = {
    "max_over_mean_mean": "max/mean rank load, mean of layers and windows; 1 is perfect",
    "max_over_mean_worst": "the same, worst layer and window",
    "max_over_mean_p95": "the same, 95th percentile of layers and windows",
    "max_over_mean_mean_of_total": "max/mean rank load of the windows summed, mean of layers",
    "max_over_mean_worst_of_total": "the same, worst layer",
    "balancedness_vllm": "sum over layers of mean rank load / sum of maximum rank load; 1 is perfect",
    "balancedness_sglang": "mean over layers of mean / maximum rank load; 1 is perfect",
    "imbalance_ratio_trtllm": "TensorRT-LLM: max/mean rank load - 1, mean of layers; 0 is perfect",
    "par_ascend": "vllm-ascend's peak-to-average ratio: max/mean rank load, mean of layers",
    "gap_mean": "maximum rank load over the proven lower bound, minus 1, mean of layers",
    "gap_worst": "the same, worst layer",
    "duplicate_slots": "slots whose expert has an earlier slot on the same rank",
    "num_windows": "windows of the load",
    "num_empty_windows": "windows without tokens, left out of every mean and worst value",
    "num_layers": "MoE layers",
    "num_empty_layers": "layers without tokens, left out likewise",
    "num_ranks": "ranks (GPUs)",
    "num_slots": "physical experts of a layer",
    "ranks_per_token": "ranks per token: ranks of its chosen experts, mean of tokens and layers",
    "nodes_per_token": "nodes per token, mean of tokens and layers",
    "predicted_step_ms": "predicted milliseconds of all MoE layers of a step: the four parts below",
    "predicted_dispatch_ms": "the same, tokens to experts",
    "predicted_ffn_ms": "the same, expert FFN of the mean rank",
    "predicted_waiting_ms": "the same, mean wait for the slowest rank",
    "predicted_combine_ms": "the same, outputs back",
    "moved_copies": "replicas fetched from another rank in the migration from the first plan",
    "moved_fraction": "the same divided by the slots of all layers",
    "moved_bytes": "the same in bytes",
    "moved_between_nodes": "replicas fetched from another node",
    "copied_inside_ranks": "replicas copied inside a rank",
    "num_batches": "batches of the migration, executed in order",
    "staging_copies": "largest number of experts that a rank stages for a layer",
    "transfer_s": "seconds of all batches at the topology's bandwidths",
}
"""Meaning of each metric; a metric that is missing here is shown by its name only."""


def payload(contents: ReportContents) -> Payload:
    """Everything the page shows, ready for JSON; arrays are packed.

    Plans have one entry each, in order; arrays are [layer, ...] as in `ReportContents`.
    """
    windows = contents.windows
    return {
        "title": contents.title,
        "summary_text": list(contents.summary_text),
        "model": _model(contents.load.shape),
        "first_layer": contents.worst_layer,
        "num_windows": contents.load.num_windows,
        "load": packed(contents.load.total),
        "plans": [_plan(view) for view in contents.plans],
        "recommended": recommend(contents.plans).index if contents.plans else None,
        "domains": domains_payload(contents.parts),
        "windows": None if windows is None else _window_names(windows.labels, windows.num_windows),
        "coactivation": None if contents.trace is None else coactivation_payload(contents.trace, contents.plans),
        "about_steps": " ".join(contents.about_steps),
        "metric_meanings": _METRIC_MEANINGS,
        "provenance": _provenance(contents),
    }


def _model(shape: ModelShape) -> Payload:
    return {
        "num_layers": shape.num_layers,
        "num_experts": shape.num_experts,
        "num_expert_groups": shape.num_expert_groups,
        "experts_per_group": shape.experts_per_group,
        "moe_layer_ids": shape.moe_layer_ids,
    }


def _plan(view: PlanView) -> Payload:
    evaluation, topology = view.evaluation, view.placement.topology
    balance = view.balance_by_window
    return {
        "name": view.name,
        "num_ranks": topology.num_ranks,
        "node_first_rank": topology.node_first_rank.tolist(),
        "relative_speed": None if topology.rank_speed is None else topology.relative_speed.tolist(),
        "rank_of_slot": packed(whole_numbers(topology.rank_of_slot)),
        "physical_to_logical_map": packed(view.placement.physical_to_logical_map),
        "rank_load": packed(view.total_rank_load),
        "max_over_mean": packed(evaluation.max_over_mean),
        "max_over_mean_of_total": packed(evaluation.max_over_mean_of_total),
        "bound": view.bound.value.tolist(),
        "binding": [str(which) for which in view.bound.binding],
        "balance_by_window": None if balance is None else packed(balance.astype(np.float32)),
        "metrics": view.metrics(),
        "migration": None if view.migration is None else _migration(view, view.migration),
        "step": None if view.step is None else _step(view.step),
    }


def _step(step: PredictedStep) -> Payload:
    """Milliseconds of the layers with tokens, by part."""
    parts = {name: packed(milliseconds.astype(np.float32)) for name, milliseconds in step.layer_ms().items()}
    return {"layers": list(step.times.layers), **parts}


def _migration(view: PlanView, migration: Migration) -> Payload:
    return {
        "summary": migration.summary(),
        "expert_bytes": migration.expert_bytes,
        "link_copies": packed(migration.link_copies.astype(np.float64)),
        "moved_in": packed(whole_numbers(view.moved_in)),
    }


def _window_names(labels: Sequence[str], num_windows: int) -> list[str]:
    return list(labels) or [f"window {window}" for window in range(num_windows)]


def _provenance(contents: ReportContents) -> list[tuple[str, str]]:
    """Inputs and versions of the page; no date, so that equal inputs give equal files."""
    load = contents.load
    model = (
        counted(load.num_layers, "layer"),
        counted(load.num_experts, "expert"),
        counted(load.num_windows, "window"),
    )
    found = [
        ("made by", f"eplb {eplb_version()}"),
        ("load", f"{contents.title}: {', '.join(model)}, {load.digest}"),
    ]
    if contents.trace is not None:
        found.append(("trace", counted(contents.trace.num_tokens, "token")))
    for view in contents.plans:
        topology = view.placement.topology
        slots = topology.rank_num_slots
        held = f"{slots.min()}" if slots.min() == slots.max() else f"{slots.min()} to {slots.max()}"
        size = f"{counted(topology.num_ranks, 'rank')} on {counted(topology.num_nodes, 'node')}"
        found.append(
            (view.name, f"{size}, slots of a rank: {held}; evaluated under {view.evaluation.dispatch} dispatch")
        )
    return found
