"""`eplb plan`: from a load, and for a replan the live placement, to a placement file."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

import typer

from eplb_cli import output
from eplb_cli.arguments import cost_options, files, options, phase_options, plan_options
from eplb_cli.arguments.constraints_file import constraints_of
from eplb_cli.arguments.engine import (
    Dispatch,
    EngineOpt,
    EngineOptionsOpt,
    SourcesOpt,
    dispatch_of,
    source_shares,
)
from eplb_cli.arguments.parse import check_above_zero, check_at_least, id_list, rank_pairs, refuse_typed
from eplb_cli.arguments.reading import Reading, reads_loads
from eplb_cli.arguments.token_trace import read_token_trace
from eplb_cli.arguments.topology import topology_from_options
from eplb_cli.commands.plan_front import check_front, show_front
from eplb_cli.commands.plan_phases import PhaseFiles, make_phase_plans, show_phase_plans
from eplb_cli.commands.replan import NewRanks, Replan, replan
from eplb_cli.views import plan_rows
from eplb_cli.views.gain_rows import Worth

if TYPE_CHECKING:
    from eplb.core.problem import Plan

_SEVERAL_LOADS = (
    "several loads: `scenario` plans for each alike; other strategies plan for their sum, tokens as they are"
)


@reads_loads
def plan(  # noqa: PLR0913  # one parameter a word of the command line
    context: typer.Context,
    load_paths: options.LoadsArg,
    ranks: plan_options.RanksOpt = None,
    out: plan_options.OutOpt = None,
    nodes: plan_options.NodesOpt = None,
    redundant: plan_options.RedundantOpt = None,
    mindie_config: plan_options.MindieConfigOpt = None,
    strategy: options.StrategyOpt = "auto",
    groups: options.GroupsOpt = None,
    group_mode: options.GroupModeOpt = "free",
    group_price: plan_options.GroupPriceOpt = 0.0,
    dispatch: options.DispatchOpt = None,
    engine: EngineOpt = None,
    engine_options: EngineOptionsOpt = None,
    sources: SourcesOpt = None,
    constraints: plan_options.ConstraintsOpt = None,
    replicate_everywhere: plan_options.ReplicateEverywhereOpt = None,
    replicated_slot: plan_options.ReplicatedSlotOpt = None,
    time_limit: plan_options.TimeLimitOpt = None,
    survive: plan_options.SurviveOpt = None,
    trace: plan_options.TraceOpt = None,
    load_cap: plan_options.LoadCapOpt = None,
    phase: phase_options.PhaseOpt = None,
    calibration: cost_options.CalibrationOpt = None,
    model: cost_options.ModelOpt = None,
    dtype: cost_options.WeightTypeOpt = None,
    tokens_per_rank: phase_options.TokensPerRankOpt = None,
    decode_load: phase_options.DecodeLoadOpt = None,
    previous: plan_options.PreviousOpt = None,
    target: plan_options.TargetOpt = 1.05,
    max_moves: plan_options.MaxMovesOpt = None,
    lost_ranks: plan_options.LostRanksOpt = None,
    retire_ranks: plan_options.RetireRanksOpt = None,
    rank_map: plan_options.RankMapOpt = None,
    slots: plan_options.SlotsOpt = None,
    previous_ranks: plan_options.PreviousRanksOpt = None,
    previous_nodes: plan_options.PreviousNodesOpt = None,
    expert_bytes: options.ExpertBytesOpt = None,
    format: options.WriteFormatOpt = None,
    seed: options.SeedOpt = 0,
    *,
    keep_rank_ids: plan_options.KeepRankIdsOpt = False,
    pareto: plan_options.ParetoOpt = False,
    reading: Reading,
    as_json: options.JsonOpt = False,
) -> None:
    """Place the experts of LOAD on ranks, show the metrics of the placement, and write it for an engine."""
    import eplb
    from eplb.core.problem import Problem
    from eplb.planning.gain import gain_over_live, gain_over_order, redundancy_notes
    from eplb.planning.traffic_front import traffic_front
    from eplb_traces.combine import Combine

    plan_options.check_options(context, previous, strategy, keep_rank_ids=keep_rank_ids, pareto=pareto)
    of_phase = phase_options.PhaseOptions(
        phase=phase, calibration=calibration, model=model, dtype=dtype, tokens_per_rank=tokens_per_rank,
        decode_load=decode_load,
    )  # fmt: skip
    of_phase.check(context, previous)
    if phase is not None and group_mode == "free":
        refuse_typed(context, ("--groups",), "has no effect with --phase in group mode free")
    check_above_zero({"--time-limit": time_limit})
    check_at_least(1, {"--slots": slots})
    if pareto:
        check_front(out, has_trace=trace is not None)
    by = dispatch_of(dispatch, engine, engine_options)
    if format is None and out is not None and by.target is None and not pareto:
        format = files.dialect_to_write(out, previous)
    shares, live = None, None
    several = len(load_paths) > 1 and reading.how(len(load_paths)) is Combine.WORKLOADS
    load = files.read_load(load_paths, reading)
    if previous is None:
        topology = topology_from_options(
            load.num_experts, ranks=ranks, nodes=nodes, redundant=redundant, mindie_config=mindie_config
        )
        shares = source_shares(sources, topology.num_ranks)
        if decode_load is not None:
            problem = Problem(load, topology, dispatch=by.rule)
            found = make_phase_plans(problem, files.read_load([decode_load], reading), of_phase, seed=seed)
            show_phase_plans(found, PhaseFiles(out, by.format_to_write(format)), by, as_json=as_json)
            return
        if pareto and trace is not None:
            with output.progress("planning"):
                points = traffic_front(load, topology, read_token_trace(trace, reading), groups=groups, seed=seed)
            show_front(points, out, as_json=as_json)
            return
        for_greedy = survive is not None or group_mode == "priced"  # what `auto` takes `greedy` for
        with output.progress("planning"):
            made = eplb.plan(
                load,
                topology,
                strategy if for_greedy else _strategy(strategy, several=several and phase is None),
                groups=groups,
                group_mode=group_mode,
                group_price=group_price,
                dispatch=by.rule,
                constraints=constraints_of(constraints, replicate_everywhere, replicated_slot, engine),
                time_limit_s=time_limit,
                survive=survive,
                sources=shares,
                trace=None if trace is None else read_token_trace(trace, reading),
                load_cap=load_cap,
                phase=phase,
                calibration=calibration,
                model=model,
                tokens_per_rank=of_phase.tokens()[0],
                dtype=dtype,
                seed=seed,
            )
    else:
        asked = Replan(
            previous=previous,
            previous_ranks=previous_ranks,
            previous_nodes=previous_nodes,
            ranks=NewRanks(
                num_ranks=ranks,
                nodes=nodes,
                slots=slots,
                redundant=redundant,
                lost=() if lost_ranks is None else id_list(lost_ranks, "--lost-ranks"),
                retiring=() if retire_ranks is None else id_list(retire_ranks, "--retire-ranks"),
                rank_map=None if rank_map is None else rank_pairs(rank_map, "--rank-map"),
            ),
            keep_rank_ids=keep_rank_ids,
            target=target,
            max_moves=max_moves,
            expert_bytes=expert_bytes,
            rule=by.rule,
            sources=sources,
        )
        made, live, shares = replan(load, asked, seed=seed)
    if several and phase is None:
        made = replace(made, notes=(_SEVERAL_LOADS, *made.notes))
    if by.target is not None:
        by.target.check(made.placement)
        made = replace(made, notes=(*by.target.notes(made.shape), *made.notes))
    with output.progress("evaluating"):
        evaluation = eplb.evaluate(made.placement, load, by.rule, sources=shares)
        gain = gain_over_order(evaluation, shares) if live is None else gain_over_live(evaluation, live, shares)
        hints = redundancy_notes(evaluation, shares) if live is None else ()
    _report(made, Worth(gain, hints), _Output(out, by.format_to_write(format), by), as_json=as_json)


def _strategy(name: str, *, several: bool) -> str:
    """`auto` would take several files as a history for a backtest."""
    return "scenario" if name == "auto" and several else name


@final
@dataclass(frozen=True)
class _Output:
    """Where the plan is written, in which format, and for which engine."""

    path: Path | None
    format: str
    by: Dispatch


def _report(made: "Plan", worth: Worth, to: _Output, *, as_json: bool) -> None:
    """Write the file, if one was requested, then print its contents and what the plan is worth."""
    flags = "" if to.path is None else _write(made, to.path, to)
    made = replace(made, notes=(*worth.hints, *made.notes))
    evaluation = worth.gain.after
    if as_json:
        written = None if to.path is None else {"path": str(to.path), "format": to.format, "server_flags": flags}
        fields = plan_rows.as_object(made, evaluation) | worth.fields() | to.by.metric_fields(evaluation)
        output.json_object(fields | {"written": written})
        return
    output.line(worth.headline(to.by))
    plan_rows.show(made, evaluation, to.by.metric_fact(evaluation))
    if to.path is not None:
        output.written(to.path, to.format, flags)


def _write(made: "Plan", out: Path, to: _Output) -> str:
    """Write the file and return the server flags that load it."""
    from eplb.formats import FORMATS, write_plan

    with output.progress(f"writing {out.name}"):
        write_plan(made, out, to.format)
    return FORMATS[to.format].server_flags(out, made) if to.by.target is None else to.by.target.flags(out, made)
