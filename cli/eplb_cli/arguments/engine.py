"""Defines --engine, --engine-option and --sources, and makes the dispatch of a command from them and --dispatch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, final

import typer

from eplb_cli.arguments import choices

if TYPE_CHECKING:
    from eplb.core.dispatch_rule import DispatchRule
    from eplb.evaluation.metrics import Evaluation
    from eplb.planning.engine_target import EngineTarget
    from eplb_cli.output import Cell

ALL: Final = "all"
"""Every engine, in `eplb compare`."""


EngineOpt = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="E",
        help="Engine that runs the plan: sets the dispatch rule, the format of the file, the limits and the metric.",
        parser=choices.ENGINE.one,
        autocompletion=choices.ENGINE.complete,
    ),
]
EngineOrAllOpt = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="E",
        help="Engine whose dispatch rule and metric are used; all: one table of every engine, its algorithm and ours.",
        parser=choices.ENGINE_OR_ALL.one,
        autocompletion=choices.ENGINE_OR_ALL.complete,
    ),
]
EngineOptionsOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-option",
        metavar="NAME=VALUE",
        help="With --engine: an option that decides the engine's rule, such as a2a=none or algorithm=dynamic.",
        show_default="the engine's first case in docs/explanation/dispatch-rules.md",
    ),
]
SourcesOpt = Annotated[
    str | None,
    typer.Option(
        "--sources",
        metavar="S",
        help="Tokens that each rank sends: a weight for each rank, 3,1,1,1, or a trace that holds source ranks.",
        show_default="all ranks alike",
    ),
]


@final
@dataclass(frozen=True)
class Dispatch:
    """How the tokens of a command's placements are dispatched."""

    rule: "DispatchRule"
    target: "EngineTarget | None"

    @property
    def in_title(self) -> str:
        """The end of a table's title: the rule, unless the split is even."""
        return "" if self.rule.value == "even" else f", {self.rule} dispatch"

    @property
    def in_sentence(self) -> str:
        """How tokens are dispatched: "as sglang dispatches", "under even dispatch"."""
        return f"under {self.rule} dispatch" if self.target is None else f"as {self.target.engine} dispatches"

    def format_to_write(self, given: str | None) -> str:
        """Name of the format: the one that was given, else the engine's, else native.

        Raises
        ------
        typer.BadParameter
            For the format of another engine.
        """
        if self.target is None:
            return "native" if given is None else given
        if given not in (None, "native", self.target.format):
            raise typer.BadParameter(
                f"{given}: {self.target.engine} takes {self.target.format}; native keeps the plan for later",
                param_hint="--to",
            )
        return self.target.format if given is None else given

    def metric_fields(self, evaluation: "Evaluation") -> dict[str, object]:
        """The engine and its own metric, for `--json`; nothing without an engine."""
        if self.target is None:
            return {}
        name, value = self.target.metric(evaluation)
        return {"engine": self.target.engine, "engine_metric": {"name": name, "value": value}}

    def metric_fact(self, evaluation: "Evaluation") -> "list[tuple[str, Cell]]":
        """The engine's own metric as a row; none without an engine."""
        return [] if self.target is None else [self.target.metric(evaluation)]


def dispatch_of(dispatch: str | None, engine: str | None, options: Sequence[str] | None) -> Dispatch:
    """The rule that the options name.

    Raises
    ------
    typer.BadParameter
        For --engine-option without --engine or not of the form NAME=VALUE, or a --dispatch that is not the engine's.
    InputError
        For a name or value that is unknown, or that the engine refuses.
    """
    from eplb.core.dispatch_rule import DispatchRule
    from eplb.planning.engine_target import EngineTarget

    if engine is None:
        if options:
            raise typer.BadParameter("has no effect without --engine", param_hint="--engine-option")
        return Dispatch(DispatchRule.EVEN if dispatch is None else DispatchRule.named(dispatch), None)
    target = EngineTarget.named(engine, _parsed(options or []))
    if dispatch is not None and DispatchRule.named(dispatch) is not target.rule:
        raise typer.BadParameter(
            f"{dispatch}: {engine} dispatches by {target.rule} with these options; leave one of the two out",
            param_hint="--dispatch",
        )
    return Dispatch(target.rule, target)


def _parsed(options: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not (name and equals and value) or name in found:
            raise typer.BadParameter(f"{option!r}: expected NAME=VALUE, each name once", param_hint="--engine-option")
        found[name] = value
    return found


def source_shares(text: str | None, num_ranks: int) -> tuple[float, ...] | None:
    """The share of the tokens that each rank sends, from weights or from a trace with source ranks.

    Raises
    ------
    typer.BadParameter
        For weights that are no numbers >= 0 with a sum above 0, one for each rank.
    InputError
        For a trace that does not hold source ranks, or holds one that does not exist.
    """
    if text is None:
        return None
    if Path(text).is_file():
        return _shares_of_trace(Path(text), num_ranks)
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: expected a weight for each rank as in 3,1,1,1, or the file of a trace", param_hint="--sources"
        ) from None
    if len(weights) != num_ranks:
        raise typer.BadParameter(
            f"{len(weights)} weights: expected one for each of {num_ranks} ranks", param_hint="--sources"
        )
    total = sum(weights)
    if not (all(weight >= 0 for weight in weights) and 0 < total < float("inf")):
        raise typer.BadParameter(f"{text}: expected weights >= 0 with a sum above 0", param_hint="--sources")
    return tuple(weight / total for weight in weights)


def _shares_of_trace(path: Path, num_ranks: int) -> tuple[float, ...]:
    import numpy as np

    from eplb_traces import InputError, read_trace

    counts = np.zeros(num_ranks)
    for batch in read_trace(path).batches():
        if batch.source_rank is None:
            raise InputError(f"{path}: the trace holds no source ranks (source_rank): give a weight for each rank")
        largest = int(batch.source_rank.max(initial=0))
        if largest >= num_ranks:
            raise InputError(f"{path}: source_rank = {largest}: expected 0 <= rank < {num_ranks}")
        counts += np.bincount(batch.source_rank, minlength=num_ranks)
    return tuple((counts / counts.sum()).tolist())
