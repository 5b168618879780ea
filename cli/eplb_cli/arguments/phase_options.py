"""Defines the options by which `eplb plan` plans for the step time of a phase, and checks them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, final

import typer

from eplb_cli.arguments import choices
from eplb_cli.arguments.parse import refuse_typed

BOTH: Final = "both"

PhaseOpt = Annotated[
    str | None,
    typer.Option(
        "--phase",
        metavar="P",
        parser=choices.PHASE_OR_BOTH.one,
        autocompletion=choices.PHASE_OR_BOTH.complete,
        help="Plan for step time, predicted by --calibration and --model: prefill, decode or mixed; both: two plans, "
        "see --decode-load.",
        show_default="plan for balanced tokens",
    ),
]
TokensPerRankOpt = Annotated[
    str | None,
    typer.Option(
        "--tokens-per-rank",
        metavar="N",
        help="With --phase: tokens of a rank in a step; with --phase both: of prefill, decode.",
        show_default="prefill 4096, decode 128, mixed 1024",
    ),
]
DecodeLoadOpt = Annotated[
    Path | None,
    typer.Option("--decode-load", metavar="LOAD", help="With --phase both: the load of decode; LOAD is of prefill."),
]

_OF_PHASE: Final = ("--phase", "--calibration", "--model", "--dtype", "--tokens-per-rank", "--decode-load")
_NOT_WITH_BOTH: Final = (
    *("--strategy", "--groups", "--group-mode", "--group-price", "--sources", "--constraints", "--time-limit"),
    *("--replicate-everywhere", "--replicated-slot"),
    *("--survive", "--trace", "--load-cap", "--pareto"),
)


@final
@dataclass(frozen=True, kw_only=True)
class PhaseOptions:
    """What was typed."""

    phase: str | None
    calibration: str | None
    model: str | None
    dtype: str | None
    tokens_per_rank: str | None
    decode_load: Path | None

    def check(self, context: typer.Context, previous: Path | None) -> None:
        """Refuse what would be ignored.

        Raises
        ------
        typer.BadParameter
            For an option of a phase without one or with --previous, and for a decode load without --phase both.
        """
        if previous is not None:
            refuse_typed(context, _OF_PHASE, "cannot be chosen with --previous")
        if self.phase is None:
            refuse_typed(context, _OF_PHASE, "has no effect without --phase")
        elif self.phase != BOTH:
            refuse_typed(context, ("--decode-load",), "needs --phase both")
        else:
            refuse_typed(context, _NOT_WITH_BOTH, "cannot be chosen with --phase both")
            if self.decode_load is None:
                raise typer.BadParameter("needed with --phase both", param_hint="--decode-load")
        self.tokens()

    def tokens(self) -> tuple[int | None, ...]:
        """Tokens of a rank in a step of each phase, None for the usual number.

        Raises
        ------
        typer.BadParameter
            Unless there is one number for each phase.
        """
        count = 2 if self.phase == BOTH else 1
        if self.tokens_per_rank is None:
            return (None,) * count
        parts = self.tokens_per_rank.split(",")
        if len(parts) != count or not all(part.strip().isdecimal() for part in parts):
            expected = "two numbers, as in 4096,128" if count == 2 else "one number"
            raise typer.BadParameter(f"{self.tokens_per_rank!r}: expected {expected}", param_hint="--tokens-per-rank")
        return tuple(int(part) for part in parts)
