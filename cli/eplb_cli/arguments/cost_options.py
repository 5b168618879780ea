"""Defines the options of commands that execute or predict on a GPU."""

from typing import Annotated

import typer


def _complete_model(incomplete: str) -> list[str]:
    from eplb.cost import model_presets

    return [name for name in model_presets() if name.startswith(incomplete)]


ModelOpt = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Sizes of an expert: a preset such as deepseek-v3, or a config.json.",
        show_default=False,
        autocompletion=_complete_model,
    ),
]
CalibrationOpt = Annotated[
    str,
    typer.Option(
        "--calibration",
        metavar="C",
        help="What to predict by: a file of `eplb calibrate`, or a GPU such as h200.",
        show_default=False,
    ),
]
DeviceOpt = Annotated[str, typer.Option("--device", metavar="D", help="cuda or cpu.")]
WeightTypeOpt = Annotated[str, typer.Option("--dtype", metavar="T", help="Type of the weights: bf16 or fp8.")]
