"""Defines the options of a predicted step time: model, GPU, and the tokens of a step."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Final, final

import typer

from eplb_cli.arguments import choices
from eplb_cli.arguments.option_group import takes

if TYPE_CHECKING:
    from eplb.evaluation.step_cost import StepCost


_MODEL: Final = typer.Option(
    "--model",
    metavar="NAME",
    help="Model whose experts are timed: a preset such as deepseek-v3, or its Hugging Face config.json.",
    show_default=False,
    parser=choices.MODEL.one,
    autocompletion=choices.MODEL.complete,
)
_CALIBRATION: Final = typer.Option(
    "--calibration",
    "--gpu",
    metavar="GPU",
    help="Predict milliseconds on this GPU: h200, another known GPU (by formula), or a file of `eplb calibrate`.",
    show_default=False,
    parser=choices.GPU.one,
    autocompletion=choices.GPU.complete,
)
ModelOpt = Annotated[str | None, _MODEL]
NeededModelOpt = Annotated[str, _MODEL]
CalibrationOpt = Annotated[str | None, _CALIBRATION]
NeededCalibrationOpt = Annotated[str, _CALIBRATION]
PhaseOpt = Annotated[
    str | None,
    typer.Option(
        "--phase",
        metavar="PHASE",
        help="What a step computes, prefill, decode or mixed: 4096, 128 or 1024 tokens a rank.",
        show_default="decode",
        parser=choices.PHASE.one,
        autocompletion=choices.PHASE.complete,
    ),
]
TokensPerRankOpt = Annotated[
    int | None,
    typer.Option("--tokens-per-rank", metavar="T", help="Tokens of a rank in a step.", show_default="by --phase"),
]
WeightTypeOpt = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="TYPE",
        help="Type of the experts' weights, one that the calibration holds: bf16 or fp8.",
        show_default="the model's",
    ),
]
DeviceOpt = Annotated[str, typer.Option("--device", metavar="D", help="cuda or cpu.")]
ExecutedTypeOpt = Annotated[str, typer.Option("--dtype", metavar="TYPE", help="Type of the weights: bf16 or fp8.")]


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class CostOptions:
    """The options about predicted milliseconds; each field is one option of a command that `predicts_steps`."""

    calibration: CalibrationOpt = None
    model: ModelOpt = None
    phase: PhaseOpt = None
    tokens_per_rank: TokensPerRankOpt = None
    weight_type: WeightTypeOpt = None

    def step_cost(self, sources: str | None = None, seed: int = 0) -> "StepCost | None":
        """What to predict with; None without --calibration.

        Raises
        ------
        typer.BadParameter
            For a model, phase, number of tokens or type without --calibration, or --calibration without a model or
            with --sources.
        """
        if self.calibration is None:
            self._refuse_alone()
            return None
        if self.model is None:
            raise typer.BadParameter("needed with --calibration", param_hint="--model")
        if sources is not None:
            raise typer.BadParameter(
                "cannot be chosen with --calibration: every rank of a predicted step has the same tokens",
                param_hint="--sources",
            )
        return self.predictor(self.calibration, self.model, seed)

    def predictor(self, calibration: str, model: str, seed: int) -> "StepCost":
        """What to predict with, for this GPU and model.

        Raises
        ------
        typer.BadParameter
            For a phase beside a number of tokens.
        """
        from eplb.cost import Phase, model_sizes, named_calibration
        from eplb.evaluation.step_cost import StepCost

        if self.phase is not None and self.tokens_per_rank is not None:
            raise typer.BadParameter("has no effect with --tokens-per-rank", param_hint="--phase")
        phase = Phase.named(Phase.DECODE if self.phase is None else self.phase)
        return StepCost(
            model=model_sizes(model),
            calibration=named_calibration(calibration),
            tokens_per_rank=phase.tokens_per_rank if self.tokens_per_rank is None else self.tokens_per_rank,
            weight_type=self.weight_type,
            seed=seed,
        )

    def _refuse_alone(self) -> None:
        given = {
            "--model": self.model,
            "--phase": self.phase,
            "--tokens-per-rank": self.tokens_per_rank,
            "--dtype": self.weight_type,
        }
        for option, value in given.items():
            if value is not None:
                raise typer.BadParameter("has no effect without --calibration", param_hint=option)


predicts_steps = takes("cost", CostOptions)
"""Gives a command the options of `CostOptions` in place of its keyword parameter `cost`."""
