"""`eplb plan`: from a load, and for a replan the live placement, to a placement file."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from eplb_cli import output
from eplb_cli.arguments import files, options, plan_options
from eplb_cli.arguments.constraints_file import read_constraints
from eplb_cli.arguments.parse import id_list
from eplb_cli.arguments.reading import Reading, reads_loads
from eplb_cli.arguments.token_trace import read_token_trace
from eplb_cli.arguments.topology import topology_from_options
from eplb_cli.commands.plan_front import check_front, show_front
from eplb_cli.commands.replan import Replan, replan
from eplb_cli.views import plan_rows

if TYPE_CHECKING:
    from eplb.core.problem import Plan
    from eplb.evaluation.metrics import Evaluation

_SEVERAL_LOADS = (
    "several loads: `scenario` plans for each alike; other strategies plan for their sum, tokens as they are"
)


@reads_loads
def plan(  # noqa: PLR0913  # one parameter a word of the command line
    context: typer.Context,
    load_paths: options.LoadsArg,
    ranks: plan_options.RanksOpt = None,
    out: plan_options.OutOpt = None,
    nodes: plan_options.NodesOpt = None,
    redundant: plan_options.RedundantOpt = None,
    mindie_config: plan_options.MindieConfigOpt = None,
    strategy: options.StrategyOpt = "auto",
    groups: options.GroupsOpt = None,
    group_mode: options.GroupModeOpt = "free",
    group_price: plan_options.GroupPriceOpt = 0.0,
    dispatch: options.DispatchOpt = "even",
    constraints: plan_options.ConstraintsOpt = None,
    time_limit: plan_options.TimeLimitOpt = None,
    survive: plan_options.SurviveOpt = None,
    trace: plan_options.TraceOpt = None,
    load_cap: plan_options.LoadCapOpt = None,
    previous: plan_options.PreviousOpt = None,
    target: plan_options.TargetOpt = 1.05,
    max_moves: plan_options.MaxMovesOpt = None,
    lost_ranks: plan_options.LostRanksOpt = None,
    expert_bytes: options.ExpertBytesOpt = None,
    format: options.WriteFormatOpt = "native",
    seed: options.SeedOpt = 0,
    *,
    pareto: plan_options.ParetoOpt = False,
    reading: Reading,
    as_json: options.JsonOpt = False,
) -> None:
    """Place the experts of LOAD on ranks, show the metrics of the placement, and write it for an engine."""
    import eplb
    from eplb.core.constraints import Constraints
    from eplb.formats import ReadHints
    from eplb.planning.traffic_front import traffic_front
    from eplb_traces.combine import Combine

    plan_options.check_options(context, previous, strategy, pareto=pareto)
    if pareto:
        check_front(out, has_trace=trace is not None)
    several = len(load_paths) > 1 and reading.how(len(load_paths)) is Combine.WORKLOADS
    load = files.read_load(load_paths, reading)
    if previous is None:
        topology = topology_from_options(
            load.num_experts, ranks=ranks, nodes=nodes, redundant=redundant, mindie_config=mindie_config
        )
        if pareto and trace is not None:
            with output.progress("planning"):
                points = traffic_front(load, topology, read_token_trace(trace, reading), groups=groups, seed=seed)
            show_front(points, out, as_json=as_json)
            return
        with output.progress("planning"):
            made = eplb.plan(
                load,
                topology,
                _strategy(strategy, several=several, survive=survive),
                groups=groups,
                group_mode=group_mode,
                group_price=group_price,
                dispatch=dispatch,
                constraints=Constraints() if constraints is None else read_constraints(constraints),
                time_limit_s=time_limit,
                survive=survive,
                trace=None if trace is None else read_token_trace(trace, reading),
                load_cap=load_cap,
                seed=seed,
            )
    else:
        hints = ReadHints(num_ranks=ranks, num_nodes=nodes)
        lost = () if lost_ranks is None else id_list(lost_ranks, "--lost-ranks")
        made = replan(load, Replan(previous, hints, lost, target, max_moves, expert_bytes), seed=seed)
    if several:
        made = replace(made, notes=(_SEVERAL_LOADS, *made.notes))
    with output.progress("evaluating"):
        evaluation = eplb.evaluate(made.placement, load, dispatch)
    _report(made, evaluation, out, format, as_json=as_json)


def _strategy(name: str, *, several: bool, survive: str | None) -> str:
    """`auto` would take several files as a history for a backtest."""
    return "scenario" if name == "auto" and several and survive is None else name


def _report(made: "Plan", evaluation: "Evaluation", out: Path | None, format: str, *, as_json: bool) -> None:
    """Write the file, if one was requested, then print its contents."""
    flags = "" if out is None else _write(made, out, format)
    if as_json:
        written = None if out is None else {"path": str(out), "format": format, "server_flags": flags}
        output.json_object(plan_rows.as_object(made, evaluation) | {"written": written})
        return
    plan_rows.show(made, evaluation)
    if out is not None:
        output.written(out, format, flags)


def _write(made: "Plan", out: Path, format: str) -> str:
    """Write the file and return the server flags that load it."""
    from eplb.formats import FORMATS, write_plan

    with output.progress(f"writing {out.name}"):
        write_plan(made, out, format)
    return FORMATS[format].server_flags(out, made)
