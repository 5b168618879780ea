"""`eplb check`: checks a placement file against an engine's loader."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments import choices, model_shape, options


def check(  # noqa: PLR0913  # one parameter a word of the command line
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Placement files of the engine; - is stdin.", show_default=False),
    ],
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            "-e",
            metavar="E",
            help="sglang, vllm, ascend, trtllm or omni.",
            parser=choices.ENGINE_OF_FILE.one,
            autocompletion=choices.ENGINE_OF_FILE.complete,
        ),
    ],
    ranks: options.RanksOpt,
    experts: Annotated[
        int | None,
        typer.Option(
            "--num-experts", "--experts", metavar="E", help="Experts of a layer, to find missing ones at the end."
        ),
    ] = None,
    moe_layers: options.MoeLayersOpt = None,
    hidden_layers: options.HiddenLayersOpt = None,
    as_json: options.JsonOpt = False,
) -> None:
    """Check FILE against the engine's loader; exit code 3 if the engine would crash on it or misread it."""
    from eplb.formats.engine_check import check_file

    if moe_layers is None and hidden_layers is not None:
        raise typer.BadParameter("needs --moe-layers too", param_hint="--hidden-layers")
    if experts is None and moe_layers is not None:
        raise typer.BadParameter("needs --num-experts too", param_hint="--moe-layers")
    ids = None if moe_layers is None else model_shape.layer_ids(moe_layers)
    shape = model_shape.from_flags(None, experts, ids, hidden_layers)
    found = {str(path): check_file(path, engine, ranks, experts, shape) for path in paths}
    if as_json:
        output.json_object({"files": [{"path": path, **asdict(of)} for path, of in found.items()]})
        return
    for path, of in found.items():
        output.line(str(of) if len(found) == 1 else f"{path}: {of}")
