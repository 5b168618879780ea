"""`eplb advise`: which deployment to ask for, by predicted step time."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from eplb_cli import output
from eplb_cli.arguments import choices, cost_options, files, options
from eplb_cli.arguments.cluster import RayOpt, cluster
from eplb_cli.arguments.parse import byte_count, check_at_least, id_list, number_range
from eplb_cli.arguments.reading import Reading, reads_loads
from eplb_cli.views import advice_rows

if TYPE_CHECKING:
    from eplb.planning.advice import Advice

_DRAWINGS: Final = (".png", ".svg", ".pdf")

NodesOpt = Annotated[str, typer.Option("--nodes", "-n", metavar="A:B", help="Numbers of nodes: 1:8, 2:8:2 or 1,2,4.")]
GpusPerNodeOpt = Annotated[int, typer.Option("--gpus-per-node", metavar="G", help="GPUs of a node.")]
RedundantOpt = Annotated[
    str | None,
    typer.Option(
        "--redundant",
        "-k",
        metavar="A:B:STEP",
        help="Redundant experts to try; an EP size leaves out those that it cannot spread equally.",
        show_default="the fewest possible, and one and two slots a rank more",
    ),
]
StrategiesOpt = Annotated[
    str,
    typer.Option(
        "--strategies",
        metavar="A,B",
        parser=choices.STRATEGY.several,
        autocompletion=choices.STRATEGY.complete,
        help="Placements to try, see `eplb strategies`.",
    ),
]
DispatchOpt = Annotated[
    str,
    typer.Option(
        "--dispatch",
        metavar="A,B",
        parser=choices.DISPATCH.several,
        autocompletion=choices.DISPATCH.complete,
        help="Dispatch rules to try, where experts have replicas.",
    ),
]
SloOpt = Annotated[
    float | None, typer.Option("--slo-ms", metavar="MS", help="Longest step; the MoE layers alone must be faster.")
]
RestOpt = Annotated[
    float | None,
    typer.Option(
        "--rest-bytes",
        metavar="B",
        parser=byte_count,
        help="Weights of a GPU that are no routed expert: 20GB.",
        show_default="estimated from the model, two bytes a weight, whole on every GPU",
    ),
]
ReserveOpt = Annotated[
    float | None,
    typer.Option(
        "--reserve-bytes",
        metavar="B",
        parser=byte_count,
        help="Least memory for KV cache and activations: 14GB.",
        show_default="10 % of the GPU",
    ),
]
AllOpt = Annotated[
    bool, typer.Option("--all", help="Print every placement and dispatch, not the fastest of each size.")
]
PlotOpt = Annotated[
    Path | None, typer.Option("--output", "-o", "--plot", metavar="FILE", help="Drawing to write: .png, .svg or .pdf.")
]


@reads_loads
def advise(  # noqa: PLR0913  # one parameter a word of the command line
    load_paths: options.LoadsArg,
    model: cost_options.NeededModelOpt,
    calibration: cost_options.NeededCalibrationOpt,
    nodes: NodesOpt = "1:8",
    gpus_per_node: GpusPerNodeOpt = 8,
    redundant: RedundantOpt = None,
    strategies: StrategiesOpt = "linear,deepseek,greedy",
    dispatch: DispatchOpt = "even,weighted",
    phase: cost_options.PhaseOpt = None,
    tokens_per_rank: cost_options.TokensPerRankOpt = None,
    weight_type: cost_options.WeightTypeOpt = None,
    slo_ms: SloOpt = None,
    rest_bytes: RestOpt = None,
    reserve_bytes: ReserveOpt = None,
    plot: PlotOpt = None,
    seed: options.SeedOpt = 0,
    ray: RayOpt = None,
    *,
    every_row: AllOpt = False,
    reading: Reading,
    as_csv: options.CsvOpt = False,
    as_json: options.JsonOpt = False,
) -> None:
    """Predict the step time of LOAD for EP sizes, redundancy, placements and dispatch, and recommend one.

    The milliseconds are those of the MoE layers. Which deployments fit a GPU's memory, and where more GPUs stop to pay,
    is said as well.
    """
    from eplb.core.dispatch_rule import DispatchRule
    from eplb.planning.advice import DeploymentSpace
    from eplb.planning.advice import advise as run
    from eplb.planning.advice_memory import GpuMemory
    from eplb_traces.scale.executors import IN_ORDER

    if plot is not None and plot.suffix.lower() not in _DRAWINGS:
        raise typer.BadParameter(f"{plot}: expected a name that ends in {', '.join(_DRAWINGS)}", param_hint="--output")
    check_at_least(1, {"--gpus-per-node": gpus_per_node})
    asked = cost_options.CostOptions(phase=phase, tokens_per_rank=tokens_per_rank, weight_type=weight_type)
    cost = asked.predictor(calibration, model, seed)
    space = DeploymentSpace(
        nodes=_numbers(nodes),
        gpus_per_node=gpus_per_node,
        redundant=() if redundant is None else _redundant(redundant),
        strategies=tuple(name.strip() for name in strategies.split(",")),
        rules=tuple(DispatchRule.named(name.strip()) for name in dispatch.split(",")),
    )
    memory = GpuMemory.of(cost.model, cost.calibration.memory_bytes, rest_bytes=rest_bytes, reserve_bytes=reserve_bytes)
    load = files.read_load(load_paths, reading)
    with cluster(ray) as workers, output.progress("predicting", space.size(load.num_experts)) as step:
        found = run(load, cost, space, memory, slo_ms=slo_ms, on_row=step, executor=workers or IN_ORDER)
    if plot is not None:
        _draw(found, plot)
    if as_csv:
        output.csv_rows([row.summary() for row in found.deployments])
        return
    if as_json:
        written = None if plot is None else {"path": str(plot)}
        output.json_object({"load": files.listed(load_paths), **advice_rows.as_object(found), "written": written})
        return
    advice_rows.show(found, files.title_of(load_paths), every_row=every_row)
    if plot is not None:
        output.line(f"wrote {plot}")


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers of nodes in "1:8", "2:8:2", "1-8" or "1,2,4"."""
    try:
        listed = ":" not in text
        ranged = text if text.count(":") == 2 else f"{text}:1"
        numbers = id_list(text, "--nodes") if listed else tuple(number_range(ranged, "--nodes"))
    except typer.BadParameter:
        numbers = ()
    if not numbers or numbers[0] < 1:
        raise typer.BadParameter(f"{text!r}: expected numbers of nodes as in 1:8, 2:8:2 or 1,2,4", param_hint="--nodes")
    return numbers


def _redundant(text: str) -> tuple[int, ...]:
    """The numbers of redundant experts in "0:64:8", or "8" alone."""
    return (int(text),) if text.isdecimal() else tuple(number_range(text, "--redundant"))


def _draw(advice: "Advice", out: Path) -> None:
    from eplb.report.pictures import draw_advice
    from eplb.report.style import save

    save(draw_advice(advice), out)
