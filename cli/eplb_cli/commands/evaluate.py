"""`eplb evaluate`: the balance of a placement under a load."""

from pathlib import Path
from typing import Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments import files, options
from eplb_cli.views.metric_rows import metric_facts, window_objects, window_table

TraceOpt = Annotated[
    Path | None,
    typer.Option("--trace", metavar="TRACE", help="Token-level trace: count the ranks and nodes that a token visits."),
]


def evaluate(  # noqa: PLR0913  # one parameter a word of the command line
    plan_path: options.PlanArg,
    load_path: options.LoadArg,
    format: options.PlanFormatOpt = None,
    ranks: options.HintRanksOpt = None,
    nodes: options.HintNodesOpt = None,
    dispatch: options.DispatchOpt = "even",
    window: options.WindowOpt = None,
    trace_path: TraceOpt = None,
    num_experts: options.NumExpertsOpt = None,
    as_json: options.JsonOpt = False,
) -> None:
    """Evaluate the placement in PLAN under LOAD, which need not be the load it was planned for."""
    import eplb
    from eplb.formats import ReadHints

    load = files.read_load(load_path, num_experts, window)
    plan = files.read_plan_for(load, plan_path, format, ReadHints(num_ranks=ranks, num_nodes=nodes))
    trace = None if trace_path is None else eplb.read_trace(trace_path, num_experts)
    with output.progress("evaluating"):
        evaluation = eplb.evaluate(plan.placement, load, dispatch, trace=trace)
    if as_json:
        head = {"strategy": plan.strategy, "dispatch": evaluation.dispatch.value}
        output.json_object({**head, **evaluation.summary(), "windows": window_objects(evaluation)})
        return
    title = f"{plan_path.name} ({plan.strategy}) under {load_path.name}, {evaluation.dispatch} dispatch"
    output.facts(title, metric_facts(evaluation.summary()))
    window_table(evaluation)
