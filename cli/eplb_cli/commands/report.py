"""`eplb report`: what the router did and what plans make of it, as pictures, tables and words."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from eplb_cli import output
from eplb_cli.arguments import choices, files, options
from eplb_cli.arguments.cost_options import CostOptions, predicts_steps
from eplb_cli.arguments.engine import EngineOpt, EngineOptionsOpt, SourcesOpt, dispatch_of, source_shares
from eplb_cli.arguments.parse import id_list, refuse_typed
from eplb_cli.arguments.plan_files import read_plans
from eplb_cli.arguments.plan_options import NodesOpt, RanksOpt, RedundantOpt
from eplb_cli.arguments.reading import Reading, reads_loads
from eplb_cli.arguments.topology import topology_from_options
from eplb_cli.views import cost_rows

if TYPE_CHECKING:
    from eplb.core.placement import Placement
    from eplb.core.topology import Topology
    from eplb.report import ReportContents

_PAGE_SUFFIXES: Final = (".html", ".htm")
_ONLY_FOR_FOLDERS: Final = ("--layers", "--image-format")

_ONLY_WITH_RANKS: Final = (
    "--nodes", "--redundant", "--strategy", "--dispatch", "--engine", "--engine-option", "--sources", "--calibration",
    "--expert-bytes",
)  # fmt: skip

OutOpt = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        help="A folder for pictures, tables and summary.md, or one interactive page if the name ends in .html.",
        show_default=False,
    ),
]
PlansOpt = Annotated[
    list[Path] | None,
    typer.Option(
        "--plan",
        metavar="PLAN",
        help="A placement to show, in any dialect of `eplb formats`; several are compared with the first one.",
        show_default="one by --strategy, on --ranks",
    ),
]
LayersOpt = Annotated[
    str | None,
    typer.Option(
        "--layers",
        "--layer",
        metavar="IDS",
        help="Layers to show in detail: 7 or 0-3,7.",
        show_default="the worst before planning",
    ),
]
ImageFormatOpt = Annotated[
    str,
    typer.Option(
        "--image-format",
        metavar="F",
        parser=choices.IMAGE_FORMAT.one,
        autocompletion=choices.IMAGE_FORMAT.complete,
        help="png, svg or pdf.",
    ),
]


@reads_loads
@predicts_steps
def report(  # noqa: PLR0913  # one parameter a word of the command line
    context: typer.Context,
    load_paths: options.LoadsArg,
    out: OutOpt,
    plan_paths: PlansOpt = None,
    format: options.PlanDialectOpt = None,
    ranks: RanksOpt = None,
    nodes: NodesOpt = None,
    redundant: RedundantOpt = None,
    strategy: options.StrategyOpt = "greedy",
    dispatch: options.DispatchOpt = None,
    engine: EngineOpt = None,
    engine_options: EngineOptionsOpt = None,
    sources: SourcesOpt = None,
    layers: LayersOpt = None,
    image_format: ImageFormatOpt = "png",
    expert_bytes: options.ExpertBytesOpt = None,
    *,
    cost: CostOptions,
    reading: Reading,
    as_json: options.JsonOpt = False,
) -> None:
    """Show LOAD, what plans make of it, and how far they are from what is possible.

    Without --plan, experts in order are compared with a plan by --strategy for --ranks. One plan is compared with
    experts in order on its topology, several with the first of them. Without --plan and --ranks, the load of the
    experts and, for a trace, the experts chosen together are shown alone.
    """
    from eplb.formats import ReadHints
    from eplb.report import gather
    from eplb.report.folder import FolderOptions, write_folder
    from eplb.report.style import ImageFormat

    by = dispatch_of(dispatch, engine, engine_options)
    predictor = cost.step_cost(sources)
    is_page = out.suffix.lower() in _PAGE_SUFFIXES
    if is_page:
        refuse_typed(context, _ONLY_FOR_FOLDERS, "has no effect for a page, which shows every layer")
    options = FolderOptions(
        () if layers is None else id_list(layers, "--layers"),
        ImageFormat.named(image_format),
    )
    if plan_paths:
        refuse_typed(context, ("--redundant",), "cannot be chosen with --plan, which holds the slots")
        refuse_typed(context, ("--strategy",), "has no effect with --plan")
    elif ranks is None:
        refuse_typed(context, _ONLY_WITH_RANKS, "needs --ranks or --plan: without them nothing is planned")
    read = files.read_source(load_paths, reading)
    files.note_reading(read)
    source = read.content
    with output.progress("evaluating"):
        hints = ReadHints(num_ranks=ranks, num_nodes=nodes)
        read_from = read_plans(source, plan_paths or [], format, hints)
        plans = {name: plan.placement for name, plan in read_from.items()}
        asked = None if plans or ranks is None else topology_from_options(
            source.shape.num_experts, ranks=ranks, nodes=nodes, redundant=redundant
        )  # fmt: skip
        contents = gather(
            source,
            plans,
            asked,
            strategy=strategy,
            window=read.window,
            dispatch=by.rule,
            sources=None if sources is None else source_shares(sources, _num_ranks(plans, asked)),
            title=files.title_of(load_paths),
            expert_bytes=expert_bytes,
            cost=predictor,
            parts=read.parts,
        )
    with output.progress(f"writing {out.name}"):
        written = _write_page(contents, out) if is_page else write_folder(contents, out, options)
    _print(contents, written, as_json=as_json)


def _num_ranks(plans: "dict[str, Placement]", asked: "Topology | None") -> int:
    """Ranks of the plans that are shown, or of the topology to plan for."""
    return asked.num_ranks if asked is not None else next(iter(plans.values())).topology.num_ranks


def _write_page(contents: "ReportContents", out: Path) -> tuple[Path, ...]:
    from eplb.report.html import write_page

    write_page(contents, out)
    return (out,)


def _print(contents: "ReportContents", files: Sequence[Path], *, as_json: bool) -> None:
    if as_json:
        plans = {view.name: view.metrics() for view in contents.plans}
        summary: dict[str, object] = {
            "summary": contents.summary_text[0].splitlines(),
            "layers": list(contents.summary_text[1:]),
        }
        summary |= cost_rows.head(contents.cost, contents.choices)
        output.json_object({**summary, "plans": plans, "written": [str(path) for path in files]})
        return
    for sentence in contents.summary_text[0].splitlines():
        output.line(sentence)
    output.line(f"wrote {files[0]}")
    if len(files) > 1:
        output.line(f"  {output.counted(len(files) - 1, 'file')} beside it: pictures and tables")
