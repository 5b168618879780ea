"""`eplb trace info|convert|merge|reduce|...`: shows, rewrites, joins, counts, records, makes traces and loads."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments import choices
from eplb_cli.arguments.options import JsonOpt, SeedOpt, TraceOutArg
from eplb_cli.arguments.parse import check_at_least
from eplb_cli.arguments.streams import stdout_of_kind
from eplb_cli.command import Group, register
from eplb_cli.commands import tables, trace_convert, trace_info, trace_record, trace_reduce
from eplb_cli.views.written_rows import Written, show_written

if TYPE_CHECKING:
    from eplb_traces import ModelShape

app = typer.Typer(cls=Group, no_args_is_help=True, help="Look at traces and loads, rewrite them, make synthetic ones.")


def synth(  # noqa: PLR0913  # one parameter a word of the command line
    out: TraceOutArg,
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            "-p",
            metavar="P",
            parser=choices.PRESET.one,
            autocompletion=choices.PRESET.complete,
            help="Whose statistics.",
        ),
    ] = "v3-prefill",
    layers: Annotated[
        int | None,
        typer.Option("--num-layers", "--layers", metavar="L", help="MoE layers.", show_default="the preset's"),
    ] = None,
    experts: Annotated[
        int | None,
        typer.Option(
            "--num-experts", "--experts", metavar="E", help="Experts of a layer.", show_default="the preset's"
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="K", help="Experts a token selects.", show_default="the preset's")
    ] = None,
    groups: Annotated[
        int | None, typer.Option("--groups", metavar="G", help="Expert groups.", show_default="the preset's")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", metavar="T", help="Tokens of a window.")] = 1024,
    windows: Annotated[
        int, typer.Option("--num-windows", "--windows", metavar="W", help="Windows, or steps of a trace.")
    ] = 8,
    as_load: Annotated[
        bool, typer.Option("--as-load", "--load", help="Draw tokens per expert, not the choices of each token.")
    ] = False,
    seed: SeedOpt = 0,
    as_json: JsonOpt = False,
) -> None:
    """Make a synthetic trace or load with the statistics of a real one; the same options give the same file."""
    import eplb_traces

    sizes = {"--num-layers": layers, "--num-experts": experts, "--top-k": top_k, "--groups": groups}
    check_at_least(1, {"--tokens": tokens, "--num-windows": windows, **sizes})
    shape = _synthetic_shape(preset, {"num_layers": layers, "num_experts": experts, "top_k": top_k}, groups)
    out = stdout_of_kind(out, is_trace=not as_load)
    with output.progress(f"writing {out.name}"):
        kind = "load" if as_load or out.suffix.lower() != ".parquet" else "token-level trace"
        if kind == "load":
            load = eplb_traces.synthesize_load(
                preset, shape=shape, num_windows=windows, tokens_per_window=tokens, seed=seed
            )
            eplb_traces.write_load(load, out)
        else:
            trace = eplb_traces.synthesize_trace(
                preset, shape=shape, num_steps=windows, tokens_per_step=tokens, seed=seed
            )
            eplb_traces.write_trace(trace, out)
    show_written(Written(out, kind), as_json=as_json)


def _synthetic_shape(preset: str, numbers: dict[str, int | None], groups: int | None) -> "ModelShape | None":
    """The preset's model with the numbers that were given; None where none was, or the preset is unknown."""
    import eplb_traces

    given = {name: number for name, number in numbers.items() if number is not None}
    if preset not in eplb_traces.PRESETS or (not given and groups is None):
        return None
    base = eplb_traces.PRESETS[preset].shape
    if groups is None:  # groups that no longer fit are no groups
        groups = base.num_expert_groups if given.get("num_experts", base.num_experts) == base.num_experts else 1
    layers = given.get("num_layers", base.num_layers)
    keeps_layers = layers == base.num_layers
    return replace(
        base,
        num_layers=layers,
        num_experts=given.get("num_experts", base.num_experts),
        top_k=given.get("top_k", base.top_k),
        num_expert_groups=groups,
        top_k_groups=base.top_k_groups if groups == base.num_expert_groups else None,
        moe_layer_ids=base.moe_layer_ids if keeps_layers else tuple(range(layers)),  # a model of MoE layers alone
        num_hidden_layers=base.num_hidden_layers if keeps_layers else layers,
    )


register(app, "info", trace_info.info, ["trace"])
register(app, "convert", trace_convert.convert, ["trace"])
register(app, "merge", trace_convert.merge, ["trace"])
register(app, "reduce", trace_reduce.reduce, ["trace"])
register(app, "dialects", tables.dialects, ["trace"])
register(app, "record", trace_record.record, ["trace"])
register(app, "synth", synth, ["trace"])
