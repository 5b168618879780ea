"""`eplb convert`: a placement file from one engine's dialect to another's."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments import choices, model_shape, options
from eplb_cli.arguments.kind_of_file import expecting_placement

if TYPE_CHECKING:
    from eplb.core.problem import Plan


def convert(  # noqa: PLR0913  # one parameter a word of the command line
    source: Annotated[Path, typer.Argument(metavar="IN", help="A placement file; - is stdin.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write; - is stdout.", show_default=False)],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="F",
            help="Dialect to write, see `eplb formats`.",
            parser=choices.FORMAT.one,
            autocompletion=choices.FORMAT.complete,
        ),
    ],
    from_: options.FromOpt = None,
    ranks: options.HintRanksOpt = None,
    nodes: options.HintNodesOpt = None,
    experts: options.ExpertsOpt = None,
    layers: Annotated[
        int | None, typer.Option("--num-layers", "--layers", metavar="L", help="MoE layers, if not in the file.")
    ] = None,
    moe_layers: options.MoeLayersOpt = None,
    hidden_layers: options.HiddenLayersOpt = None,
    as_json: options.JsonOpt = False,
) -> None:
    """Rewrite the placement in IN for another engine."""
    from eplb.formats import FORMATS, ReadHints, read_plan, write_plan
    from eplb_traces.errors import naming_place

    ids = None if moe_layers is None else model_shape.layer_ids(moe_layers)
    shape = model_shape.from_flags(layers, experts, ids, hidden_layers)
    hints = ReadHints(num_ranks=ranks, num_nodes=nodes, num_experts=experts, shape=shape)
    with expecting_placement(source), naming_place(source):
        plan = _with_layers(read_plan(source, from_, hints), ids, hidden_layers)
    write_plan(plan, target, to)
    flags = FORMATS[to].server_flags(target, plan)
    if as_json:
        written = {"path": str(target), "format": to, "server_flags": flags}
        output.json_object({"written": written, "notes": list(plan.notes)})
        return
    for text in plan.notes:
        output.note(f"note: {text}")
    output.written(target, to, flags)


def _with_layers(plan: "Plan", ids: tuple[int, ...] | None, hidden_layers: int | None) -> "Plan":
    """The plan with the layer ids and the depth of the flags, which must not contradict those of the file."""
    from eplb.errors import FormatError
    from eplb_traces.model_shape import merge_shapes

    if ids is not None and len(ids) != plan.shape.num_layers:
        raise FormatError(
            f"--moe-layers names {len(ids)} layers: the file has {plan.shape.num_layers} "
            "(one with rows for dense layers needs --num-experts too)"
        )
    shape = plan.shape
    given = replace(shape, moe_layer_ids=ids, num_hidden_layers=hidden_layers)
    return replace(plan, shape=merge_shapes(shape, given))
