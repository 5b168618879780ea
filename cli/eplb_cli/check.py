"""`eplb check`: whether an engine would load this file and do what it says."""

from pathlib import Path
from typing import Annotated

import typer

from eplb_cli import output
from eplb_cli.options import RanksOpt


def _complete_engine(incomplete: str) -> list[str]:
    from eplb.engine_check import ENGINES

    return [name for name in ENGINES if name.startswith(incomplete)]


def check(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A placement file of the engine.", show_default=False)],
    engine: Annotated[
        str,
        typer.Option(
            "--engine", "-e", metavar="E", help="sglang, vllm, ascend, trtllm or omni.", autocompletion=_complete_engine
        ),
    ],
    ranks: RanksOpt,
    experts: Annotated[
        int | None, typer.Option("--experts", metavar="E", help="Experts of a layer, to find missing ones at the end.")
    ] = None,
) -> None:
    """Refuse what the engine would swallow or die of; exit code 3 and a sentence if it is refused."""
    from eplb.engine_check import check_file

    output.line(str(check_file(path, engine, ranks, experts)))
