"""Defines what a user may add to the loads and traces that a command reads, once for all commands."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, final

import typer

from eplb_cli.arguments import choices
from eplb_cli.arguments.option_group import takes
from eplb_cli.arguments.parse import id_list

if TYPE_CHECKING:
    from eplb_traces.combine import Combine
    from eplb_traces.readers import ReadOptions

SUM = "sum"
"""The word of --window for one window of everything."""


def _window(text: str) -> int:
    """Steps of a window, or the window of all steps for "sum"."""
    from eplb_traces.routing_trace import ALL_STEPS

    if text.strip().lower() == SUM:
        return ALL_STEPS
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r}: expected a number of steps, or {SUM}") from None


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """The options of the command line about the files LOAD; each field is one option of a command that `reads_loads`.

    Every option is checked against every file, and one without effect on a file is refused.
    """

    num_experts: Annotated[
        int | None, typer.Option("--num-experts", metavar="E", help="Experts of a layer, if not in the file.")
    ] = None
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="K", help="Experts that a token selects, if not in the file.")
    ] = None
    moe_layers: Annotated[
        str | None,
        typer.Option("--moe-layers", metavar="IDS", help="Ids of the MoE layers in the model: 3-60 or 1,3,5."),
    ] = None
    hidden_layers: Annotated[
        int | None,
        typer.Option("--hidden-layers", metavar="H", help="Layers of the model, dense ones included."),
    ] = None
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            metavar="STEPS|sum",
            parser=_window,
            help="Steps of a window of a trace; of a load, windows to sum into one; sum: everything is one window. "
            "Repeated layer ids of a table are windows then.",
            show_default="a trace is cut into at most 40, a load keeps its own",
        ),
    ] = None
    dialect: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="DIALECT",
            help="Dialect of the file, see `eplb trace dialects`.",
            show_default="by suffix and content",
            parser=choices.DIALECT.one,
            autocompletion=choices.DIALECT.complete,
        ),
    ] = None
    ignore_ids: Annotated[
        str | None,
        typer.Option(
            "--ignore-ids",
            metavar="IDS",
            help="Expert ids that are no placed experts: 255,256. Shared and zero experts, fill values.",
        ),
    ] = None
    ignore_columns: Annotated[
        str | None,
        typer.Option(
            "--ignore-columns",
            metavar="COLS",
            help="Columns, from 0, that are no placed experts: choices of a token in a trace, experts in a load.",
        ),
    ] = None
    recorded_under: Annotated[
        Path | None,
        typer.Option(
            "--recorded-under",
            metavar="PLAN",
            help="Placement in force while the file was recorded, for files that count slots; any dialect of "
            "`eplb formats`.",
        ),
    ] = None
    combine: Annotated[
        str | None,
        typer.Option(
            "--combine",
            metavar="HOW",
            help="What several files are: workloads (different traffic), sum (one file a rank), time (one after the "
            "other) or layers (parts of the model).",
            show_default="workloads",
            parser=choices.COMBINE.one,
            autocompletion=choices.COMBINE.complete,
        ),
    ] = None

    def options(self) -> "ReadOptions":
        """What the reader of each file is told.

        Raises
        ------
        typer.BadParameter
            For a list of ids that cannot be parsed.
        FormatError
            For a placement file that cannot be read.
        """
        from eplb_cli.arguments.recorded_map import recorded_map
        from eplb_traces.readers import ReadOptions

        moe_layer_ids = _ids(self.moe_layers, "--moe-layers")
        return ReadOptions(
            num_experts=self.num_experts,
            top_k=self.top_k,
            moe_layer_ids=moe_layer_ids,
            num_hidden_layers=self.hidden_layers,
            window=self.window,
            ignore_ids=_ids(self.ignore_ids, "--ignore-ids") or (),
            ignore_columns=_ids(self.ignore_columns, "--ignore-columns") or (),
            recorded_under=None
            if self.recorded_under is None
            else recorded_map(self.recorded_under, self.num_experts, moe_layer_ids, self.hidden_layers),
        )

    def how(self, num_files: int) -> "Combine":
        """What several files are to each other.

        Raises
        ------
        typer.BadParameter
            For one that is given for a single file.
        """
        from eplb_traces.combine import Combine

        if self.combine is None:
            return Combine.WORKLOADS
        if num_files == 1:
            raise typer.BadParameter("has no effect on a single file", param_hint="--combine")
        return Combine(self.combine)


def _ids(text: str | None, option: str) -> tuple[int, ...] | None:
    return None if text is None else id_list(text, option)


reads_loads = takes("reading", Reading)
"""Gives a command the options of `Reading` in place of its keyword parameter `reading`."""
