"""The numbers of a report as pandas tables, one for each CSV file."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eplb.core.placement import EMPTY_SLOT
from eplb.evaluation.metrics import mean_of_known, worst_of_known
from eplb.evaluation.pair_locality import share_inside_nodes, share_inside_ranks
from eplb.planning.redundancy_sweep import SweepPoint
from eplb.report.contents import ReportContents
from eplb.report.hottest import hottest_experts
from eplb.report.plan_view import PlanView

if TYPE_CHECKING:
    import pandas as pd

    from eplb_traces.coactivation.layer_coactivation import CoActivation

_PREDICTED = "predicted_step_s"

MEANINGS = {
    "metrics": "per plan: the metrics of `eplb evaluate --json`, token spread and migration",
    "layers": "per plan and layer: balance, busiest rank, bound, gap",
    "ranks": "per plan, layer and rank: tokens, experts, replicas moved in",
    "experts": "per layer and expert: tokens and, per plan, replicas",
    "windows": "per plan and window: balance, mean and worst of layers",
    "parts": "per plan and part of the traffic, a file or a domain: balance, mean and worst of layers",
    "hottest_experts": "the experts with the most tokens over their layer's mean",
    "migration": "per plan and pair of ranks: replicas sent",
    "redundancy": "per number of redundant experts: balance and memory",
    "pairs": "per layer shown in detail: the pairs of experts with the most tokens above independence",
    "pair_locality": "per layer shown in detail: share of pairs inside expert groups and a plan's ranks and nodes",
}
"""Description of each table; the key is the name of the file."""


def metrics(contents: ReportContents) -> "pd.DataFrame":
    """One row per plan."""
    import pandas as pd

    return pd.DataFrame([{"plan": view.name, **view.metrics()} for view in contents.plans])


def layers(contents: ReportContents) -> "pd.DataFrame":
    """One row per plan and layer; `_of_total` and all later columns refer to the load summed over windows."""
    import pandas as pd

    if not contents.plans:
        return pd.DataFrame()
    ids = contents.load.shape.moe_layer_ids

    def of_plan(view: PlanView) -> "pd.DataFrame":
        num_layers = view.placement.num_layers
        columns = {
            "plan": view.name,
            "layer": np.arange(num_layers),
            "model_layer": np.arange(num_layers) if ids is None else np.asarray(ids),
            "max_over_mean": view.evaluation.max_over_mean,
            "max_over_mean_of_total": view.evaluation.max_over_mean_of_total,
            "busiest_rank": view.busiest_rank,
            "busiest_rank_tokens": view.total_rank_load[np.arange(num_layers), view.busiest_rank],
            "lower_bound_tokens": view.bound.value,
            "binding_bound": [bound.value for bound in view.bound.binding],
            "gap": view.evaluation.gap,
        }
        if view.spread is not None:
            columns["ranks_per_token"] = view.spread.ranks_per_token
            columns["nodes_per_token"] = view.spread.nodes_per_token
        return pd.DataFrame(columns | _step_columns(view))

    table = pd.concat([of_plan(view) for view in contents.plans], ignore_index=True)
    return table.drop(columns="model_layer") if ids is None else table


def _step_columns(view: PlanView) -> dict[str, NDArray[np.float64]]:
    """Predicted milliseconds of each layer by part; NaN in layers without tokens."""
    if view.step is None:
        return {}
    found = {}
    for name, milliseconds in view.step.layer_ms().items():
        column = np.full(view.placement.num_layers, np.nan)
        column[list(view.step.times.layers)] = milliseconds
        found[f"predicted_{name}_ms"] = column
    return found


def ranks(contents: ReportContents) -> "pd.DataFrame":
    """One row per plan, layer and rank; tokens are summed over windows."""
    import pandas as pd

    if not contents.plans:
        return pd.DataFrame()

    def of_plan(view: PlanView) -> "pd.DataFrame":
        topology, tokens = view.placement.topology, view.total_rank_load
        layer, rank = np.indices(tokens.shape).reshape(2, -1)
        held = np.add.reduceat(
            view.placement.physical_to_logical_map != EMPTY_SLOT, topology.rank_first_slot[:-1], axis=1, dtype=np.int64
        )
        columns = {
            "plan": view.name, "layer": layer, "rank": rank, "node": topology.node_of_rank[rank],
            "tokens": tokens.reshape(-1), "experts": held.reshape(-1),
        }  # fmt: skip
        return pd.DataFrame(columns | {"moved_in": view.moved_in.reshape(-1)})

    return pd.concat([of_plan(view) for view in contents.plans], ignore_index=True)


def experts(contents: ReportContents) -> "pd.DataFrame":
    """One row per layer and expert, one column of replicas per plan; tokens are summed over windows."""
    import pandas as pd

    total = contents.load.total
    layer, expert = np.indices(total.shape).reshape(2, -1)
    replicas = {f"replicas in {view.name}": view.placement.logical_replica_count.reshape(-1) for view in contents.plans}
    return pd.DataFrame({"layer": layer, "expert": expert, "tokens": total.reshape(-1)} | replicas)


def windows(contents: ReportContents) -> "pd.DataFrame":
    """One row per plan and window; no rows if there is only one window."""
    import pandas as pd

    rows = []
    labels = () if contents.windows is None else contents.windows.labels
    for view in contents.plans:
        for window, by_layer in enumerate(() if view.balance_by_window is None else view.balance_by_window):
            label = labels[window] if labels else f"window {window}"
            rows.append((view.name, window, label, float(mean_of_known(by_layer)), worst_of_known(by_layer)))
    return pd.DataFrame(rows, columns=["plan", "window", "label", "max_over_mean_mean", "max_over_mean_worst"])


def parts(contents: ReportContents) -> "pd.DataFrame":
    """One row per plan and part of the traffic, evaluated alone; no rows if there is only one part."""
    import pandas as pd

    labels = () if contents.parts is None else contents.parts.labels
    rows = [
        (view.name, label, float(mean_of_known(by_layer)), worst_of_known(by_layer))
        for view in contents.plans
        for label, by_layer in zip(labels, () if view.balance_by_part is None else view.balance_by_part, strict=True)
    ]
    return pd.DataFrame(rows, columns=["plan", "part", "max_over_mean_mean", "max_over_mean_worst"])


def hottest(contents: ReportContents, count: int) -> "pd.DataFrame":
    """`count` rows, the hottest expert first, with its replicas per plan; tokens are summed over windows."""
    import pandas as pd

    found = hottest_experts(contents.load, count)
    table = pd.DataFrame(found, columns=["layer", "expert", "tokens", "over_mean"])
    for view in contents.plans:
        counts = view.placement.logical_replica_count
        table[f"replicas in {view.name}"] = [int(counts[hot.layer, hot.expert]) for hot in found]
    return table


def migration(contents: ReportContents) -> "pd.DataFrame":
    """One row per plan and pair of ranks with transfers."""
    import pandas as pd

    rows = []
    for view in contents.plans:
        if view.migration is not None:
            replicas = view.migration.link_copies
            rows += [(view.name, *link, int(replicas[tuple(link)])) for link in np.argwhere(replicas).tolist()]
    return pd.DataFrame(rows, columns=["plan", "from_rank", "to_rank", "replicas"])


def redundancy(points: Sequence[SweepPoint]) -> "pd.DataFrame":
    """One row per number of redundant experts; wall times are omitted, so that equal inputs give equal files."""
    import pandas as pd

    left_out = {"seconds"} if any(point.predicted_step_s is not None for point in points) else {"seconds", _PREDICTED}
    if all(point.bytes_per_rank is None for point in points):
        left_out.add("bytes_per_rank")
    columns = [name for name in SweepPoint.__dataclass_fields__ if name not in left_out]
    return pd.DataFrame([asdict(point) for point in points], columns=columns)


def pairs(coactivations: "Sequence[CoActivation]", count: int) -> "pd.DataFrame":
    """`count` rows per layer, the strongest pair first."""
    import pandas as pd

    rows = [
        (of.layer, *pair, float(of.adjusted_lift()[pair.expert, pair.other]))
        for of in coactivations
        for pair in of.top_pairs(count)
    ]
    return pd.DataFrame(rows, columns=["layer", "expert", "other_expert", "tokens", "lift", "adjusted_lift"])


def pair_locality(contents: ReportContents, coactivations: "Sequence[CoActivation]") -> "pd.DataFrame":
    """One row per layer, plan and place: share of a token's pairs inside one group, rank or node; even dispatch."""
    import pandas as pd

    shape = contents.load.shape
    group = np.arange(shape.num_experts) // shape.experts_per_group
    rows: list[tuple[int, str, str, float, float]] = []
    for of in (found for found in coactivations if found.num_pairs):
        rows.append((of.layer, "", "expert group", *of.share_inside(group)))
        for view in contents.plans:
            rows.append((of.layer, view.name, "rank", *share_inside_ranks(view.placement, of)))
            rows.append((of.layer, view.name, "node", *share_inside_nodes(view.placement, of)))
    return pd.DataFrame(rows, columns=["layer", "plan", "place", "observed", "expected"])
