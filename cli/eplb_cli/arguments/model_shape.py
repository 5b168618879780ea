"""Makes a model shape from the options that describe a model."""

from typing import TYPE_CHECKING

import typer

from eplb_cli.arguments.parse import id_list

if TYPE_CHECKING:
    from eplb_traces import ModelShape


def layer_ids(text: str) -> tuple[int, ...]:
    """The ids in "3-60", "1,3,5" or a mix of both."""
    return id_list(text, "--moe-layers")


def from_flags(
    layers: int | None, experts: int | None, ids: tuple[int, ...] | None, hidden_layers: int | None
) -> "ModelShape | None":
    """The model by the options alone; None where they do not describe all of it and the file has to."""
    from eplb_traces import ModelShape

    if layers is not None and experts is None:
        raise typer.BadParameter("needs --num-experts too", param_hint="--num-layers")
    num_layers = len(ids) if layers is None and ids is not None else layers
    if num_layers is None or experts is None:
        return None
    return ModelShape(num_layers, experts, moe_layer_ids=ids, num_hidden_layers=hidden_layers)
