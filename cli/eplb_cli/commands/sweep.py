"""`eplb sweep`: balance and memory by number of redundant experts."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from eplb_cli import output
from eplb_cli.arguments import files, options
from eplb_cli.arguments.cluster import RayOpt, cluster
from eplb_cli.arguments.cost_options import CostOptions, predicts_steps
from eplb_cli.arguments.engine import EngineOpt, EngineOptionsOpt, SourcesOpt, dispatch_of, source_shares
from eplb_cli.arguments.parse import number_range
from eplb_cli.arguments.reading import Reading, reads_loads
from eplb_cli.views import cost_rows

if TYPE_CHECKING:
    from eplb.planning.redundancy_sweep import SweepPoint

_HEADINGS = ("redundant", "slots", "max/mean", "worst", "gap %", "GB a rank", "ms")
_LEGEND = """\
slots: of a rank; max/mean: busiest over mean rank, mean and worst of layers and windows
gap: above the proven lower bound; ms: to plan
GB: expert weights of all layers, if the bytes of an expert are known: from the recording, --model or --expert-bytes"""
_DRAWINGS: Final = (".png", ".svg", ".pdf")


@reads_loads
@predicts_steps
def sweep(  # noqa: PLR0913  # one parameter a word of the command line
    load_paths: options.LoadsArg,
    ranks: options.RanksOpt,
    redundant: Annotated[
        str, typer.Option("--redundant", "-k", metavar="A:B:STEP", help="Redundant experts to try, B included: 0:64:8.")
    ],
    nodes: options.NodesOpt = 1,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Drawing to write: .png, .svg or .pdf.")
    ] = None,
    strategy: options.StrategyOpt = "greedy",
    dispatch: options.DispatchOpt = None,
    engine: EngineOpt = None,
    engine_options: EngineOptionsOpt = None,
    sources: SourcesOpt = None,
    expert_bytes: options.ExpertBytesOpt = None,
    ray: RayOpt = None,
    *,
    cost: CostOptions,
    reading: Reading,
    as_csv: options.CsvOpt = False,
    as_json: options.JsonOpt = False,
) -> None:
    """Plan LOAD with several numbers of redundant experts: balance against memory."""
    from eplb.planning.redundancy_sweep import sweep as run
    from eplb_traces.scale.executors import IN_ORDER

    numbers = number_range(redundant, "--redundant")
    by = dispatch_of(dispatch, engine, engine_options)
    predictor = cost.step_cost(sources)
    shares = source_shares(sources, ranks)
    if out is not None and out.suffix.lower() not in _DRAWINGS:
        raise typer.BadParameter(f"{out}: expected a name that ends in {', '.join(_DRAWINGS)}", param_hint="--output")
    load = files.read_load(load_paths, reading)
    with cluster(ray) as workers, output.progress("planning", len(numbers)) as step:
        size = predictor.expert_bytes if expert_bytes is None and predictor is not None else expert_bytes
        points = run(
            load,
            ranks,
            nodes,
            numbers,
            size,
            strategy=strategy,
            dispatch=by.rule,
            sources=shares,
            cost=predictor,
            executor=workers or IN_ORDER,
            on_point=step,
        )
    choices = cost_rows.choices_sampled(predictor, load)
    if out is not None:
        _draw(points, out)
    if as_csv:
        output.csv_rows([_as_object(point) for point in points])
        return
    if as_json:
        written = None if out is None else {"path": str(out)}
        head = {
            "load": files.listed(load_paths),
            "strategy": strategy,
            "dispatch": by.rule.value,
            **cost_rows.head(predictor, choices),
        }
        output.json_object({**head, "points": [_as_object(point) for point in points], "written": written})
        return
    on = f"{files.title_of(load_paths)} on {output.counted(ranks, 'rank')}, {strategy}"
    title = f"{on}{by.in_title}{cost_rows.in_title(predictor)}"
    headings = (*_HEADINGS, *cost_rows.headings(predictor))
    output.table(title, headings, [_row(point) for point in points], legend=_LEGEND)
    cost_rows.note(predictor, choices)
    if out is not None:
        output.line(f"wrote {out}")


def _draw(points: "Sequence[SweepPoint]", out: Path) -> None:
    from eplb.report.pictures import draw_redundancy
    from eplb.report.style import save

    save(draw_redundancy(points), out)


def _row(point: "SweepPoint") -> tuple[output.Cell, ...]:
    return (
        point.num_redundant,
        point.slots_per_rank,
        point.max_over_mean_mean,
        point.max_over_mean_worst,
        output.percentage(point.gap_mean),
        "-" if point.bytes_per_rank is None else output.byte_size(point.bytes_per_rank),
        output.milliseconds(point.seconds),
        *cost_rows.cells(point.predicted_step_s),
    )


def _as_object(point: "SweepPoint") -> dict[str, object]:
    """The fields of a point; without a prediction, none of it."""
    return {name: value for name, value in asdict(point).items() if value is not None}
