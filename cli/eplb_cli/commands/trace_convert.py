"""`eplb trace convert` and `eplb trace merge`: traces and loads of any dialect, rewritten and put together."""

from pathlib import Path
from typing import Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments import choices, files, options
from eplb_cli.arguments.parse import refuse_typed
from eplb_cli.arguments.reading import Reading, reads_loads
from eplb_cli.arguments.streams import stdout_of_kind
from eplb_cli.views.written_rows import Written, show_written

AsLoadOpt = Annotated[
    bool, typer.Option("--as-load", "--load", help="Write tokens per expert, not the choices of each token.")
]

LayoutOpt = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="LAYOUT",
        help="Of the ids in a trace as .parquet: list, which every program reads, or packed, bytes that eplb reads "
        "several times as fast.",
        show_default="list",
        parser=choices.TRACE_LAYOUT.one,
        autocompletion=choices.TRACE_LAYOUT.complete,
    ),
]


@reads_loads
def convert(  # noqa: PLR0913  # one parameter a word of the command line
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A load or a token-level trace of any dialect; - is stdin.", show_default=False
        ),
    ],
    out: options.TraceOutArg,
    as_load: AsLoadOpt = False,
    layout: LayoutOpt = None,
    *,
    reading: Reading,
    as_json: options.JsonOpt = False,
) -> None:
    """Rewrite a trace or load in another format; a trace stays a trace where OUT is .parquet.

    Routed-expert ids may contain rows for dense layers or omit the model's size; give --hidden-layers, --moe-layers and
    --top-k then. The ids of the layers are kept; a format that cannot hold them, or that needs ids which are unknown,
    is refused.
    """
    refuse_typed(context, ("--combine",), "has no effect on a single file: see eplb trace merge")
    written = _rewrite([path], out, reading, as_load=as_load, layout=layout)
    show_written(written, as_json=as_json)


@reads_loads
def merge(  # noqa: PLR0913  # one parameter a word of the command line
    paths: options.TracesArg,
    out: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="OUT", show_default=False,
            help="A trace as .parquet; a load as .parquet, .npz, .csv or .json; - is stdout: a trace as .parquet, a "
            "load as .csv.",
        ),
    ],
    as_load: AsLoadOpt = False,
    layout: LayoutOpt = None,
    *,
    reading: Reading,
    as_json: options.JsonOpt = False,
) -> None:  # fmt: skip
    """Put the loads, or the traces, of several files together in one: workloads, ranks, parts in time, or layers.

    Traces stay a trace with --combine sum or time where OUT is .parquet; otherwise give --as-load.
    """
    if len(paths) == 1:
        raise typer.BadParameter("expected at least two files", param_hint="FILE")
    written = _rewrite(paths, out, reading, as_load=as_load, layout=layout)
    show_written(written, as_json=as_json)


def _rewrite(paths: list[Path], out: Path, reading: Reading, *, as_load: bool, layout: str | None) -> Written:
    """Write OUT; which kind of file it is now."""
    import eplb_traces

    source = files.read_source(paths, reading)
    files.note_reading(source)
    is_trace = isinstance(source.content, eplb_traces.RoutingTrace) or source.num_counted_traces > 0
    out = stdout_of_kind(out, is_trace=is_trace and not as_load and reading.window is None)
    counted = as_load or reading.window is not None or out.suffix.lower() != ".parquet"
    if source.num_counted_traces and not counted:
        raise eplb_traces.InputError(
            f"{output.counted(source.num_counted_traces, 'token-level trace')} of {len(paths)} files: give --combine "
            "time or sum to keep every token, or --as-load for tokens per expert"
        )
    if layout is not None and (counted or not isinstance(source.content, eplb_traces.RoutingTrace)):
        raise typer.BadParameter("has no effect on a load", param_hint="--layout")
    with output.progress(f"writing {out.name}"):
        if isinstance(source.content, eplb_traces.RoutingTrace) and not counted:
            eplb_traces.write_trace(source.content, out, layout or "list")
            return Written(out, "token-level trace")
        eplb_traces.write_load(source.load(), out)
    return Written(out, "load")
