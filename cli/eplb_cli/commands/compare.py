"""`eplb compare`: strategies and placement files on one load, or one load on every engine."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from eplb_cli import output
from eplb_cli.arguments import files, options
from eplb_cli.arguments.cluster import RayOpt, cluster
from eplb_cli.arguments.cost_options import CostOptions, predicts_steps
from eplb_cli.arguments.engine import (
    ALL,
    Dispatch,
    EngineOptionsOpt,
    EngineOrAllOpt,
    SourcesOpt,
    dispatch_of,
    source_shares,
)
from eplb_cli.arguments.parse import refuse_typed
from eplb_cli.arguments.plan_files import common_topology, read_plans
from eplb_cli.arguments.plan_options import NodesOpt, RanksOpt
from eplb_cli.arguments.reading import Reading, reads_loads
from eplb_cli.arguments.topology import topology_from_options
from eplb_cli.views import cost_rows
from eplb_cli.views.compare_rows import Compared, Row
from eplb_cli.views.engine_rows import show_engines
from eplb_cli.views.topology_rows import note_ignored_weights

if TYPE_CHECKING:
    from eplb.core.problem import Plan
    from eplb.core.topology import Topology
    from eplb.planning.planner import Comparison
    from eplb_traces import ExpertLoad

_FOR_STRATEGIES: Final = ("--groups", "--ray")

PlansOpt = Annotated[
    list[Path] | None,
    typer.Option(
        "--plan",
        metavar="PLAN",
        help="A placement to show as a row, of any dialect in `eplb formats`; may be repeated. Without --strategies no "
        "other rows are shown.",
        show_default=False,
    ),
]
StrategiesOpt = Annotated[
    str | None,
    options.strategies_option("all but ilp, which searches for long, and traffic, which needs a trace"),
]


@reads_loads
@predicts_steps
def compare(  # noqa: PLR0913  # one parameter a word of the command line
    context: typer.Context,
    load_paths: options.LoadsArg,
    plan_paths: PlansOpt = None,
    format: options.PlanDialectOpt = None,
    ranks: RanksOpt = None,
    nodes: NodesOpt = None,
    redundant: options.RedundantOpt = 0,
    strategies: StrategiesOpt = None,
    groups: options.GroupsOpt = None,
    dispatch: options.DispatchOpt = None,
    engine: EngineOrAllOpt = None,
    engine_options: EngineOptionsOpt = None,
    sources: SourcesOpt = None,
    seed: options.SeedOpt = 0,
    ray: RayOpt = None,
    *,
    cost: CostOptions,
    reading: Reading,
    as_csv: options.CsvOpt = False,
    as_json: options.JsonOpt = False,
) -> None:
    """Plan LOAD with every strategy and evaluate the plans by the same metrics.

    With --plan, placement files are rows of the same table; ranks and nodes are those of the files.

    With --engine all: for every engine, its own algorithm and eplb's plan, both under the engine's dispatch rule.
    """
    import eplb
    from eplb.formats import ReadHints
    from eplb.planning.gain import baseline
    from eplb.strategies import ONLY_WHEN_NAMED, STRATEGIES

    if engine == ALL:
        _refuse_for_all(
            {
                **{"--strategies": strategies, "--dispatch": dispatch, "--engine-option": engine_options},
                **{"--ray": ray, "--plan": plan_paths},
            }
        )
    by = None if engine == ALL else dispatch_of(dispatch, engine, engine_options)
    predictor = cost.step_cost(sources, seed)
    unused = _FOR_STRATEGIES if predictor else (*_FOR_STRATEGIES, "--seed")
    _check_plan_options(context, plan_paths, strategies, unused)
    load = files.read_load(load_paths, reading)
    plans = read_plans(load, plan_paths or [], format, ReadHints(num_ranks=ranks, num_nodes=nodes))
    topology = common_topology(plans) if plans else topology_from_options(
        load.num_experts, ranks=ranks, nodes=nodes, redundant=redundant
    )  # fmt: skip
    shares = source_shares(sources, topology.num_ranks)
    batch = None if predictor is None else predictor.batch(load, topology)
    if by is None:
        show_engines(
            load,
            topology,
            files.title_of(load_paths),
            groups=groups,
            sources=shares,
            seed=seed,
            cost=predictor,
            batch=batch,
            as_csv=as_csv,
            as_json=as_json,
        )
        return
    quick = [] if plans else [name for name in STRATEGIES if name not in ONLY_WHEN_NAMED]
    names = quick if strategies is None else strategies.split(",")
    compare_one = partial(
        eplb.compare, load, topology, groups=groups, dispatch=by.rule, sources=shares, seed=seed
    )  # with a list of one name
    rows = _of_files(plans, load, by, shares) + _of_strategies(names, compare_one, ray)
    compared = Compared(
        rows=rows,
        heading="plan" if plans else "strategy",
        title=f"{files.title_of(load_paths)}: {_described(load, topology)}{by.in_title}",
        by=by,
        before=baseline(load, topology, by.rule, shares),
        predictor=predictor,
        batch=batch,
        steps=cost_rows.predict_each(predictor, batch, [row.evaluation for row in rows]),
    )
    if as_csv:
        output.csv_rows(compared.objects())
    elif as_json:
        output.json_object({"load": files.listed(load_paths), **compared.as_object()})
    else:
        compared.show()


def _refuse_for_all(given: Mapping[str, object]) -> None:
    for option, value in given.items():
        if value:
            raise typer.BadParameter("has no effect with --engine all", param_hint=option)


def _check_plan_options(
    context: typer.Context, plans: Sequence[Path] | None, strategies: str | None, for_strategies: Sequence[str]
) -> None:
    """Refuse what would be ignored, or is missing, with --plan or without it."""
    if not plans:
        refuse_typed(context, ("--plan-from",), "needs --plan")
        if context.params["ranks"] is None and not isinstance(context.params["nodes"], tuple):
            raise typer.BadParameter("needed, unless --plan gives it", param_hint="--ranks")
        return
    refuse_typed(context, ("--redundant",), "cannot be chosen with --plan, which holds the slots")
    if strategies is None:
        refuse_typed(context, for_strategies, "has no effect with --plan and without --strategies")


def _of_files(
    plans: "Mapping[str, Plan]", load: "ExpertLoad", by: Dispatch, shares: Sequence[float] | None
) -> list[Row]:
    """The placements as the judge finds them under the rule, and under the limits of the engine."""
    import eplb
    from eplb.errors import FormatError

    for name, plan in plans.items():
        try:
            if by.target is not None:
                by.target.check(plan.placement)
        except FormatError as error:
            raise FormatError(f"plan {name}: {error}") from error
    weighted = next((plan for plan in plans.values() if plan.placement.replica_weights is not None), None)
    if weighted is not None:
        note_ignored_weights(weighted.placement, by.rule)
    return [
        Row(name, plan, eplb.evaluate(plan.placement, load, by.rule, sources=shares), is_from_file=True)
        for name, plan in plans.items()
    ]


def _of_strategies(
    names: Sequence[str], compare_one: Callable[[list[str]], "Iterable[Comparison]"], ray: str | None
) -> list[Row]:
    """A plan of each, made here or by Ray's workers."""
    from eplb_traces.scale.executors import IN_ORDER

    if not names:
        return []
    with cluster(ray) as workers, output.progress("comparing", len(names)) as step:
        of_names = (workers or IN_ORDER).map(compare_one, [[name] for name in names], lambda number, result: step())
    return [Row(made.plan.strategy, made.plan, made.evaluation) for of_name in of_names for made in of_name]


def _described(load: "ExpertLoad", topology: "Topology") -> str:
    ranks, nodes = output.counted(topology.num_ranks, "rank"), output.counted(topology.num_nodes, "node")
    windows = f"{load.num_windows} windows of " if load.num_windows > 1 else ""
    model = f"{windows}{load.num_layers} layers of {load.num_experts} experts"
    return f"{model} on {ranks}, {nodes}, {topology.num_slots} slots"
