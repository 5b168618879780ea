"""`eplb replay`: executes the steps of a history on virtual ranks, under plans, periodic replans and online replans."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments import choices, cost_options, files, options
from eplb_cli.arguments.parse import check_above_zero, check_at_least, refuse_typed
from eplb_cli.arguments.reading import Reading, reads_loads

if TYPE_CHECKING:
    from eplb.core.topology import Topology
    from eplb.cost import Calibration
    from eplb.online.replay_arms import Arm
    from eplb.runtime.virtual.step_replay import ReplayRequest, StepTimes

_HEADINGS = ("plan", "mean", "p50", "p95", "p99", "FFN", "model", "moves", "travel")
_LEGEND = """\
mean, p50, p95, p99: milliseconds of a step: FFN of the slowest rank of each layer, and the weights that travel
FFN, model: mean over steps of the measured FFN, and the same by the calibration; dispatch and combine are not executed
moves, travel: replicas fetched from other ranks, and milliseconds that they travel, over all steps"""
_ONLY_FOR_REPLANS = ("--redundant", "--groups", "--layers-per-step", "--bandwidth", "--seed")


@reads_loads
def replay(  # noqa: PLR0913  # one parameter a word of the command line
    context: typer.Context,
    load_paths: options.LoadsArg,
    model: cost_options.NeededModelOpt,
    calibration: cost_options.NeededCalibrationOpt,
    plan: Annotated[
        list[Path] | None,
        typer.Option("--plan", metavar="PLAN", help="A placement that serves all steps; may be given several times."),
    ] = None,
    strategies: Annotated[
        list[str] | None,
        typer.Option("--strategies", "--strategy", "-s", metavar="A,B",
                     parser=choices.STRATEGY.several, autocompletion=choices.STRATEGY.complete,
                     help="Plan anew with each of these for the last --every steps."),
    ] = None,
    online: Annotated[bool, typer.Option("--online", help="Let the online rebalancer move replicas.")] = False,
    every: Annotated[
        int,
        typer.Option("--every", metavar="N",
                     help="Steps between two replans; the first N steps are planned for and not executed."),
    ] = 20,
    ranks: options.HintRanksOpt = None,
    nodes: options.HintNodesOpt = None,
    redundant: Annotated[
        int | None,
        typer.Option("--redundant", "-k", metavar="K", help="Redundant experts of replans.",
                     show_default="slots as in the first PLAN, else 0"),
    ] = None,
    groups: options.GroupsOpt = None,
    group_mode: options.GroupModeOpt = "free",
    dispatch: options.DispatchOpt = None,
    layers: Annotated[
        str | None, typer.Option("--layers", metavar="IDS", help="Layers to replay: 0,5 or 0-3.", show_default="all")
    ] = None,
    tokens_per_rank: Annotated[
        int,
        typer.Option("--tokens-per-rank", metavar="T", help="Multiply the counts of each step to T tokens a rank.",
                     show_default="as recorded"),
    ] = 0,
    layers_per_step: Annotated[
        int, typer.Option("--layers-per-step", metavar="L", help="Layers that a migration moves in one step.")
    ] = 1,
    bandwidth: Annotated[
        float | None,
        typer.Option("--bandwidth", metavar="GB/S", help="Of a rank, inside a node and between nodes alike.",
                     show_default="the links of the calibration"),
    ] = None,
    device: cost_options.DeviceOpt = "cuda",
    dtype: cost_options.ExecutedTypeOpt = "bf16",
    seed: options.SeedOpt = 0,
    *,
    reading: Reading,
    as_csv: options.CsvOpt = False,
    as_json: options.JsonOpt = False,
) -> None:  # fmt: skip
    """Execute LOAD step by step, one window a step, on virtual ranks, and print the time of a step under each plan."""
    from eplb.core.dispatch_rule import DispatchRule
    from eplb.cost import model_sizes, named_calibration
    from eplb.formats import ReadHints
    from eplb.online.replay_arms import FixedPlacement, schedule
    from eplb.runtime.virtual.step_replay import ReplayRequest
    from eplb.runtime.virtual.step_replay import replay as run
    from eplb_cli.arguments import replay_arms

    names = [name for given in strategies or () for name in given.split(",")]
    _check_typed(context, plan or (), names, online)
    check_at_least(1, {"--every": every, "--layers-per-step": layers_per_step})
    check_at_least(0, {"--tokens-per-rank": tokens_per_rank})
    check_above_zero({"--bandwidth": bandwidth})
    whole = replay_arms.read_history(load_paths, reading)
    chosen = replay_arms.chosen_layers(layers, whole.num_layers)
    sizes, load = model_sizes(model), whole.select_layers(chosen)
    how = replay_arms.Replanning(
        strategies=names,
        online=online,
        every=every,
        groups=groups,
        group_mode=group_mode,
        dispatch=dispatch or "even",
        seed=seed,
        expert_bytes=sizes.expert_bytes(dtype),
    )
    request = ReplayRequest(
        load=load,
        model=sizes,
        calibration=named_calibration(calibration),
        dtype=dtype,
        device=device,
        rule=DispatchRule.named(how.dispatch),
        tokens_per_rank=tokens_per_rank,
    )
    fixed = replay_arms.read_placements(plan or (), whole, chosen, ReadHints(num_ranks=ranks, num_nodes=nodes))
    arms: list[Arm] = [FixedPlacement(name, placement) for name, placement in fixed.items()]
    if names or online:
        topology = replay_arms.topology_of_replans(fixed, load.num_experts, ranks, nodes, redundant)
        arms += replay_arms.replanning_arms(load, _with_links(topology, request.calibration, bandwidth), how)
    with output.progress("planning"):
        schedules = [
            schedule(arm, first_step=every, num_steps=load.num_windows, layers_per_step=layers_per_step) for arm in arms
        ]
    with output.progress("executing"):
        served = run(schedules, request)
    if as_csv:
        output.csv_rows([one.summary() for one in served])
    elif as_json:
        output.json_object(_as_object(served, request, files.listed(load_paths), chosen))
    else:
        _print(served, request, files.title_of(load_paths), chosen)


def _check_typed(context: typer.Context, plans: Sequence[Path], strategies: Sequence[str], online: bool) -> None:
    """Refuse a replay without an arm, and options without effect."""
    if not (plans or strategies or online):
        raise typer.BadParameter("expected --plan, --strategies or --online", param_hint="--plan")
    if not (strategies or online):
        refuse_typed(context, _ONLY_FOR_REPLANS, "has no effect without --strategies or --online")
    if not strategies:
        refuse_typed(context, ("--group-mode", "--groups"), "has no effect without --strategies")


def _with_links(topology: "Topology", calibration: "Calibration", bandwidth: float | None) -> "Topology":
    links = calibration.links
    inside, between = (links.intra_node.gbps, links.inter_node.gbps) if bandwidth is None else (bandwidth, bandwidth)
    return replace(topology, intra_node_gbps=inside, inter_node_gbps=between)


def _as_object(
    served: "tuple[StepTimes, ...]", request: "ReplayRequest", name: str, layers: tuple[int, ...]
) -> dict[str, object]:
    return {
        "load": name,
        "model": request.model.name,
        "dtype": request.dtype,
        "device": request.device,
        "dispatch": request.rule.value,
        "calibration": request.calibration.title,
        "layers": list(layers),
        "plans": [one.summary() for one in served],
    }


def _print(served: "tuple[StepTimes, ...]", request: "ReplayRequest", name: str, layers: tuple[int, ...]) -> None:
    steps = len(served[0].schedule.placements)
    output.table(
        f"{name}: {steps} steps, {len(layers)} layers, {request.model.name} in {request.dtype}, {request.device}",
        _HEADINGS,
        [_row(one) for one in served],
        legend=f"{_LEGEND}\nmodel: {request.calibration.title}",
    )


def _row(one: "StepTimes") -> tuple[output.Cell, ...]:
    ffn, predicted = one.measured_s.sum(axis=1).mean(), one.predicted_s.sum(axis=1).mean()
    seconds = (one.step_s.mean(), one.percentile_s(50), one.percentile_s(95), one.percentile_s(99), ffn, predicted)
    travel = f"{1e3 * one.schedule.migration_s.sum():.1f}"
    return (one.schedule.name, *(f"{1e3 * each:.4g}" for each in seconds), one.schedule.moved_copies, travel)
