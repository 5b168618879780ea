"""The options of `eplb verify` that no other command has."""

from pathlib import Path
from typing import Annotated

import typer

from eplb_cli.arguments import choices

ProcessesOpt = Annotated[
    int, typer.Option("--processes", "-p", metavar="P", help="Processes to start; each executes several ranks.")
]
BackendOpt = Annotated[
    str, typer.Option("--backend", "-b", metavar="B", help="gloo (CPU) or nccl (a GPU for each process).")
]
MindieConfigOpt = Annotated[
    Path | None,
    typer.Option("--mindie-config", metavar="FILE", help="Exchange and buffer sizes from MindIE's config.json."),
]
ExchangeOpt = Annotated[
    str,
    typer.Option(
        "--exchange",
        metavar="X",
        parser=choices.EXCHANGE.one,
        autocompletion=choices.EXCHANGE.complete,
        help="all, auto (by bytes), allgather, alltoall or symmetric.",
    ),
]
DispatchOpt = Annotated[
    str,
    typer.Option(
        "--dispatch",
        metavar="RULE",
        parser=choices.DISPATCH.one,
        autocompletion=choices.DISPATCH.complete,
        help="even, weighted, local_first, online, vllm, sglang_static, sglang_dynamic, ascend or trtllm.",
    ),
]
TokensPerRankOpt = Annotated[
    int | None,
    typer.Option(
        "--tokens-per-rank",
        "-t",
        "--tokens",
        metavar="T",
        help="Tokens of each rank.",
        show_default="64; with --virtual by --phase",
    ),
]
TraceOpt = Annotated[
    Path | None,
    typer.Option("--trace", metavar="TRACE", help="Token-level trace to route by; else a random router."),
]
LayersOpt = Annotated[
    str,
    typer.Option("--layers", metavar="IDS", help="Layers to execute: 0,5 or all.", show_default="a few"),
]
HiddenOpt = Annotated[
    int, typer.Option("--hidden-size", "--hidden", metavar="H", help="Hidden size of the probe experts.")
]
TopKOpt = Annotated[
    int, typer.Option("--top-k", metavar="K", help="Experts of a token.", show_default="that of the plan, or 8")
]
BufferScaleFactorsOpt = Annotated[
    str, typer.Option(metavar="JSON", help="All-to-all buffers, as MindIE has them: [[8192, 5.2], [0, 8.0]].")
]
TopkScalingFactorOpt = Annotated[
    float, typer.Option(metavar="F", help="Part of the sorted rows that AllGather keeps, as MindIE has it.")
]
OverflowOpt = Annotated[
    str,
    typer.Option(
        "--overflow",
        metavar="O",
        parser=choices.OVERFLOW.one,
        autocompletion=choices.OVERFLOW.complete,
        help="raise, or drop: count what a buffer has no room for.",
    ),
]
InjectOpt = Annotated[
    str,
    typer.Option(
        "--inject",
        metavar="FAULT",
        parser=choices.FAULT.one,
        autocompletion=choices.FAULT.complete,
        help="Break something to see a check fail: swap-weights, drop-row, stale-map, ...",
    ),
]
RecordOpt = Annotated[
    Path | None, typer.Option("--record", metavar="OUT", help="Write the measured choices as a trace (.parquet).")
]
VirtualOpt = Annotated[
    bool,
    typer.Option(
        "--virtual",
        help="Execute the experts of all ranks on one device, one rank after the other: seconds of each layer.",
    ),
]
LoadOpt = Annotated[
    Path | None,
    typer.Option("--load", metavar="LOAD", help="Load to draw the tokens from, with --virtual."),
]
