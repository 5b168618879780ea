"""Lists the figures of a report, in order, with their captions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, final

from eplb.errors import InputError
from eplb.planning.redundancy_sweep import SweepPoint, sweep
from eplb.report import pictures
from eplb.report.contents import ReportContents
from eplb.report.plan_view import PlanView
from eplb.report.short_names import short_names
from eplb.report.summary_text import layer_name, megabytes
from eplb_traces import ModelShape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from eplb_traces.coactivation.layer_coactivation import CoActivation

_SWEEP_STEPS = (0, 1, 2, 4, 8)


@final
@dataclass(frozen=True)
class Picture:
    """A figure of a report: file name, caption and the function that draws it."""

    name: str
    """File name without its suffix."""
    caption: str
    draw: "Callable[[], Axes]"


@final
@dataclass(frozen=True, eq=False)
class LayerDetails:
    """Data on single layers, and the redundancy sweep."""

    layers: tuple[int, ...]
    coactivations: "tuple[CoActivation, ...]"
    """One for each of `layers`; empty without a trace."""
    redundancy: tuple[SweepPoint, ...]
    """Empty for a load without tokens, or if only one number of redundant experts is possible."""


def layer_details(contents: ReportContents, layers: Sequence[int]) -> LayerDetails:
    """Count co-activation in the layers named, or in the worst layer of the first plan, and sweep over redundancy.

    Raises
    ------
    InputError
        If there is no such layer.
    """
    num_layers = contents.load.num_layers
    for layer in layers:
        if not 0 <= layer < num_layers:
            raise InputError(f"layer = {layer}: expected 0 <= layer < {num_layers}")
    chosen = tuple(dict.fromkeys(layers)) or (contents.worst_layer,)
    found: tuple[CoActivation, ...] = ()
    if contents.trace is not None:
        from eplb_traces.coactivation.layer_coactivation import coactivations

        found = tuple(coactivations(contents.trace, chosen))
    return LayerDetails(chosen, found, _redundancy(contents))


def _redundancy(contents: ReportContents) -> tuple[SweepPoint, ...]:
    topology, num_experts = contents.plans[0].placement.topology, contents.load.num_experts
    least, most = -num_experts % topology.num_ranks, (topology.num_ranks - 1) * num_experts
    numbers = [number for step in _SWEEP_STEPS if (number := least + step * topology.num_ranks) <= most]
    if len(numbers) < 2 or not contents.load.total.any():
        return ()
    load = contents.load if contents.windows is None else contents.windows
    return sweep(load, topology.num_ranks, topology.nodes, numbers, contents.expert_bytes, cost=contents.cost)


def report_figures(contents: ReportContents, details: LayerDetails) -> Iterator[Picture]:
    """Every figure for which there is data, the most important first."""
    views, shape = contents.plans, contents.load.shape
    yield Picture(
        "layer-balance",
        "Max/mean rank load of every layer: how much longer a layer takes than with equal loads.",
        partial(pictures.draw_layer_balance, views, shape),
    )
    if contents.cost is not None:
        yield Picture(
            "step-time",
            f"Where the time of each layer goes, plan by plan. {' '.join(contents.about_steps)}",
            partial(pictures.draw_step_times, views, contents.cost, shape),
        )
    for layer in details.layers:
        caption = contents.summary_text[1 + layer]
        yield Picture(f"rank-load-layer-{layer}", f"{caption[0].upper()}{caption[1:]}.",
                      partial(pictures.draw_rank_load, views, layer, shape))  # fmt: skip
    yield Picture("expert-load", "Tokens of every expert over its layer's mean.",
                  partial(pictures.draw_expert_load, contents.load))  # fmt: skip
    yield Picture("hottest-experts", "The experts with the most tokens over their layer's mean.",
                  partial(pictures.draw_hottest_experts, contents.load, views))  # fmt: skip
    yield from _of_parts(contents)
    if contents.windows is not None and not _windows_are_parts(contents):
        yield Picture(
            "balance-over-windows",
            f"Balance in {contents.windows.num_windows} windows of the trace, in order of time.",
            partial(pictures.draw_balance_over_windows, views, contents.windows),
        )
    for index, (view, name) in enumerate(zip(views, short_names([view.name for view in views]), strict=True)):
        yield from _of_plan(index, view, name, shape)
    if contents.trace is not None:
        yield Picture(
            "balance-and-token-spread",
            "Load of the busiest rank against the number of ranks that a token is sent to.",
            partial(pictures.draw_balance_and_token_spread, views),
        )
    yield from _of_traffic(views)
    if details.redundancy:
        each = "" if contents.windows is None else " in each window"
        yield Picture(
            "redundancy",
            f"Balance of greedy plans with more and fewer redundant experts{each}, and their memory if an expert "
            f"of a layer has {megabytes(contents.expert_bytes)}.",
            partial(pictures.draw_redundancy, details.redundancy),
        )
    if any(coactivation.num_pairs for coactivation in details.coactivations):
        yield Picture(
            "coactivation-overview",
            "Lift of pairs of experts in every layer, experts by id; neutral: as often as by chance.",
            partial(_overview, contents),
        )
    for coactivation in details.coactivations:
        yield from _of_pairs(contents, coactivation)


def _of_parts(contents: ReportContents) -> Iterator[Picture]:
    """Load and balance of each part of the traffic."""
    parts = contents.parts
    if parts is None:
        return
    if parts.num_windows == 2:
        against = f"{parts.labels[1]} over the same share of {parts.labels[0]}"
    else:
        against = "each part of the traffic over its share of all"
    yield Picture(
        "load-by-part",
        f"Every expert's share of {against}; experts with few tokens are shrunk towards 1.",
        partial(pictures.draw_load_by_part, parts),
    )
    if contents.plans:
        yield Picture(
            "balance-by-part",
            "Balance of each plan in each part of the traffic alone.",
            partial(pictures.draw_balance_by_part, contents.plans, parts.labels),
        )


def _windows_are_parts(contents: ReportContents) -> bool:
    """Whether the windows are files, which have no order of time."""
    return contents.windows is not None and contents.parts is not None and contents.windows == contents.parts


def _overview(contents: ReportContents) -> "Axes":
    from eplb_traces.coactivation.layer_coactivation import coactivations

    if contents.trace is None:
        raise InputError("trace = None: expected a token-level trace")
    return pictures.draw_coactivation_overview(coactivations(contents.trace), contents.load.shape)


def _of_plan(index: int, view: PlanView, name: str, shape: ModelShape) -> Iterator[Picture]:
    """Figures of one plan, with its short name in the title."""
    groups, ids = shape.num_expert_groups, shape.moe_layer_ids
    if (view.placement.logical_replica_count > 1).any():
        yield Picture(
            f"replica-counts-{index}",
            f"Replicas of every expert in {view.name}.",
            partial(pictures.draw_replica_counts, view.placement, num_expert_groups=groups, layer_ids=ids, name=name),
        )
    if view.migration is not None and view.migration.moved_copies:
        yield Picture(
            f"migration-{index}",
            f"Replicas sent between ranks in the migration to {view.name}.",
            partial(pictures.draw_migration, view.migration, name=name),
        )


def _of_traffic(views: Sequence[PlanView]) -> Iterator[Picture]:
    """One heat map a plan, all with the same colours."""
    traffics = [(index, view.name, view.traffic) for index, view in enumerate(views) if view.traffic is not None]
    most = max((float(traffic.rank_matrix.max()) / traffic.num_layers for _, _, traffic in traffics), default=0.0)
    shorts = short_names([view.name for view in views])
    for index, name, traffic in traffics:
        yield Picture(
            f"traffic-{index}",
            f"Tokens that each rank sends to each rank under {name}, one copy a rank, in the mean layer.",
            partial(pictures.draw_traffic, traffic, name=shorts[index], most=most),
        )


def _of_pairs(contents: ReportContents, coactivation: "CoActivation") -> Iterator[Picture]:
    shape, layer = contents.load.shape, coactivation.layer
    if coactivation.num_pairs == 0:
        return
    for name, caption, measure, order in (
        ("tokens", "Tokens that chose both experts", pictures.Measure.TOKENS, pictures.Order.BY_ID),
        (
            "lift",
            "Lift of every pair, experts by id; rare pairs are shrunk towards 1",
            pictures.Measure.LIFT,
            pictures.Order.BY_ID,
        ),
        (
            "lift-ordered",
            "Lift of every pair, similar experts adjacent; rare pairs are shrunk towards 1",
            pictures.Measure.LIFT,
            pictures.Order.BY_LIKENESS,
        ),
    ):
        yield Picture(
            f"coactivation-{name}-layer-{layer}",
            f"{caption}, {layer_name(shape, layer)}.",
            partial(pictures.draw_coactivation, coactivation, shape, measure=measure, order=order),
        )
