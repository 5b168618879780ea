"""`eplb plan`: from a load to a placement file."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import inputs, output
from eplb_cli.metric_rows import metric_facts, window_objects, window_table
from eplb_cli.options import (
    GroupsOpt,
    JsonOpt,
    LoadArg,
    NodesOpt,
    NumExpertsOpt,
    RanksOpt,
    RedundantOpt,
    SeedOpt,
    StrategyOpt,
    WriteFormatOpt,
)

if TYPE_CHECKING:
    from eplb.metrics import Evaluation
    from eplb.plan import Plan


def plan(  # noqa: PLR0913  # one parameter a word of the command line
    load_path: LoadArg,
    ranks: RanksOpt,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Placement file to write; without it nothing is written."),
    ] = None,
    nodes: NodesOpt = 1,
    redundant: RedundantOpt = 0,
    strategy: StrategyOpt = "auto",
    groups: GroupsOpt = None,
    group_mode: Annotated[
        str,
        typer.Option("--group-mode", metavar="M", help="free: any expert on any node; pinned: a group on one node."),
    ] = "free",
    format: WriteFormatOpt = "native",
    seed: SeedOpt = 0,
    num_experts: NumExpertsOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Place the experts of LOAD on ranks, say how good the placement is, and write it for an engine."""
    import eplb

    load = inputs.read_load(load_path, num_experts)
    topology = eplb.Topology.for_experts(load.num_experts, num_ranks=ranks, num_nodes=nodes, num_redundant=redundant)
    with output.progress("planning"):
        made = eplb.plan(load, topology, strategy, groups=groups, group_mode=group_mode, seed=seed)
        evaluation = eplb.evaluate(made.placement, load)
    flags = "" if out is None else _write(made, out, format)
    if as_json:
        written = None if out is None else {"path": str(out), "format": format, "server_flags": flags}
        output.json_object(_as_object(made, evaluation) | {"written": written})
        return
    _show(made, evaluation)
    if out is not None:
        output.written(out, format, flags)


def _write(made: "Plan", out: Path, format: str) -> str:
    """Write the file and return the server flags that load it."""
    from eplb.formats import FORMATS, write_plan

    with output.progress(f"writing {out.name}"):
        write_plan(made, out, format)
    return FORMATS[format].server_flags(out, made)


def _show(made: "Plan", evaluation: "Evaluation") -> None:
    topology = made.placement.topology
    bounds = Counter(layer.binding_bound.value for layer in made.layers)
    ranks, nodes = output.counted(topology.num_ranks, "rank"), output.counted(topology.num_nodes, "node")
    layers = output.counted(made.placement.num_layers, "layer")
    output.facts(
        f"{layers} of {made.placement.num_experts} experts in {topology.num_slots} slots on {ranks} of {nodes}",
        [
            ("strategy", f"{made.strategy} ({made.status.value})"),
            *metric_facts(evaluation.summary()),
            ("what bounds the layers", ", ".join(f"{name}: {count}" for name, count in sorted(bounds.items()))),
            ("planned in", f"{output.milliseconds(made.seconds)} ms"),
        ],
    )
    for text in made.notes:
        output.line(f"note: {text}")
    window_table(evaluation)


def _as_object(made: "Plan", evaluation: "Evaluation") -> dict[str, object]:
    return {
        "strategy": made.strategy,
        "status": made.status.value,
        "seconds": made.seconds,
        "seed": made.seed,
        **evaluation.summary(),
        "notes": list(made.notes),
        "windows": window_objects(evaluation),
        "layers": [
            {
                "objective": layer.objective,
                "lower_bound": layer.lower_bound,
                "binding_bound": layer.binding_bound.value,
                "gap": layer.gap,
                "status": layer.status.value,
            }
            for layer in made.layers
        ],
    }
