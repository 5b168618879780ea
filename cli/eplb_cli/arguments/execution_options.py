"""Defines the options of commands that execute or predict on a GPU."""

from typing import Annotated

import typer

from eplb_cli.arguments.cost_options import complete_model

ModelOpt = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Sizes of an expert: a preset such as deepseek-v3, or a config.json.",
        show_default=False,
        autocompletion=complete_model,
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
