"""Knows which pictures a report has, in which order and with which words; draws none itself."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, final

from eplb.errors import InputError
from eplb.planning.redundancy_sweep import SweepPoint, sweep
from eplb.report import pictures
from eplb.report.contents import ReportContents
from eplb.report.plan_view import PlanView
from eplb.report.summary_text import layer_name, megabytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from eplb_traces.coactivation.layer_coactivation import CoActivation

_SWEEP_STEPS = (0, 1, 2, 4, 8)


@final
@dataclass(frozen=True)
class Picture:
    """A picture to be drawn."""

    name: str
    """File name without its suffix."""
    caption: str
    draw: "Callable[[], Axes]"


@final
@dataclass(frozen=True, eq=False)
class Closeups:
    """What a report shows of single layers, and what it plans by itself."""

    layers: tuple[int, ...]
    coactivations: "tuple[CoActivation, ...]"
    """One for each of `layers`; none without a trace."""
    redundancy: tuple[SweepPoint, ...]
    """None for a load without tokens, and where only one number of redundant experts fits."""


def close_up(contents: ReportContents, layers: Sequence[int]) -> Closeups:
    """Count co-activation in some layers, in the one that is worst before if none is named, and sweep over redundancy.

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
    return Closeups(chosen, found, _redundancy(contents))


def _redundancy(contents: ReportContents) -> tuple[SweepPoint, ...]:
    machine, num_experts = contents.plans[0].placement.topology, contents.load.num_experts
    least, most = -num_experts % machine.num_ranks, (machine.num_ranks - 1) * num_experts
    numbers = [number for step in _SWEEP_STEPS if (number := least + step * machine.num_ranks) <= most]
    if len(numbers) < 2 or not contents.load.total.any():
        return ()
    load = contents.load if contents.windows is None else contents.windows
    return sweep(load, machine.num_ranks, machine.num_nodes, numbers, contents.expert_bytes)


def album(contents: ReportContents, closeups: Closeups) -> Iterator[Picture]:
    """Every picture for which there is something to show, the most telling first."""
    views, shape = contents.plans, contents.load.shape
    yield Picture(
        "layer-balance",
        "Busiest over mean rank of every layer: how much longer a layer takes than it would with equal ranks.",
        partial(pictures.draw_layer_balance, views),
    )
    for layer in closeups.layers:
        caption = contents.verdicts[1 + layer]
        yield Picture(f"rank-load-layer-{layer}", f"{caption[0].upper()}{caption[1:]}.",
                      partial(pictures.draw_rank_load, views, layer, shape))  # fmt: skip
    yield Picture("expert-load", "Tokens of every expert over its layer's mean.",
                  partial(pictures.draw_expert_load, contents.load))  # fmt: skip
    if contents.windows is not None:
        yield Picture(
            "balance-over-windows",
            f"Balance in {contents.windows.num_windows} windows of the traffic, one after the other: drift shows here.",
            partial(pictures.draw_balance_over_windows, views, contents.windows),
        )
    for index, view in enumerate(views):
        yield from _of_plan(index, view, shape.num_expert_groups)
    if contents.trace is not None:
        yield Picture(
            "balance-and-traffic",
            "What a plan gains at the busiest rank and what it costs on the wire.",
            partial(pictures.draw_balance_and_traffic, views),
        )
    if closeups.redundancy:
        each = "" if contents.windows is None else ", in each window by itself"
        yield Picture(
            "redundancy",
            f"What greedy plans reach with more and with fewer redundant experts{each}, and their memory if an expert "
            f"of a layer has {megabytes(contents.expert_bytes)}.",
            partial(pictures.draw_redundancy, closeups.redundancy),
        )
    for coactivation in closeups.coactivations:
        yield from _of_pairs(contents, coactivation)


def _of_plan(index: int, view: PlanView, num_expert_groups: int) -> Iterator[Picture]:
    if (view.placement.logical_replica_count > 1).any():
        yield Picture(
            f"replica-counts-{index}",
            f"Copies of every expert in {view.name}.",
            partial(pictures.draw_replica_counts, view.placement, num_expert_groups=num_expert_groups, name=view.name),
        )
    if view.migration is not None and view.migration.moved_copies:
        yield Picture(
            f"migration-{index}",
            f"Expert copies that travel between ranks on the way to {view.name}.",
            partial(pictures.draw_migration, view.migration, name=view.name),
        )


def _of_pairs(contents: ReportContents, coactivation: "CoActivation") -> Iterator[Picture]:
    shape, layer = contents.load.shape, coactivation.layer
    if coactivation.num_pairs == 0:
        return
    for name, words, measure, order in (
        ("tokens", "Tokens that chose both experts", pictures.Measure.TOKENS, pictures.Order.BY_ID),
        (
            "lift",
            "Lift of every pair, experts by id, rare pairs drawn towards 1",
            pictures.Measure.LIFT,
            pictures.Order.BY_ID,
        ),
        (
            "lift-ordered",
            "Lift of every pair, like beside like, rare pairs drawn towards 1",
            pictures.Measure.LIFT,
            pictures.Order.BY_LIKENESS,
        ),
    ):
        yield Picture(
            f"coactivation-{name}-layer-{layer}",
            f"{words}, {layer_name(shape, layer)}.",
            partial(pictures.draw_coactivation, coactivation, shape, measure=measure, order=order),
        )
