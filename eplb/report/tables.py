"""The numbers behind a report as pandas tables, one a CSV file; every number comes from the judge."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from eplb.core.placement import EMPTY_SLOT
from eplb.evaluation.pair_locality import share_inside_nodes, share_inside_ranks
from eplb.planning.redundancy_sweep import SweepPoint
from eplb.report.contents import ReportContents
from eplb.report.plan_view import PlanView

if TYPE_CHECKING:
    import pandas as pd

    from eplb_traces.coactivation.layer_coactivation import CoActivation

MEANINGS = {
    "metrics": "what `eplb evaluate --json` says of each plan, tokens' spread and what must move",
    "layers": "per plan and layer: balance, busiest rank, bound, gap",
    "ranks": "per plan, layer and rank: tokens, experts held, copies moved in",
    "experts": "per layer and expert: tokens and, per plan, copies",
    "windows": "per plan and window: balance, mean and worst of layers",
    "migration": "per plan and pair of ranks: expert copies sent",
    "redundancy": "what each number of redundant experts buys and costs",
    "pairs": "per layer shown closely: the pairs of experts with the most tokens above independence",
    "affinity": "per layer shown closely: share of all pairs inside expert groups, and inside a plan's ranks and nodes",
}
"""What each table holds, one row a line of `columns`; the name is the file's."""


def metrics(contents: ReportContents) -> "pd.DataFrame":
    """One row a plan."""
    import pandas as pd

    return pd.DataFrame([{"plan": view.name, **view.metrics()} for view in contents.plans])


def layers(contents: ReportContents) -> "pd.DataFrame":
    """One row a plan and layer; `_of_total` is of the load summed over windows, and so are the columns after it."""
    import pandas as pd

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
        return pd.DataFrame(columns)

    table = pd.concat([of_plan(view) for view in contents.plans], ignore_index=True)
    return table.drop(columns="model_layer") if ids is None else table


def ranks(contents: ReportContents) -> "pd.DataFrame":
    """One row a plan, layer and rank; tokens are summed over windows."""
    import pandas as pd

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
    """One row a layer and expert, one column of copies a plan; tokens are summed over windows."""
    import pandas as pd

    total = contents.load.total
    layer, expert = np.indices(total.shape).reshape(2, -1)
    copies = {f"copies in {view.name}": view.placement.logical_replica_count.reshape(-1) for view in contents.plans}
    return pd.DataFrame({"layer": layer, "expert": expert, "tokens": total.reshape(-1)} | copies)


def windows(contents: ReportContents) -> "pd.DataFrame":
    """One row a plan and window; no rows where the traffic is one window."""
    import pandas as pd

    rows = []
    labels = () if contents.windows is None else contents.windows.labels
    for view in contents.plans:
        for window, by_layer in enumerate(() if view.balance_by_window is None else view.balance_by_window):
            label = labels[window] if labels else f"window {window}"
            rows.append((view.name, window, label, float(by_layer.mean()), float(by_layer.max())))
    return pd.DataFrame(rows, columns=["plan", "window", "label", "max_over_mean_mean", "max_over_mean_worst"])


def migration(contents: ReportContents) -> "pd.DataFrame":
    """One row a plan and pair of ranks between which copies travel."""
    import pandas as pd

    rows = []
    for view in contents.plans:
        if view.migration is not None:
            copies = np.rint(view.migration.link_bytes / view.migration.expert_bytes).astype(np.int64)
            rows += [(view.name, *link, int(copies[tuple(link)])) for link in np.argwhere(copies).tolist()]
    return pd.DataFrame(rows, columns=["plan", "from_rank", "to_rank", "copies"])


def redundancy(points: Sequence[SweepPoint]) -> "pd.DataFrame":
    """One row a number of redundant experts; wall times are left out, so that the same input gives the same file."""
    import pandas as pd

    columns = [name for name in SweepPoint.__dataclass_fields__ if name != "seconds"]
    return pd.DataFrame([asdict(point) for point in points], columns=columns)


def pairs(coactivations: "Sequence[CoActivation]", count: int) -> "pd.DataFrame":
    """`count` rows a layer, the strongest pair first."""
    import pandas as pd

    rows = [
        (of.layer, *pair, float(of.adjusted_lift()[pair.expert, pair.other]))
        for of in coactivations
        for pair in of.top_pairs(count)
    ]
    return pd.DataFrame(rows, columns=["layer", "expert", "other_expert", "tokens", "lift", "adjusted_lift"])


def affinity(contents: ReportContents, coactivations: "Sequence[CoActivation]") -> "pd.DataFrame":
    """One row a layer with pairs and kind of place: the share that meets in one, under even dispatch."""
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
