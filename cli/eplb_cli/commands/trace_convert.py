"""`eplb trace convert`: a trace or load of any dialect, rewritten."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments import model_shape, options

if TYPE_CHECKING:
    from eplb_traces import ExpertLoad, ModelShape, RoutingTrace


def convert(  # noqa: PLR0913  # one parameter a word of the command line
    path: options.TraceArg,
    out: options.TraceOutArg,
    from_format: options.TraceFromOpt = None,
    num_experts: options.NumExpertsOpt = None,
    top_k: options.TraceTopKOpt = None,
    moe_layers: options.MoeLayersOpt = None,
    hidden_layers: options.HiddenLayersOpt = None,
    as_load: Annotated[
        bool, typer.Option("--load", help="Write tokens per expert, not the choices of each token.")
    ] = False,
    window: options.WindowOpt = None,
) -> None:
    """Rewrite a trace or load in another format; a trace stays a trace where OUT is .parquet.

    Routed-expert ids may contain rows for dense layers or omit the model's size; give --hidden-layers, --moe-layers and
    --top-k then.
    """
    import eplb_traces
    from eplb_traces.statistics import load_by_window

    shape = model_shape.of_rows(num_experts, top_k, moe_layers, hidden_layers)
    source = _read(path, from_format, num_experts, shape)
    counted = as_load or window is not None or out.suffix.lower() != ".parquet"
    with output.progress(f"writing {out.name}"):
        if isinstance(source, eplb_traces.RoutingTrace) and not counted:
            eplb_traces.write_trace(source, out)
        else:
            eplb_traces.write_load(load_by_window(source, window), out)
    output.line(f"wrote {out}")


def _read(
    path: Path, from_format: str | None, num_experts: int | None, shape: "ModelShape | None"
) -> "ExpertLoad | RoutingTrace":
    """What a file holds: a token-level trace where it can be read as one, else a load."""
    import eplb_traces

    try:
        return eplb_traces.read_trace(path, num_experts, format=from_format, shape=shape)
    except eplb_traces.InputError:
        with output.progress(f"reading {path.name}"):
            return eplb_traces.read_load(path, num_experts=num_experts, format=from_format, shape=shape)
