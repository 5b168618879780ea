"""Describes the evaluation of plans in sentences."""

from collections.abc import Sequence

import numpy as np

from eplb.evaluation.metrics import mean_of_known, worst_of_known
from eplb.evaluation.step_cost import StepCost
from eplb.report.plan_view import PlanView
from eplb_traces import ExpertLoad, ModelShape

_LEAST_CHANGE = 0.05  # per cent; less would be printed as 0.0


def layer_name(shape: ModelShape, layer: int) -> str:
    """`layer 23`; if its index in the model is known and differs: `layer 23 (26 in the model)`."""
    if shape.moe_layer_ids is None or shape.moe_layer_ids[layer] == layer:
        return f"layer {layer}"
    return f"layer {layer} ({shape.moe_layer_ids[layer]} in the model)"


def per_layer(layer: int, load: ExpertLoad, views: Sequence[PlanView]) -> str:
    """Load of the busiest rank of one layer under the first plan and under each other plan, mean of the windows."""
    name = layer_name(load.shape, layer)
    if not load.total[layer].any():
        return f"{name}: no tokens"
    before, *rest = views
    was = float(before.evaluation.max_over_mean[layer])
    one = load.num_windows == 1
    busiest = f"rank {before.busiest_rank[layer]}" if one else "the busiest rank of a window"
    sentence = f"{name}: {busiest} {_carries(before)} {_times(was)} the mean ({before.name})"
    return "; ".join([sentence, *(_change(layer, was, view) for view in rest)])


def _change(layer: int, was: float, view: PlanView) -> str:
    now = float(view.evaluation.max_over_mean[layer])
    of = "" if view.evaluation.load.num_windows == 1 else " of the sum"
    gap = f"gap to the bound{of} {100 * view.evaluation.gap[layer]:.2f} %"
    verb = "leaves it at" if _times(now) == _times(was) else "brings it to" if now < was else "raises it to"
    return f"{view.name} {verb} {_times(now)}; {gap}"


def over_all(title: str, load: ExpertLoad, views: Sequence[PlanView]) -> str:
    """Load of the busiest ranks over all layers under each plan: one sentence per line."""
    before, *rest = views
    topology = before.placement.topology
    ranks = f"{counted(topology.num_ranks, 'rank')} of {counted(topology.num_nodes, 'node')}"
    model = f"{counted(load.num_layers, 'layer')} of {load.num_experts} experts"
    sentences = [f"{title}: {model} on {ranks}.", *_left_out(before), *(_balance(view, load) for view in views)]
    for view in rest:
        sentences += _saved(before, view)
    sentences += [_step(view) for view in views if view.step is not None]
    return "\n".join(sentences)


def about_steps(cost: StepCost, choices: str) -> tuple[str, ...]:
    """What predicted milliseconds are of: model, GPU, tokens and choices, and what they leave out."""
    layers = counted(cost.model.num_moe_layers, "MoE layer")
    head = f"Milliseconds are predicted for {layers} of {cost.title}; choices {choices}."
    return (head, *(f"{sentence[0].upper()}{sentence[1:]}." for sentence in cost.caveats))


def _step(view: PlanView) -> str:
    """Predicted milliseconds of a step under a plan."""
    found = {} if view.step is None else view.step.summary()
    return (
        f"With {view.name} the MoE layers of a step take {found['predicted_step_ms']:.2f} ms, of which the mean rank "
        f"waits {found['predicted_waiting_ms']:.2f} ms for the slowest one."
    )


def _left_out(view: PlanView) -> list[str]:
    """Windows and layers without tokens, which no mean or worst value counts."""
    windows, layers = view.evaluation.num_empty_windows, view.evaluation.num_empty_layers
    parts = [counted(windows, "window")] * (windows > 0) + [counted(layers, "layer")] * (layers > 0)
    return [f"{' and '.join(parts)} without tokens left out."] if parts else []


def _balance(view: PlanView, load: ExpertLoad) -> str:
    if load.num_windows > 1:
        return _window_by_window(view, load)
    of_total, summary = view.evaluation.max_over_mean_of_total, view.evaluation.summary()
    worst = int(np.nanargmax(of_total))
    mean = _times(float(mean_of_known(of_total)))
    found = f"With {view.name} the busiest rank of a layer {_carries(view)} {mean} the mean"
    gap = f"{100 * summary['gap_mean']:.2f} % above the proven bound"
    if load.num_layers == 1:
        return f"{found}, {gap}."
    return (
        f"{found} on average and {_times(float(of_total[worst]))} in {layer_name(load.shape, worst)}, {gap} on average."
    )


def _window_by_window(view: PlanView, load: ExpertLoad) -> str:
    by_window = view.evaluation.max_over_mean_by_window
    window, layer = divmod(int(np.nanargmax(by_window)), load.num_layers)
    name = load.labels[window] if load.labels else f"window {window}"
    num_windows = load.num_windows - view.evaluation.num_empty_windows
    mean, worst = float(mean_of_known(view.evaluation.max_over_mean)), worst_of_known(by_window)
    summary = view.evaluation.summary()
    return (
        f"With {view.name} the busiest rank of a layer {_carries(view)} {_times(mean)} the mean on average of "
        f"{num_windows} windows and {_times(worst)} in {name}, {layer_name(load.shape, layer)}; for the sum of the "
        f"windows {_times(summary['max_over_mean_mean_of_total'])}, {100 * summary['gap_mean']:.2f} % above the proven "
        "bound on average."
    )


def _saved(before: PlanView, view: PlanView) -> list[str]:
    """Change of the busiest ranks' load, token spread and migration of a plan against the first."""
    busiest = (of.evaluation.rank_load.max(axis=2).sum(axis=1) for of in (before, view))
    old, new = (float(view.evaluation.load.weights @ tokens) for tokens in busiest)
    change = 100 * abs(1 - new / old)
    words = "as many" if change < _LEAST_CHANGE else f"{change:.1f} % {'fewer' if new < old else 'more'}"
    over = "layers" if view.evaluation.load.num_windows == 1 else "layers and windows"
    found = [f"Summed over {over} the busiest ranks get {words} tokens with {view.name}."]
    if before.spread is not None and view.spread is not None:
        ranks, nodes = view.spread.ranks_per_token.mean(), view.spread.nodes_per_token.mean()
        found.append(
            f"A token's choices lie on {ranks:.2f} ranks and {nodes:.2f} nodes with {view.name} ({before.name}: "
            f"{before.spread.ranks_per_token.mean():.2f} and {before.spread.nodes_per_token.mean():.2f})."
        )
    if view.migration is not None:
        moved = f"{view.migration.moved_copies} replicas to another rank"
        found.append(f"Getting to {view.name} moves {moved}, {100 * view.migration.moved_fraction:.1f} % of the slots.")
    return found


def _carries(view: PlanView) -> str:
    return "carries" if view.placement.topology.rank_speed is None else "works"


def _times(ratio: float) -> str:
    """A ratio for display: 2.90x, 1.53x; three digits below 1.1."""
    return f"{ratio:.3f}x" if ratio < 1.1 else f"{ratio:.2f}x"


def megabytes(num_bytes: float) -> str:
    """`44.04 MB`."""
    return f"{num_bytes / 1e6:.4g} MB"


def counted(count: int, noun: str) -> str:
    """`1 rank`, `4 ranks`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
