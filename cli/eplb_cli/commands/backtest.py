"""`eplb backtest`: scores plans made on the first part of a history on the rest."""

from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments import files, options
from eplb_cli.arguments.engine import EngineOpt, EngineOptionsOpt, SourcesOpt, dispatch_of, source_shares
from eplb_cli.arguments.reading import Reading, reads_loads
from eplb_cli.arguments.topology import topology_from_options

if TYPE_CHECKING:
    from eplb.planning.backtest import Score

_HEADINGS = ("candidate", "planned", "held out", "p95", "loss")
_LEGEND = """\
max/mean, mean over windows and layers: planned, on the windows the plan was made for;
held out, on the end of the history, p95 over its windows and layers; loss: the difference"""


@reads_loads
def backtest(  # noqa: PLR0913  # one parameter a word of the command line
    load_paths: options.LoadsArg,
    ranks: options.RanksOpt,
    nodes: options.NodesOpt = 1,
    redundant: options.RedundantOpt = 0,
    held_out: Annotated[
        float, typer.Option("--held-out", metavar="X", help="Share of the windows, at the end, that no plan sees.")
    ] = 0.25,
    strategies: Annotated[str | None, options.strategies_option("the candidates of auto")] = None,
    groups: options.GroupsOpt = None,
    group_mode: options.GroupModeOpt = "free",
    dispatch: options.DispatchOpt = None,
    engine: EngineOpt = None,
    engine_options: EngineOptionsOpt = None,
    sources: SourcesOpt = None,
    seed: options.SeedOpt = 0,
    *,
    reading: Reading,
    as_csv: options.CsvOpt = False,
    as_json: options.JsonOpt = False,
) -> None:
    """Plan on the first part of LOAD, windows in order of time, and score the plans on the rest, best first."""
    import eplb
    from eplb.planning.planner import candidates_under

    by = dispatch_of(dispatch, engine, engine_options)
    load = files.read_load(load_paths, reading)
    num_candidates = len(candidates_under(by.rule) if strategies is None else strategies.split(","))
    with output.progress("planning and scoring", num_candidates) as step:
        scores = eplb.backtest(
            load,
            topology_from_options(load.num_experts, ranks=ranks, nodes=nodes, redundant=redundant),
            None if strategies is None else strategies.split(","),
            held_out=held_out,
            groups=groups,
            group_mode=group_mode,
            dispatch=by.rule,
            sources=source_shares(sources, ranks),
            seed=seed,
            on_score=step,
        )
    if as_csv:
        output.csv_rows([_as_object(score) for score in scores])
        return
    if as_json:
        output.json_object({"load": files.listed(load_paths), "candidates": [_as_object(score) for score in scores]})
        return
    title = f"{files.title_of(load_paths)}: {load.num_windows} windows, {by.rule} dispatch"
    output.table(title, _HEADINGS, [_row(score) for score in scores], legend=_LEGEND)


def _row(score: "Score") -> tuple[output.Cell, ...]:
    return score.candidate.name, score.planned, score.mean, score.p95, score.predicted_loss


def _as_object(score: "Score") -> dict[str, object]:
    return {
        "candidate": score.candidate.name,
        "strategy": score.candidate.strategy.name,
        "max_over_mean_planned": score.planned,
        "max_over_mean_held_out": score.mean,
        "max_over_mean_p95_held_out": score.p95,
        "predicted_loss": score.predicted_loss,
    }
