"""Gathers everything that a report shows, as arrays and text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np

from eplb.core.baseline import EXPERTS_IN_ORDER
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.expert_bytes import known_expert_bytes
from eplb.core.migration import Migration
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.evaluation.metrics import evaluate
from eplb.evaluation.step_cost import StepCost
from eplb.evaluation.traffic import expected_traffic, fitting_sources
from eplb.planning.gain import in_order_under
from eplb.planning.planner import plan
from eplb.report.plan_view import PlanView
from eplb.report.summary_text import about_steps, over_all, per_layer
from eplb.report.traffic_text import max_over_mean_expert, traffic_of_layer, traffic_over_all
from eplb.strategies import StrategyLike
from eplb_traces import ExpertLoad, RoutingTrace
from eplb_traces.display import cut, facts_html
from eplb_traces.domain_load import load_by_domain
from eplb_traces.windows import load_by_window

DEFAULT_STRATEGY: Final = "greedy"
"""The strategy that plans if no plan is given."""


@final
@dataclass(frozen=True, eq=False)
class ReportContents:
    """Everything that a report shows. All plans are for one model and the same ranks and nodes; slots may differ."""

    title: str
    """Source of the load: a file name."""
    load: ExpertLoad
    trace: RoutingTrace | None
    """The choices of every token; None if only loads are known."""
    windows: ExpertLoad | None
    """The load if it has several windows; None if there is only one."""
    plans: tuple[PlanView, ...]
    """At least two, the first is "before"; none if there was neither a plan nor a topology."""
    summary_text: tuple[str, ...]
    """[1 + L] the summary of all layers, one sentence per line, then one sentence for each layer."""
    expert_bytes: float | None
    """Bytes of one expert of one layer; None where unknown."""
    cost: StepCost | None = None
    """What the predicted steps depend on; None if nothing is predicted."""
    choices: str = ""
    """Where the choices of the predicted step come from."""
    parts: ExpertLoad | None = None
    """The load of each part of the traffic, one labelled window each: of files, or of the domains of the trace; None if
    there is only one part."""

    @property
    def about_steps(self) -> tuple[str, ...]:
        """What the predicted milliseconds are of, in sentences; empty if nothing is predicted."""
        return () if self.cost is None else about_steps(self.cost, self.choices)

    def __repr__(self) -> str:
        return cut(f"ReportContents({self.title}: {', '.join(view.name for view in self.plans) or 'no plans'})")

    def _repr_html_(self) -> str:
        metrics = {view.name: view.evaluation for view in self.plans}
        return facts_html(self.title, {"summary": self.summary_text[0].splitlines(), **metrics})

    @property
    def worst_layer(self) -> int:
        """The layer with the largest max/mean under the first plan, mean of the windows; without plans, of experts."""
        if not self.plans:
            return int(np.nanargmax(max_over_mean_expert(self.load)))
        return int(np.nanargmax(self.plans[0].evaluation.max_over_mean))


def gather(  # noqa: PLR0913  # the public call: everything a report depends on
    source: ExpertLoad | RoutingTrace,
    plans: Mapping[str, Placement] | None = None,
    topology: Topology | None = None,
    *,
    strategy: StrategyLike = DEFAULT_STRATEGY,
    window: int | None = None,
    dispatch: str = DispatchRule.EVEN,
    sources: Sequence[float] | None = None,
    title: str = "load",
    expert_bytes: float | None = None,
    cost: StepCost | None = None,
    parts: ExpertLoad | None = None,
) -> ReportContents:
    """Evaluate the plans of a report and compare them with a first one.

    With several plans, the first is the one the others are compared with. A single plan is compared with experts in
    order on its topology. Without a plan, `strategy` makes one for `topology`. Without a topology either, the report
    shows the load and the co-activation of the experts alone.

    Parameters
    ----------
    source
        The recorded load or trace.
    plans
        Placements by name, in the order shown.
    topology
        The topology to plan for; not used with `plans`.
    strategy
        What plans if no plan is given: a name or a strategy of your own, as in `plan`.
    window
        For a trace: steps per window. For a load: number of windows to sum into one. As in
        `eplb_traces.windows.load_by_window`.
    dispatch
        The rule by which an expert's tokens are split over its replicas; the plan made for `topology` is for it.
    sources
        [R] share of the tokens that each rank sends; None: all alike.
    title
        Source of the load, shown in the report.
    expert_bytes
        Bytes of one expert of one layer, for migrations and memory. None: those of `cost`, or of the recording; where
        both are unknown, replicas are counted in slots.
    cost
        Model, GPU and step to predict the plans' milliseconds with, on one batch of choices; None: not predicted.
    parts
        The load of each part of the traffic, to be compared: one labelled window each; None: the domains of a trace.

    Raises
    ------
    InputError
        If no expert has a token, a plan is for another model, plans differ in ranks or nodes, `sources` or `cost` are
        given although there are neither plans nor a topology, or `parts` are of another model or have no labels.
    """
    given = expert_bytes if expert_bytes is not None or cost is None else cost.expert_bytes
    expert_bytes = known_expert_bytes(given, source.shape)
    trace = source if isinstance(source, RoutingTrace) else None
    load = load_by_window(source, window)
    if not load.tokens.any():
        raise InputError("load: every count is zero, nothing to show")
    windows = load if load.num_windows > 1 else None
    parts = _parts(parts, load, trace)
    named = dict(plans or {})
    if not named and topology is not None:
        made = plan(load, topology, strategy, dispatch=dispatch, sources=sources)
        named[made.strategy] = made.placement
    shown = _plans_to_show(load, named, DispatchRule.named(dispatch))
    if not shown and (sources is not None or cost is not None):
        raise InputError("topology = None: expected a topology to plan for, or plans, for `sources` and `cost`")
    batch = None if cost is None else cost.batch(source, next(iter(shown.values())).topology)
    views: list[PlanView] = []
    for name, placement in shown.items():
        evaluation = evaluate(placement, load, dispatch, sources=sources)
        views.append(
            PlanView(
                name,
                placement,
                evaluation,
                evaluation.bound,
                _migration(views[0].placement, placement, expert_bytes) if views else None,
                None
                if trace is None
                else expected_traffic(placement, trace, sources=fitting_sources(trace, placement.topology)),
                None if windows is None else evaluation.max_over_mean_by_window,
                None if cost is None or batch is None else cost.predict(placement, batch, evaluation.dispatch),
                None
                if parts is None
                else evaluate(placement, parts, dispatch, sources=sources).max_over_mean_by_window,
            )
        )
    choices = "" if cost is None or batch is None else f"{batch.origin}{cost.scaling(len(batch.layers))}"
    steps = () if cost is None else about_steps(cost, choices)
    summary = _summary(title, load, views, steps)
    return ReportContents(title, load, trace, windows, tuple(views), summary, expert_bytes, cost, choices, parts)


def _parts(given: ExpertLoad | None, load: ExpertLoad, trace: RoutingTrace | None) -> ExpertLoad | None:
    """The parts given, else the domains of the trace; None if there is only one."""
    if given is None:
        return None if trace is None else load_by_domain(trace)
    if (given.num_layers, given.num_experts) != (load.num_layers, load.num_experts):
        raise InputError(
            f"parts of {given.num_layers} layers x {given.num_experts} experts: the load has {load.num_layers} x "
            f"{load.num_experts}"
        )
    if not given.labels:
        raise InputError("parts: expected labels, the name of each part")
    return given if given.num_windows > 1 else None


def _summary(title: str, load: ExpertLoad, views: Sequence[PlanView], steps: Sequence[str]) -> tuple[str, ...]:
    """[1 + L] sentences about the plans, or without plans about the load."""
    layers = range(load.num_layers)
    if not views:
        return traffic_over_all(title, load), *(traffic_of_layer(layer, load) for layer in layers)
    return "\n".join((over_all(title, load, views), *steps)), *(per_layer(layer, load, views) for layer in layers)


def _plans_to_show(load: ExpertLoad, plans: dict[str, Placement], rule: DispatchRule) -> dict[str, Placement]:
    for name, placement in plans.items():
        _check_fits(name, placement, load, next(iter(plans.values())).topology)
    if len(plans) != 1:
        return plans
    ((name, placement),) = plans.items()
    before = in_order_under(load, placement.topology, rule)
    return {EXPERTS_IN_ORDER: before, name: placement}


def _check_fits(name: str, placement: Placement, load: ExpertLoad, first: Topology) -> None:
    placement.check_model(load.shape, name=f"plan {name}")
    ranks, nodes = placement.topology.num_ranks, placement.topology.nodes
    if (ranks, nodes) != (first.num_ranks, first.nodes):
        raise InputError(
            f"plan {name} is for {ranks} ranks on {nodes} nodes: expected {first.num_ranks} ranks on "
            f"{first.nodes} nodes as the first plan has"
        )


def _migration(before: Placement, after: Placement, expert_bytes: float | None) -> Migration | None:
    same = before.topology.slots_per_rank == after.topology.slots_per_rank
    return Migration.between(before, after, expert_bytes) if same else None
