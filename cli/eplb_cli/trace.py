"""`eplb trace info|convert|synth`: what the router did, looked at, rewritten or made up."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import inputs, output
from eplb_cli.options import JsonOpt, NumExpertsOpt, SeedOpt, WindowOpt

if TYPE_CHECKING:
    from eplb_traces import ExpertLoad, ModelShape, RoutingTrace

app = typer.Typer(no_args_is_help=True, help="Look at traces and loads, rewrite them, make synthetic ones.")

_EP_SIZES = (8, 16, 32, 64)

TraceArg = Annotated[
    Path, typer.Argument(metavar="FILE", help="A load or a token-level trace of any dialect.", show_default=False)
]
OutArg = Annotated[
    Path,
    typer.Argument(
        metavar="OUT", help="A trace as .parquet; a load as .parquet, .npz, .csv or .json.", show_default=False
    ),
]


@app.command()
def info(path: TraceArg, num_experts: NumExpertsOpt = None, as_json: JsonOpt = False) -> None:
    """Say what FILE holds and how uneven it is where experts lie in order and without redundancy."""
    source = inputs.read_load_or_trace(path, num_experts)
    with output.progress(f"counting {path.name}"):
        load = inputs.load_of(source, None)
        imbalance = _linear_imbalance(load)
    fields = _fields(source, load)
    if as_json:
        output.json_object({**fields, "linear_max_over_mean": imbalance})
        return
    output.facts(str(path), [(name.replace("_", " "), _shown(value)) for name, value in fields.items()])
    rows = [(of["num_ranks"], of["mean"], of["worst"]) for of in imbalance]
    output.table("Busiest over mean rank, experts in order", ("ranks", "mean of layers", "worst layer"), rows)


@app.command()
def convert(
    path: TraceArg,
    out: OutArg,
    num_experts: NumExpertsOpt = None,
    as_load: Annotated[
        bool, typer.Option("--load", help="Write tokens per expert, not the choices of each token.")
    ] = False,
    window: WindowOpt = None,
) -> None:
    """Rewrite a trace or load in another format; a trace stays a trace where OUT is .parquet."""
    import eplb_traces

    source = inputs.read_load_or_trace(path, num_experts)
    counted = as_load or window is not None or out.suffix.lower() != ".parquet"
    with output.progress(f"writing {out.name}"):
        if isinstance(source, eplb_traces.RoutingTrace) and not counted:
            eplb_traces.write_trace(source, out)
        else:
            eplb_traces.write_load(inputs.load_of(source, window), out)
    output.line(f"wrote {out}")


@app.command()
def synth(  # noqa: PLR0913  # one parameter a word of the command line
    out: OutArg,
    preset: Annotated[str, typer.Option("--preset", "-p", metavar="P", help="Whose statistics.")] = "v3-prefill",
    layers: Annotated[
        int | None, typer.Option("--layers", metavar="L", help="MoE layers.", show_default="the preset's")
    ] = None,
    experts: Annotated[
        int | None, typer.Option("--experts", metavar="E", help="Experts of a layer.", show_default="the preset's")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="K", help="Experts a token selects.", show_default="the preset's")
    ] = None,
    groups: Annotated[
        int | None, typer.Option("--groups", metavar="G", help="Expert groups.", show_default="the preset's")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", metavar="T", help="Tokens of a window.")] = 1024,
    windows: Annotated[int, typer.Option("--windows", metavar="W", help="Windows, or steps of a trace.")] = 8,
    as_load: Annotated[
        bool, typer.Option("--load", help="Draw tokens per expert, not the choices of each token.")
    ] = False,
    seed: SeedOpt = 0,
) -> None:
    """Make synthetic traffic with the statistics of real traffic; the same words give the same file."""
    import eplb_traces

    shape = _synthetic_shape(preset, {"num_layers": layers, "num_experts": experts, "top_k": top_k}, groups)
    with output.progress(f"writing {out.name}"):
        if as_load or out.suffix.lower() != ".parquet":
            load = eplb_traces.synthesize_load(
                preset, shape=shape, num_windows=windows, tokens_per_window=tokens, seed=seed
            )
            eplb_traces.write_load(load, out)
        else:
            trace = eplb_traces.synthesize_trace(
                preset, shape=shape, num_steps=windows, tokens_per_step=tokens, seed=seed
            )
            eplb_traces.write_trace(trace, out)
    output.line(f"wrote {out}")


def _linear_imbalance(load: "ExpertLoad") -> list[dict[str, float | int]]:
    """What the judge says of experts in order, for the usual numbers of ranks and for one expert a rank."""
    import eplb

    found: list[dict[str, float | int]] = []
    for ranks in (*(size for size in _EP_SIZES if size < load.num_experts), load.num_experts):
        if load.num_experts % ranks:
            continue
        topology = eplb.Topology.for_experts(load.num_experts, num_ranks=ranks)
        summary = eplb.evaluate(eplb.plan(load, topology, "linear").placement, load).summary()
        mean, worst = summary["max_over_mean_mean"], summary["max_over_mean_worst"]
        found.append({"num_ranks": ranks, "mean": mean, "worst": worst})
    return found


def _fields(source: "ExpertLoad | RoutingTrace", load: "ExpertLoad") -> dict[str, object]:
    import eplb_traces

    is_trace = isinstance(source, eplb_traces.RoutingTrace)
    shape = load.shape
    return {
        "kind": "token-level trace" if is_trace else "load",
        "layers": shape.num_layers,
        "experts": shape.num_experts,
        "top_k": shape.top_k,
        "expert_groups": shape.num_expert_groups,
        "moe_layer_ids": None if shape.moe_layer_ids is None else list(shape.moe_layer_ids),
        "hidden_layers": shape.num_hidden_layers,
        "tokens": source.num_tokens if isinstance(source, eplb_traces.RoutingTrace) else None,
        "windows": load.num_windows,
        "expert_choices": float(load.tokens.sum()),
    }


def _shown(value: object) -> str:
    """A field for people: unknown values by name, long id lists by their ends, whole numbers without a point."""
    if value is None:
        return "not recorded"
    if isinstance(value, list):
        return f"{value[0]} to {value[-1]}" if len(value) > 8 else ", ".join(str(i) for i in value)
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _synthetic_shape(preset: str, numbers: dict[str, int | None], groups: int | None) -> "ModelShape | None":
    """The preset's model with the numbers that were given; None where none was, or the preset is unknown."""
    import eplb_traces

    given = {name: number for name, number in numbers.items() if number is not None}
    if preset not in eplb_traces.PRESETS or (not given and groups is None):
        return None
    base = eplb_traces.PRESETS[preset].shape
    if groups is None:  # groups that no longer fit are no groups
        groups = base.num_expert_groups if given.get("num_experts", base.num_experts) == base.num_experts else 1
    keeps_layers = given.get("num_layers", base.num_layers) == base.num_layers
    return replace(
        base,
        **given,
        num_expert_groups=groups,
        top_k_groups=base.top_k_groups if groups == base.num_expert_groups else None,
        moe_layer_ids=base.moe_layer_ids if keeps_layers else None,
        num_hidden_layers=base.num_hidden_layers if keeps_layers else None,
    )
