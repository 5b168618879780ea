"""`eplb evaluate`: the balance of a placement under a load."""

from pathlib import Path
from typing import Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments import choices, files, options
from eplb_cli.arguments.cost_options import CostOptions, predicts_steps
from eplb_cli.arguments.engine import EngineOpt, EngineOptionsOpt, SourcesOpt, dispatch_of, source_shares
from eplb_cli.arguments.parse import refuse_typed
from eplb_cli.arguments.reading import Reading, reads_loads
from eplb_cli.arguments.token_trace import read_token_trace
from eplb_cli.views import cost_rows, traffic_rows
from eplb_cli.views.metric_rows import layer_objects, metric_facts, window_objects, window_table
from eplb_cli.views.topology_rows import note_ignored_weights

TraceOpt = Annotated[
    Path | None,
    typer.Option("--trace", metavar="TRACE", help="Token-level trace: count the ranks and nodes that a token visits."),
]
TrafficOpt = Annotated[
    bool, typer.Option("--traffic", help="With --trace: token copies between ranks and nodes, by way to send them.")
]
HiddenSizeOpt = Annotated[
    int | None,
    typer.Option("--hidden-size", metavar="H", help="With --traffic: values of a token, for bytes and milliseconds."),
]
ActivationOpt = Annotated[
    str,
    typer.Option(
        "--activation",
        metavar="TYPE",
        parser=choices.ACTIVATION.one,
        autocompletion=choices.ACTIVATION.complete,
        help="With --hidden-size: fp8, bf16 or fp32.",
    ),
]


@reads_loads
@predicts_steps
def evaluate(  # noqa: PLR0913  # one parameter a word of the command line
    context: typer.Context,
    plan_path: options.PlanArg,
    load_paths: options.LoadsArg,
    format: options.PlanDialectOpt = None,
    ranks: options.HintRanksOpt = None,
    nodes: options.HintNodesOpt = None,
    dispatch: options.DispatchOpt = None,
    engine: EngineOpt = None,
    engine_options: EngineOptionsOpt = None,
    sources: SourcesOpt = None,
    trace_path: TraceOpt = None,
    hidden_size: HiddenSizeOpt = None,
    activation: ActivationOpt = "bf16",
    *,
    traffic: TrafficOpt = False,
    cost: CostOptions,
    reading: Reading,
    as_csv: options.CsvOpt = False,
    as_json: options.JsonOpt = False,
) -> None:
    """Evaluate the placement in PLAN under LOAD, which need not be the load it was planned for."""
    import eplb
    from eplb.formats import ReadHints

    token_bytes = _token_bytes(context, hidden_size, activation, traffic=traffic, has_trace=trace_path is not None)
    by = dispatch_of(dispatch, engine, engine_options)
    predictor = cost.step_cost(sources)
    source = files.read_source(load_paths, reading)
    files.note_reading(source)
    if trace_path is not None:
        _refuse_columns_of_two_kinds(source, len(load_paths), reading)
    load = source.load()
    files.note_windows(source, load)
    plan = files.read_plan_for(load, plan_path, format, ReadHints(num_ranks=ranks, num_nodes=nodes))
    trace = None if trace_path is None else read_token_trace(trace_path, reading)
    shares = source_shares(sources, plan.placement.topology.num_ranks)
    if by.target is not None:
        by.target.check(plan.placement)
    with output.progress("evaluating"):
        evaluation = eplb.evaluate(plan.placement, load, by.rule, sources=shares, trace=trace)
        batch = None if predictor is None else predictor.batch(trace or source.content, plan.placement.topology)
        (step,) = cost_rows.predict_each(predictor, batch, [evaluation])
        copies = traffic_rows.traffic_of(plan.placement, trace, by.rule) if traffic and trace is not None else []
    note_ignored_weights(plan.placement, by.rule)
    if as_csv:
        output.csv_rows(layer_objects(evaluation))
        return
    if as_json:
        head = {"strategy": plan.strategy, "dispatch": evaluation.dispatch.value, **by.metric_fields(evaluation)}
        predicted = cost_rows.head(predictor, cost_rows.choices_of(predictor, batch)) | cost_rows.fields(step)
        by_window = {"windows": window_objects(evaluation), "layers": layer_objects(evaluation)}
        extra = {"traffic": traffic_rows.as_object(copies, token_bytes)} if copies else {}
        output.json_object({**head, **evaluation.summary(), **predicted, **by_window, **extra})
        return
    title = f"{plan_path.name} ({plan.strategy}) under {files.title_of(load_paths)}, {evaluation.dispatch} dispatch"
    facts = [*by.metric_fact(evaluation), *metric_facts(evaluation.summary()), *cost_rows.facts(step)]
    output.facts(f"{title}{cost_rows.in_title(predictor)}", facts)
    if by.target is not None:
        for text in by.target.notes(load.shape):
            output.line(f"note: {text}")
    window_table(evaluation)
    cost_rows.note(predictor, cost_rows.choices_of(predictor, batch))
    if copies:
        traffic_rows.show(copies, token_bytes)


def _refuse_columns_of_two_kinds(source: files.Source, num_files: int, reading: Reading) -> None:
    """A column of a load is an expert, one of a trace a choice."""
    from eplb_traces import RoutingTrace

    holds_choices = isinstance(source.content, RoutingTrace) or source.num_counted_traces == num_files
    if reading.ignore_columns is not None and not holds_choices:
        raise typer.BadParameter(
            "would leave experts out of LOAD and choices out of TRACE: first write TRACE without the columns, with "
            "`eplb trace convert`",
            param_hint="--ignore-columns",
        )


def _token_bytes(
    context: typer.Context, hidden_size: int | None, activation: str, *, traffic: bool, has_trace: bool
) -> float | None:
    """Bytes of a token's activations, None if unknown; refuses options that would be ignored."""
    from eplb.evaluation.link_traffic import Activation

    if traffic and not has_trace:
        raise typer.BadParameter("needs --trace", param_hint="--traffic")
    if not traffic:
        refuse_typed(context, ("--hidden-size", "--activation"), "needs --traffic")
    if hidden_size is None:
        refuse_typed(context, ("--activation",), "needs --hidden-size")
        return None
    if activation not in list(Activation):
        raise typer.BadParameter(f"{activation}: expected one of {', '.join(Activation)}", param_hint="--activation")
    return Activation(activation).token_bytes(hidden_size)
