"""`eplb plan`: from a load, and for a replan the live placement, to a placement file."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import inputs, output, plan_report
from eplb_cli.machine import machine
from eplb_cli.options import (
    DispatchOpt,
    ExpertBytesOpt,
    GroupModeOpt,
    GroupsOpt,
    JsonOpt,
    LoadsArg,
    NumExpertsOpt,
    SeedOpt,
    StrategyOpt,
    WindowOpt,
    WriteFormatOpt,
)
from eplb_cli.replan import ONLY_WITH_PREVIOUS, ONLY_WITHOUT_PREVIOUS, Replan, replan
from eplb_cli.words import refuse_typed

if TYPE_CHECKING:
    from eplb.plan import Plan


def plan(  # noqa: PLR0913  # one parameter a word of the command line
    context: typer.Context,
    load_paths: LoadsArg,
    ranks: Annotated[
        int | None,
        typer.Option("--ranks", "-r", metavar="R", help="GPUs of the expert-parallel group.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Placement file to write; without it nothing is written."),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option("--nodes", "-n", metavar="N", help="Nodes that hold the ranks.", show_default="1"),
    ] = None,
    redundant: Annotated[
        int | None,
        typer.Option(
            "--redundant",
            "-k",
            metavar="K",
            help="Redundant experts of a layer, over all ranks.",
            show_default="0",
        ),
    ] = None,
    mindie_config: Annotated[
        Path | None,
        typer.Option("--mindie-config", metavar="FILE", help="config.json of MindIE that says ranks and nodes."),
    ] = None,
    strategy: StrategyOpt = "auto",
    groups: GroupsOpt = None,
    group_mode: GroupModeOpt = "free",
    dispatch: DispatchOpt = "even",
    previous: Annotated[
        Path | None,
        typer.Option("--previous", metavar="PLAN", help="The live placement: move few of its copies."),
    ] = None,
    target: Annotated[
        float,
        typer.Option("--target", metavar="X", help="With --previous: busiest over mean rank to reach in each layer."),
    ] = 1.05,
    max_moves: Annotated[
        int | None,
        typer.Option("--max-moves", metavar="M", help="With --previous: most copies to move.", show_default="any"),
    ] = None,
    expert_bytes: ExpertBytesOpt = None,
    window: WindowOpt = None,
    format: WriteFormatOpt = "native",
    seed: SeedOpt = 0,
    num_experts: NumExpertsOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Place the experts of LOAD on ranks, say how good the placement is, and write it for an engine."""
    import eplb
    from eplb.formats import ReadHints

    if previous is None:
        refuse_typed(context, ONLY_WITH_PREVIOUS, "means nothing without --previous")
    else:
        refuse_typed(context, ONLY_WITHOUT_PREVIOUS, "means nothing with --previous: the machine and its rule stay")
    load = inputs.read_loads(load_paths, num_experts, window)
    if previous is not None:
        hints = ReadHints(num_ranks=ranks, num_nodes=nodes)
        made = replan(load, Replan(previous, hints, target, max_moves, expert_bytes), seed=seed)
    else:
        topology = machine(
            load.num_experts, ranks=ranks, nodes=nodes, redundant=redundant, mindie_config=mindie_config
        )
        name = inputs.SEVERAL if strategy == "auto" and len(load_paths) > 1 else strategy
        with output.progress("planning"):
            made = eplb.plan(
                load, topology, name, groups=groups, group_mode=group_mode, dispatch=dispatch, seed=seed
            )
    made = replace(made, notes=(*_about(load_paths), *made.notes))
    evaluation = eplb.evaluate(made.placement, load, dispatch)
    flags = "" if out is None else _write(made, out, format)
    if as_json:
        written = None if out is None else {"path": str(out), "format": format, "server_flags": flags}
        output.json_object(plan_report.as_object(made, evaluation) | {"written": written})
        return
    plan_report.show(made, evaluation)
    if out is not None:
        output.written(out, format, flags)
