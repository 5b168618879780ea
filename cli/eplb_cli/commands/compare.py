"""`eplb compare`: every strategy on one load."""

from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments import files, options
from eplb_cli.arguments.reading import Reading, reads_loads
from eplb_cli.arguments.topology import topology_from_options

if TYPE_CHECKING:
    from eplb.planning.planner import Comparison

_HEADINGS = ("strategy", "max/mean", "worst", "gap %", "worst", "vLLM", "SGLang", "duplicates", "ms")
_LEGEND = """\
max/mean: load of the busiest rank over the mean, mean and worst of the layers
gap: above the proven lower bound; vLLM, SGLang: what they call balancedness
duplicates: slots with an expert that its rank holds already; ms: to plan"""


@reads_loads
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
            help="Names, with commas.",
            show_default="all but ilp, which searches for long, and traffic, which needs a trace",
        ),
    ] = None,
    groups: options.GroupsOpt = None,
    seed: options.SeedOpt = 0,
    *,
    reading: Reading,
    as_json: options.JsonOpt = False,
) -> None:
    """Plan LOAD with every strategy and evaluate the plans by the same metrics."""
    import eplb
    from eplb.strategies import ONLY_WHEN_NAMED, STRATEGIES

    load = files.read_load(load_paths, reading)
    topology = topology_from_options(load.num_experts, ranks=ranks, nodes=nodes, redundant=redundant)
    quick = [name for name in STRATEGIES if name not in ONLY_WHEN_NAMED]
    names = quick if strategies is None else strategies.split(",")
    results: list[Comparison] = []
    with output.progress("comparing", len(names)) as step:
        for name in names:
            results += eplb.compare(load, topology, [name], groups=groups, seed=seed)
            step()
    if as_json:
        output.json_object({"load": files.listed(load_paths), "strategies": [_as_object(result) for result in results]})
        return
    shape = f"{output.counted(ranks, 'rank')}, {output.counted(nodes, 'node')}, {topology.num_slots} slots"
    windows = f"{load.num_windows} windows of " if load.num_windows > 1 else ""
    model = f"{windows}{load.num_layers} layers of {load.num_experts} experts"
    output.table(f"{files.title_of(load_paths)}: {model} on {shape}", _HEADINGS, [_row(result) for result in results])
    output.note(_LEGEND)


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


def _as_object(result: "Comparison") -> dict[str, object]:
    plan = result.plan
    head = {"strategy": plan.strategy, "status": plan.status.value, "seconds": plan.seconds, "seed": plan.seed}
    return head | result.evaluation.summary() | {"notes": list(plan.notes)}
