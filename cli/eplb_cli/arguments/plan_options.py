"""Defines the options that only `eplb plan` has, and checks which exclude each other."""

from pathlib import Path
from typing import Annotated, Final

import typer

from eplb_cli.arguments import choices
from eplb_cli.arguments.parse import Nodes, node_sizes, refuse_typed

RanksOpt = Annotated[
    int | None,
    typer.Option("--ranks", "-r", metavar="R", help="GPUs of the expert-parallel group.", show_default=False),
]
NodesOpt = Annotated[
    Nodes | None,
    typer.Option(
        "--nodes",
        "-n",
        metavar="N",
        parser=node_sizes,
        help="Nodes that hold the ranks, or the ranks of each: 8,8,7.",
        show_default="1",
    ),
]
RedundantOpt = Annotated[
    int | None,
    typer.Option(
        "--redundant", "-k", metavar="K", help="Redundant experts of a layer, over all ranks.", show_default="0"
    ),
]
MindieConfigOpt = Annotated[
    Path | None,
    typer.Option("--mindie-config", metavar="FILE", help="MindIE's config.json, which holds ranks, nodes, redundancy."),
]
OutOpt = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="OUT", help="Placement file to write; - is stdout. Without it nothing is written."
    ),
]
PreviousOpt = Annotated[
    Path | None,
    typer.Option("--previous", metavar="PLAN", help="The live placement: change it, and move few replicas."),
]
TargetOpt = Annotated[
    float,
    typer.Option("--target", metavar="X", help="With --previous: busiest over mean rank that is good enough."),
]
MaxMovesOpt = Annotated[
    int | None,
    typer.Option("--max-moves", metavar="M", help="With --previous: most replicas to move.", show_default="any number"),
]

ConstraintsOpt = Annotated[
    Path | None,
    typer.Option(
        "--constraints", metavar="FILE", help="Hard constraints, a TOML file. Strategies greedy, scenario and ilp."
    ),
]
ReplicateEverywhereOpt = Annotated[
    str | None,
    typer.Option(
        "--replicate-everywhere",
        metavar="IDS",
        help="Experts with a replica on every rank, such as a shared expert: 256. Strategies as for --constraints.",
    ),
]
ReplicatedSlotOpt = Annotated[
    str | None,
    typer.Option(
        "--replicated-slot",
        metavar="SLOT",
        parser=choices.REPLICATED_SLOT.one,
        autocompletion=choices.REPLICATED_SLOT.complete,
        help="With --replicate-everywhere: last or first, the local slots that hold these experts.",
        show_default="last",
    ),
]
TimeLimitOpt = Annotated[
    float | None,
    typer.Option(
        "--time-limit", metavar="S", help="Wall seconds of the whole plan, for ilp.", show_default="the strategy's own"
    ),
]
LostRanksOpt = Annotated[
    str | None,
    typer.Option(
        "--lost-ranks", metavar="IDS", help="With --previous: ranks that are gone, 3,17; plan on with the others."
    ),
]
SlotsOpt = Annotated[
    int | None,
    typer.Option(
        "--slots", metavar="S", help="With --previous: slots of every rank from now on.", show_default="as before"
    ),
]
RetireRanksOpt = Annotated[
    str | None,
    typer.Option(
        "--retire-ranks",
        metavar="IDS",
        help="With --previous: ranks that will be taken away, 24-31, and are copied from before that.",
    ),
]
RankMapOpt = Annotated[
    str | None,
    typer.Option(
        "--rank-map",
        metavar="OLD:NEW",
        help="With --previous: which old ranks are which new ones, 0-2:0-2,3-5:4-6; the others retire.",
        show_default="ranks keep their nodes or ids",
    ),
]
PreviousRanksOpt = Annotated[
    int | None, typer.Option("--previous-ranks", metavar="R", help="Ranks of --previous, if not in the file.")
]
PreviousNodesOpt = Annotated[
    Nodes | None,
    typer.Option("--previous-nodes", metavar="N", parser=node_sizes, help="Nodes of --previous, if not in the file."),
]
KeepRankIdsOpt = Annotated[
    bool,
    typer.Option(
        "--keep-rank-ids",
        help="With --lost-ranks: the others keep their ids and the lost ones their columns, as in SGLang's elastic "
        "expert parallelism; formats native and sglang.",
    ),
]
GroupPriceOpt = Annotated[
    float,
    typer.Option(
        "--group-price",
        metavar="X",
        help="With --group-mode priced: locality penalty: least gain in busiest / mean rank of an off-node replica.",
    ),
]
SurviveOpt = Annotated[
    str | None,
    typer.Option(
        "--survive",
        metavar="UNIT",
        parser=choices.SURVIVE.one,
        autocompletion=choices.SURVIVE.complete,
        help="rank or node: every expert has a replica left after the loss of any one of them.",
        show_default="nothing",
    ),
]

TraceOpt = Annotated[
    Path | None,
    typer.Option("--trace", metavar="TRACE", help="With --strategy traffic: the token-level trace to plan for."),
]
LoadCapOpt = Annotated[
    float | None,
    typer.Option(
        "--load-cap", metavar="X", help="With --strategy traffic: most busiest over mean rank.", show_default="1.03"
    ),
]
ParetoOpt = Annotated[
    bool,
    typer.Option("--pareto", help="With --strategy traffic: load against nodes a token for several caps; -o: drawing."),
]

_ONLY_WITH_PREVIOUS: Final = (
    *("--target", "--max-moves", "--lost-ranks", "--expert-bytes", "--slots", "--retire-ranks", "--rank-map"),
    *("--previous-ranks", "--previous-nodes", "--keep-rank-ids"),
)
_ONLY_WITHOUT_PREVIOUS: Final = (
    *("--mindie-config", "--strategy", "--groups", "--group-mode", "--group-price"),
    *("--constraints", "--replicate-everywhere", "--replicated-slot", "--time-limit", "--survive"),
    *("--trace", "--load-cap", "--pareto"),
)
_OTHER_RANKS: Final = ("--ranks", "--nodes", "--slots", "--redundant", "--retire-ranks", "--rank-map")
_CONSTRAINED: Final = ("auto", "greedy", "scenario", "ilp")
_ONLY_FOR_TRAFFIC: Final = ("--trace", "--load-cap", "--pareto")
_NOT_WITH_PARETO: Final = (
    *("--load-cap", "--to", "--dispatch", "--group-mode", "--group-price", "--survive"),
    *("--engine", "--engine-option", "--sources"),
)


def check_options(
    context: typer.Context, previous: Path | None, strategy: str, *, keep_rank_ids: bool = False, pareto: bool = False
) -> None:
    """Refuse what would be ignored: with --previous, without it, or by the strategy."""
    if previous is not None:
        refuse_typed(context, _ONLY_WITHOUT_PREVIOUS, "cannot be chosen with --previous")
        if keep_rank_ids:
            refuse_typed(context, _OTHER_RANKS, "cannot be changed with --keep-rank-ids")
        return
    refuse_typed(context, _ONLY_WITH_PREVIOUS, "has no effect without --previous")
    if strategy not in _CONSTRAINED:
        reason = "needs --strategy greedy, scenario or ilp"
        refuse_typed(context, ("--constraints", "--replicate-everywhere", "--replicated-slot"), reason)
    if strategy != "ilp":
        refuse_typed(context, ("--time-limit",), "needs --strategy ilp")
    if strategy != "traffic":
        refuse_typed(context, _ONLY_FOR_TRAFFIC, "needs --strategy traffic")
    if pareto:
        refuse_typed(context, _NOT_WITH_PARETO, "cannot be chosen with --pareto")
