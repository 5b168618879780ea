"""Defines the options that several commands share. Names are checked by `choices`."""

from pathlib import Path
from typing import Annotated

import typer
from typer.models import OptionInfo

from eplb_cli.arguments import choices
from eplb_cli.arguments.parse import Nodes, byte_count, node_sizes
from eplb_cli.arguments.result_form import CsvOpt as CsvOpt
from eplb_cli.arguments.result_form import JsonOpt as JsonOpt

LoadsArg = Annotated[
    list[Path],
    typer.Argument(
        metavar="LOAD",
        help="What the router did: a load or a token-level trace, in any dialect of `eplb trace dialects`; several "
        "files are put together, see --combine. sample:moe-435m is a trace that is shipped; - is stdin.",
        show_default=False,
    ),
]
PlanArg = Annotated[
    Path,
    typer.Argument(
        metavar="PLAN", help="A placement file, in any dialect of `eplb formats`; - is stdin.", show_default=False
    ),
]

RanksOpt = Annotated[
    int, typer.Option("--ranks", "-r", metavar="R", help="GPUs of the expert-parallel group.", show_default=False)
]
NodesOpt = Annotated[
    Nodes,
    typer.Option(
        "--nodes", "-n", metavar="N", parser=node_sizes, help="Nodes that hold the ranks, or the ranks of each: 8,8,7."
    ),
]
RedundantOpt = Annotated[
    int, typer.Option("--redundant", "-k", metavar="K", help="Redundant experts of a layer, over all ranks.")
]
GroupModeOpt = Annotated[
    str,
    typer.Option(
        "--group-mode",
        metavar="M",
        parser=choices.GROUP_MODE.one,
        autocompletion=choices.GROUP_MODE.complete,
        help="free: any expert on any node; pinned: a group on one node; priced: see --group-price.",
    ),
]
GroupsOpt = Annotated[
    int | None,
    typer.Option("--groups", "-g", metavar="G", help="Expert groups of the router.", show_default="those of the load"),
]
SeedOpt = Annotated[int, typer.Option("--seed", metavar="I", min=0, help="Seed of randomised strategies.")]
NumExpertsOpt = Annotated[
    int | None,
    typer.Option("--num-experts", metavar="E", help="Experts of a layer, for a trace that does not hold it (.npz)."),
]
DispatchOpt = Annotated[
    str | None,
    typer.Option(
        "--dispatch",
        metavar="RULE",
        help="How the runtime splits an expert's tokens over its replicas: even, weighted, online, local_first, or an "
        "engine's own rule: vllm, sglang_static, sglang_dynamic, sglang_by_row, ascend, trtllm.",
        show_default="even, or the engine's",
        parser=choices.DISPATCH.one,
        autocompletion=choices.DISPATCH.complete,
    ),
]
ExpertBytesOpt = Annotated[
    float | None,
    typer.Option(
        "--expert-bytes",
        metavar="B",
        parser=byte_count,
        help="Bytes of one expert of one layer: 44040192, 44MB or 42MiB.",
        show_default="of the recording or --model; unknown: slots are counted",
    ),
]
StrategyOpt = Annotated[
    str,
    typer.Option(
        "--strategy",
        "-s",
        metavar="S",
        help="See `eplb strategies`; auto picks; your own as module:object or file.py:object.",
        parser=choices.STRATEGY.one,
        autocompletion=choices.STRATEGY.complete,
    ),
]


def strategies_option(default: str) -> OptionInfo:
    """`--strategies` of a command whose help names this default."""
    option: OptionInfo = typer.Option(
        "--strategies",
        metavar="A,B",
        parser=choices.STRATEGY.several,
        autocompletion=choices.STRATEGY.complete,
        help="Names, or your own as module:object or file.py:object, with commas.",
        show_default=default,
    )
    return option


WriteFormatOpt = Annotated[
    str | None,
    typer.Option(
        "--to",
        "--format",
        "-f",
        metavar="F",
        help="Dialect to write, see `eplb formats`.",
        show_default="the engine's, that of --previous, or by suffix",
        parser=choices.FORMAT.one,
        autocompletion=choices.FORMAT.complete,
    ),
]

# The model, for files that know layers by another number or not at all.
ExpertsOpt = Annotated[
    int | None, typer.Option("--num-experts", "--experts", metavar="E", help="Experts of a layer, if not in the file.")
]
MoeLayersOpt = Annotated[
    str | None, typer.Option("--moe-layers", metavar="IDS", help="Ids of the MoE layers in the model: 3-60 or 1,3,5.")
]
HiddenLayersOpt = Annotated[
    int | None, typer.Option("--hidden-layers", metavar="H", help="Layers of the model, dense ones included.")
]

# What a placement file of an engine may not hold.
FromOpt = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="F",
        help="Dialect of the file.",
        show_default="by its content",
        parser=choices.FORMAT.one,
        autocompletion=choices.FORMAT.complete,
    ),
]
PlanFormatOpt = Annotated[
    str | None,
    typer.Option(
        "--from",
        "--format",
        "-f",
        metavar="F",
        help="Dialect of PLAN.",
        show_default="by its content",
        parser=choices.FORMAT.one,
        autocompletion=choices.FORMAT.complete,
    ),
]
PlanDialectOpt = Annotated[
    str | None,
    typer.Option(
        "--plan-from",
        "--format",
        "-f",
        metavar="F",
        help="Dialect of the plans, see `eplb formats`.",
        show_default="by their content",
        parser=choices.FORMAT.one,
        autocompletion=choices.FORMAT.complete,
    ),
]
HintRanksOpt = Annotated[int | None, typer.Option("--ranks", "-r", metavar="R", help="Ranks, if not in the file.")]
HintNodesOpt = Annotated[
    Nodes | None,
    typer.Option(
        "--nodes", "-n", metavar="N", parser=node_sizes, help="Nodes, or the ranks of each, if not in the file."
    ),
]

# Traces and loads that are rewritten.
TracesArg = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE",
        help="A load or a token-level trace of any dialect; several are put together, see --combine; - is stdin.",
        show_default=False,
    ),
]
TraceOutArg = Annotated[
    Path,
    typer.Argument(
        metavar="OUT",
        help="A trace as .parquet; a load as .parquet, .npz, .csv or .json; - is stdout: a trace as .parquet, a load "
        "as .csv.",
        show_default=False,
    ),
]
