"""`eplb convert`: a placement file from one engine's dialect to another's."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import output
from eplb_cli.options import FromOpt, HintNodesOpt, HintRanksOpt, complete_format

if TYPE_CHECKING:
    from eplb.plan import Plan
    from eplb_traces import ModelShape


def convert(  # noqa: PLR0913  # one parameter a word of the command line
    source: Annotated[Path, typer.Argument(metavar="IN", help="A placement file.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)],
    to: Annotated[
        str,
        typer.Option("--to", metavar="F", help="Dialect to write, see `eplb formats`.", autocompletion=complete_format),
    ],
    from_: FromOpt = None,
    ranks: HintRanksOpt = None,
    nodes: HintNodesOpt = None,
    experts: Annotated[
        int | None, typer.Option("--experts", metavar="E", help="Experts of a layer, if the file is silent.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option("--layers", metavar="L", help="MoE layers, if the file is silent.")
    ] = None,
    moe_layers: Annotated[
        str | None,
        typer.Option("--moe-layers", metavar="IDS", help="Ids of the MoE layers in the model: 3-60 or 1,3,5."),
    ] = None,
    hidden_layers: Annotated[
        int | None, typer.Option("--hidden-layers", metavar="H", help="Layers of the model, dense ones included.")
    ] = None,
) -> None:
    """Rewrite the placement in IN for another engine."""
    from eplb.formats import FORMATS, ReadHints, read_plan, write_plan

    ids = None if moe_layers is None else _layer_ids(moe_layers)
    shape = _shape(layers, experts, ids, hidden_layers)
    hints = ReadHints(num_ranks=ranks, num_nodes=nodes, num_experts=experts, shape=shape)
    plan = _with_layers(read_plan(source, from_, hints), ids, hidden_layers)
    write_plan(plan, target, to)
    for text in plan.notes:
        output.note(f"note: {text}")
    output.written(target, to, FORMATS[to].server_flags(target, plan))


def _layer_ids(text: str) -> tuple[int, ...]:
    """The ids in "3-60", "1,3,5" or a mix of both."""
    ids: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise typer.BadParameter(f"{text!r}: expected ids as in 3-60 or 1,3,5", param_hint="--moe-layers")
        ids.extend(range(int(first), int(last if dash else first) + 1))
    return tuple(ids)


def _shape(
    layers: int | None, experts: int | None, ids: tuple[int, ...] | None, hidden_layers: int | None
) -> "ModelShape | None":
    """The model as the flags alone say it; None where they do not say enough, so that the file has to."""
    from eplb_traces import ModelShape

    if layers is not None and experts is None:
        raise typer.BadParameter("needs --experts too", param_hint="--layers")
    num_layers = len(ids) if layers is None and ids is not None else layers
    if num_layers is None or experts is None:
        return None
    return ModelShape(num_layers, experts, moe_layer_ids=ids, num_hidden_layers=hidden_layers)


def _with_layers(plan: "Plan", ids: tuple[int, ...] | None, hidden_layers: int | None) -> "Plan":
    """The plan with the layer ids and the depth of the flags, which may add to what it knows but not contradict it."""
    from eplb.errors import FormatError

    if ids is not None and len(ids) != plan.shape.num_layers:
        raise FormatError(
            f"--moe-layers names {len(ids)} layers: the file has {plan.shape.num_layers} "
            "(one with rows for dense layers needs --experts too)"
        )
    shape = plan.shape
    _check_agreement("--moe-layers", shape.moe_layer_ids, ids)
    _check_agreement("--hidden-layers", shape.num_hidden_layers, hidden_layers)
    shape = replace(
        shape,
        moe_layer_ids=shape.moe_layer_ids if ids is None else ids,
        num_hidden_layers=shape.num_hidden_layers if hidden_layers is None else hidden_layers,
    )
    return replace(plan, shape=shape)


def _check_agreement(flag: str, known: object, given: object) -> None:
    from eplb.errors import FormatError

    if known is not None and given is not None and known != given:
        raise FormatError(f"{flag} = {given}: the file says {known}")
