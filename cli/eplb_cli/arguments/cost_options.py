"""Defines the options of a predicted step time: model, GPU, and the tokens of a step."""

from typing import Annotated

import typer


def _complete_phase(incomplete: str) -> list[str]:
    from eplb.cost import Phase

    return [phase.value for phase in Phase if phase.value.startswith(incomplete)]


def _complete_model(incomplete: str) -> list[str]:
    from eplb.cost import model_presets

    return [name for name in model_presets() if name.startswith(incomplete)]


def _complete_gpu(incomplete: str) -> list[str]:
    from eplb.cost.gpu_datasheets import GPU_DATASHEETS

    return [name for name in GPU_DATASHEETS if name.startswith(incomplete)]


ModelOpt = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Model whose experts are timed: a preset such as deepseek-v3, or its Hugging Face config.json.",
        show_default=False,
        autocompletion=_complete_model,
    ),
]
CalibrationOpt = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="GPU",
        help="Predict milliseconds on this GPU: h200, another known GPU (by formula), or a file of `eplb calibrate`.",
        show_default=False,
        autocompletion=_complete_gpu,
    ),
]
PhaseOpt = Annotated[
    str | None,
    typer.Option(
        "--phase",
        metavar="PHASE",
        help="What a step computes, prefill, decode or mixed: 4096, 128 or 1024 tokens a rank.",
        show_default="decode",
        autocompletion=_complete_phase,
    ),
]
TokensPerRankOpt = Annotated[
    int | None,
    typer.Option("--tokens-per-rank", metavar="T", help="Tokens of a rank in a step.", show_default="by --phase"),
]
WeightTypeOpt = Annotated[
    str | None,
    typer.Option(
        "--weight-type",
        metavar="TYPE",
        help="Type of the experts' weights, one that the calibration holds: bf16 or fp8.",
        show_default="the model's",
    ),
]
