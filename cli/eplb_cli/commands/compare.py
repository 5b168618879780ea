"""`eplb compare`: every strategy on one load, or one load on every engine."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments import choices, files, options
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
from eplb_cli.arguments.reading import Reading, reads_loads
from eplb_cli.arguments.topology import topology_from_options
from eplb_cli.views import cost_rows
from eplb_cli.views.engine_rows import show_engines
from eplb_cli.views.gain_rows import before_object
from eplb_cli.views.metric_rows import layer_objects

if TYPE_CHECKING:
    from eplb.planning.planner import Comparison

_HEADINGS = ("strategy", "max/mean", "worst", "gap %", "worst", "vLLM", "SGLang", "duplicates", "ms")
_LEGEND = """\
max/mean: load of the busiest rank over the mean, mean and worst of the layers
gap: above the proven lower bound; vLLM, SGLang: what they call balancedness
duplicates: slots with an expert that its rank holds already; ms: to plan"""


@reads_loads
@predicts_steps
def compare(  # noqa: PLR0913  # one parameter a word of the command line
    load_paths: options.LoadsArg,
    ranks: options.RanksOpt,
    nodes: options.NodesOpt = 1,
    redundant: options.RedundantOpt = 0,
    strategies: Annotated[
        str | None,
        typer.Option(
            "--strategies",
            metavar="A,B",
            parser=choices.STRATEGY.several,
            autocompletion=choices.STRATEGY.complete,
            help="Names, or your own as module:object or file.py:object, with commas.",
            show_default="all but ilp, which searches for long, and traffic, which needs a trace",
        ),
    ] = None,
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

    With --engine all: for every engine, its own algorithm and eplb's plan, both under the engine's dispatch rule.
    """
    import eplb
    from eplb.core.baseline import EXPERTS_IN_ORDER
    from eplb.planning.gain import baseline, mean_max_over_mean
    from eplb.strategies import ONLY_WHEN_NAMED, STRATEGIES
    from eplb_traces.scale.executors import IN_ORDER

    if engine == ALL:
        _refuse_for_all(
            {"--strategies": strategies, "--dispatch": dispatch, "--engine-option": engine_options, "--ray": ray}
        )
    by = None if engine == ALL else dispatch_of(dispatch, engine, engine_options)
    predictor = cost.step_cost(sources, seed)
    load = files.read_load(load_paths, reading)
    topology = topology_from_options(load.num_experts, ranks=ranks, nodes=nodes, redundant=redundant)
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
    quick = [name for name in STRATEGIES if name not in ONLY_WHEN_NAMED]
    names = quick if strategies is None else strategies.split(",")
    with cluster(ray) as workers, output.progress("comparing", len(names)) as step:
        compare_one = partial(
            eplb.compare, load, topology, groups=groups, dispatch=by.rule, sources=shares, seed=seed
        )  # with a list of one name
        of_names = (workers or IN_ORDER).map(compare_one, [[name] for name in names], lambda number, result: step())
    results: list[Comparison] = [result for of_name in of_names for result in of_name]
    before = baseline(load, topology, by.rule, shares)
    steps = cost_rows.predict_each(predictor, batch, [result.evaluation for result in results])
    choices = cost_rows.choices_of(predictor, batch)
    if as_csv:
        rows = [_as_object(result, by) | cost_rows.fields(step) for result, step in zip(results, steps, strict=True)]
        output.csv_rows(rows)
        return
    if as_json:
        head = {"load": files.listed(load_paths), "dispatch": by.rule.value, **cost_rows.head(predictor, choices)}
        head["before"] = before_object(EXPERTS_IN_ORDER, before)
        rows = [_as_object(result, by) | cost_rows.fields(step) for result, step in zip(results, steps, strict=True)]
        output.json_object({**head, "strategies": rows})
        return
    shape = f"{output.counted(ranks, 'rank')}, {output.counted(topology.num_nodes, 'node')}, {topology.num_slots} slots"
    windows = f"{load.num_windows} windows of " if load.num_windows > 1 else ""
    model = f"{windows}{load.num_layers} layers of {load.num_experts} experts"
    title = f"{files.title_of(load_paths)}: {model} on {shape}{by.in_title}"
    output.table(title, _HEADINGS, [_row(result) for result in results], legend=_LEGEND)
    output.line(f"today ({EXPERTS_IN_ORDER}, no redundant ones): max/mean {mean_max_over_mean(before):.4f}")
    balance = [(r.plan.strategy, r.evaluation.balance["max_over_mean_mean"]) for r in results]
    cost_rows.table(predictor, "strategy", [(*of, step) for of, step in zip(balance, steps, strict=True)])
    cost_rows.note(predictor, choices)
    if by.target is not None:
        of_engine = [(result.plan.strategy, by.target.metric(result.evaluation)[1]) for result in results]
        output.table(by.target.metric(results[0].evaluation)[0], ("strategy", "value"), of_engine)


def _refuse_for_all(given: Mapping[str, object]) -> None:
    for option, value in given.items():
        if value:
            raise typer.BadParameter("has no effect with --engine all", param_hint=option)


def _row(result: "Comparison") -> tuple[output.Cell, ...]:
    summary = result.evaluation.summary()
    return (
        result.plan.strategy,
        summary["max_over_mean_mean"],
        summary["max_over_mean_worst"],
        output.percentage(summary["gap_mean"]),
        output.percentage(summary["gap_worst"]),
        summary["balancedness_vllm"],
        summary["balancedness_sglang"],
        summary["duplicate_slots"],
        output.milliseconds(result.plan.seconds),
    )


def _as_object(result: "Comparison", by: Dispatch) -> dict[str, object]:
    plan = result.plan
    head = {"strategy": plan.strategy, "status": plan.status.value, "seconds": plan.seconds, "seed": plan.seed}
    of_engine = by.metric_fields(result.evaluation)
    by_layer = {"notes": list(plan.notes), "layers": layer_objects(result.evaluation)}
    return head | of_engine | result.evaluation.summary() | by_layer
