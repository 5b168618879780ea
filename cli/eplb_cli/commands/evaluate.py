"""`eplb evaluate`: the balance of a placement under a load."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments import files, options
from eplb_cli.arguments.engine import EngineOpt, EngineOptionsOpt, SourcesOpt, dispatch_of, source_shares
from eplb_cli.arguments.reading import Reading, reads_loads
from eplb_cli.views.metric_rows import layer_objects, metric_facts, window_objects, window_table

if TYPE_CHECKING:
    from eplb_traces import RoutingTrace

TraceOpt = Annotated[
    Path | None,
    typer.Option("--trace", metavar="TRACE", help="Token-level trace: count the ranks and nodes that a token visits."),
]


@reads_loads
def evaluate(  # noqa: PLR0913  # one parameter a word of the command line
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
    *,
    reading: Reading,
    as_json: options.JsonOpt = False,
) -> None:
    """Evaluate the placement in PLAN under LOAD, which need not be the load it was planned for."""
    import eplb
    from eplb.formats import ReadHints

    by = dispatch_of(dispatch, engine, engine_options)
    source = files.read_source(load_paths, reading)
    files.note_reading(source)
    if trace_path is not None:
        _refuse_columns_of_two_kinds(source, len(load_paths), reading)
    load = source.load()
    plan = files.read_plan_for(load, plan_path, format, ReadHints(num_ranks=ranks, num_nodes=nodes))
    trace = None if trace_path is None else _read_trace(trace_path, reading)
    shares = source_shares(sources, plan.placement.topology.num_ranks)
    if by.target is not None:
        by.target.check(plan.placement)
    with output.progress("evaluating"):
        evaluation = eplb.evaluate(plan.placement, load, by.rule, sources=shares, trace=trace)
    if as_json:
        head = {"strategy": plan.strategy, "dispatch": evaluation.dispatch.value, **by.metric_fields(evaluation)}
        by_window = {"windows": window_objects(evaluation), "layers": layer_objects(evaluation)}
        output.json_object({**head, **evaluation.summary(), **by_window})
        return
    title = f"{plan_path.name} ({plan.strategy}) under {files.title_of(load_paths)}, {evaluation.dispatch} dispatch"
    output.facts(title, [*by.metric_fact(evaluation), *metric_facts(evaluation.summary())])
    if by.target is not None:
        for text in by.target.notes(load.shape):
            output.line(f"note: {text}")
    window_table(evaluation)


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


def _read_trace(path: Path, reading: Reading) -> "RoutingTrace":
    """The trace, of the model and without the experts that the options describe; the others are about LOAD."""
    import eplb

    said = reading.options()
    return eplb.read_trace(
        path,
        said.num_experts,
        top_k=said.top_k,
        moe_layer_ids=said.moe_layer_ids,
        num_hidden_layers=said.num_hidden_layers,
        ignore_ids=said.ignore_ids,
        ignore_columns=said.ignore_columns,
    )
