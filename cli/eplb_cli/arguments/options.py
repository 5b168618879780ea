"""Defines the options that several commands share. Names are checked by the libraries, which list the valid ones."""

from pathlib import Path
from typing import Annotated

import typer

from eplb_cli.arguments.parse import Nodes, node_sizes
from eplb_cli.arguments.result_form import CsvOpt as CsvOpt
from eplb_cli.arguments.result_form import JsonOpt as JsonOpt


def _complete_strategy(incomplete: str) -> list[str]:
    from eplb.strategies import STRATEGIES
    from eplb.strategies.own_strategy import installed_strategies

    return [name for name in ("auto", *STRATEGIES, *installed_strategies()) if name.startswith(incomplete)]


def _complete_dispatch(incomplete: str) -> list[str]:
    from eplb.core.dispatch_rule import DispatchRule

    return [rule.value for rule in DispatchRule if rule.value.startswith(incomplete)]


def complete_format(incomplete: str) -> list[str]:
    """The names of formats that begin like this."""
    from eplb.formats import FORMATS

    return [name for name in FORMATS if name.startswith(incomplete)]


LoadsArg = Annotated[
    list[Path],
    typer.Argument(
        metavar="LOAD",
        help="What the router did: a load or a token-level trace, in any dialect of `eplb trace dialects`; several "
        "files are put together, see --combine. sample:moe-435m is a trace that is shipped.",
        show_default=False,
    ),
]
PlanArg = Annotated[
    Path, typer.Argument(metavar="PLAN", help="A placement file, in any dialect of `eplb formats`.", show_default=False)
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
        autocompletion=_complete_dispatch,
    ),
]
ExpertBytesOpt = Annotated[
    float | None,
    typer.Option(
        "--expert-bytes",
        metavar="B",
        help="Bytes of one expert of one layer.",
        show_default="44040192, DeepSeek-V3's in FP8",
    ),
]
StrategyOpt = Annotated[
    str,
    typer.Option(
        "--strategy",
        "-s",
        metavar="S",
        help="See `eplb strategies`; auto picks; your own as module:object or file.py:object.",
        autocompletion=_complete_strategy,
    ),
]
WriteFormatOpt = Annotated[
    str | None,
    typer.Option(
        "--format",
        "-f",
        metavar="F",
        help="Dialect to write, see `eplb formats`.",
        show_default="the engine's, that of --previous, or by suffix",
        autocompletion=complete_format,
    ),
]

# The model, for files that know layers by another number or not at all.
ExpertsOpt = Annotated[
    int | None, typer.Option("--experts", metavar="E", help="Experts of a layer, if not in the file.")
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
        autocompletion=complete_format,
    ),
]
PlanFormatOpt = Annotated[
    str | None,
    typer.Option(
        "--format",
        "-f",
        "--from",
        metavar="F",
        help="Dialect of PLAN.",
        show_default="by its content",
        autocompletion=complete_format,
    ),
]
PlanDialectOpt = Annotated[
    str | None,
    typer.Option(
        "--format",
        "-f",
        metavar="F",
        help="Dialect of the plans, see `eplb formats`.",
        show_default="by their content",
        autocompletion=complete_format,
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
        help="A load or a token-level trace of any dialect; several are put together, see --combine.",
        show_default=False,
    ),
]
TraceOutArg = Annotated[
    Path,
    typer.Argument(
        metavar="OUT", help="A trace as .parquet; a load as .parquet, .npz, .csv or .json.", show_default=False
    ),
]
