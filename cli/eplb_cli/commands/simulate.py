"""`eplb simulate`: replays a history, step by step, under several replanning policies."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments import choices, files, options
from eplb_cli.arguments.cost_options import CostOptions, predicts_steps
from eplb_cli.arguments.engine import EngineOpt, EngineOptionsOpt, SourcesOpt, dispatch_of, source_shares
from eplb_cli.arguments.parse import check_above_zero, check_at_least
from eplb_cli.arguments.reading import Reading, reads_loads
from eplb_cli.arguments.topology import topology_from_options
from eplb_cli.views import cost_rows

if TYPE_CHECKING:
    from eplb.core.topology import Topology
    from eplb.online import OnlineSettings
    from eplb.online.replay import Replay, Served
    from eplb_traces import ExpertLoad

_HEADINGS = ("policy", "mean", "p95", "moves", "GB", "stall s", "plan s")
_LEGEND = """\
mean, p95: max/mean over steps and layers after the first interval, which all plan for alike
moves: replicas fetched from another rank; stall: their batches, one after the other
GB and stall need the bytes of an expert: from the recording, --model or --expert-bytes"""
_BARS = "▁▂▃▄▅▆▇█"
_NUM_PHASES = 48


@reads_loads
@predicts_steps
def simulate(  # noqa: PLR0913  # one parameter a word of the command line
    load_paths: options.LoadsArg,
    ranks: options.RanksOpt,
    nodes: options.NodesOpt = 1,
    redundant: options.RedundantOpt = 0,
    interval: Annotated[int, typer.Option("--interval", "-i", metavar="STEPS", help="Steps between two replans.")] = 20,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="A,B",
            parser=choices.POLICY.several, autocompletion=choices.POLICY.complete,
            help="never, incremental, full (DeepSeek's EPLB), full_relabelled, full_greedy, full_scenario, oracle.",
            show_default="all of them",
        ),
    ] = None,
    max_moves: Annotated[
        int | None,
        typer.Option("--max-moves", metavar="M", help="Most replicas that one migration of incremental may move."),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option("--price", metavar="X", help="Least gain of a moved replica for incremental: higher moves fewer.",
                     show_default="0.002"),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option("--memory", metavar="STEPS", help="Steps that incremental keeps.", show_default="128"),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option("--bandwidth", metavar="GB/S", help="Of a rank, inside a node and between nodes alike.",
                     show_default="370 inside, 45 between"),
    ] = None,
    dispatch: options.DispatchOpt = None,
    engine: EngineOpt = None,
    engine_options: EngineOptionsOpt = None,
    sources: SourcesOpt = None,
    expert_bytes: options.ExpertBytesOpt = None,
    seed: options.SeedOpt = 0,
    *,
    cost: CostOptions,
    reading: Reading,
    as_csv: options.CsvOpt = False,
    as_json: options.JsonOpt = False,
) -> None:  # fmt: skip
    """Replay LOAD, one window a step, and replan every interval: balance and moves of each policy."""
    from eplb.online.replay import POLICIES
    from eplb.online.replay import simulate as run

    check_at_least(1, {"--interval": interval, "--memory": memory})
    check_at_least(0, {"--max-moves": max_moves})
    check_above_zero({"--bandwidth": bandwidth})
    by = dispatch_of(dispatch, engine, engine_options)
    predictor = cost.step_cost(sources, seed)
    load = files.read_load(load_paths, reading)
    topology = topology_from_options(load.num_experts, ranks=ranks, nodes=nodes, redundant=redundant)
    online = _online(max_moves, price, memory)
    online = replace(online, dispatch=by.rule, sources=source_shares(sources, ranks))
    size = predictor.expert_bytes if expert_bytes is None and predictor is not None else expert_bytes
    replay = _replay(load, _with_bandwidth(topology, bandwidth), interval, size, seed)
    replay = replace(replay, load=load, online=online, cost=predictor)
    with output.progress("replaying"):
        served = run(replay, POLICIES if policy is None else [name.strip() for name in policy.split(",")])
    choices = "" if predictor is None else f"{predictor.sampled_from(load)}, step by step"
    if as_csv:
        output.csv_rows([one.summary() for one in served])
        return
    if as_json:
        output.json_object(
            {
                "load": files.listed(load_paths),
                "interval": interval,
                "dispatch": by.rule.value,
                **cost_rows.head(predictor, choices),
                "policies": [one.summary() for one in served],
            }
        )
        return
    steps = load.num_windows - interval
    title = f"{files.title_of(load_paths)}: {steps} steps, a replan every {interval}{by.in_title}"
    output.table(
        f"{title}{cost_rows.in_title(predictor)}",
        _HEADINGS if predictor is None else (*_HEADINGS, "step ms", "p95"),
        [_row(one) for one in served],
        legend=_LEGEND,
    )
    _draw(served)
    cost_rows.note(predictor, choices)


def _with_bandwidth(topology: "Topology", bandwidth: float | None) -> "Topology":
    if bandwidth is None:
        return topology
    return replace(topology, intra_node_gbps=bandwidth, inter_node_gbps=bandwidth)


def _replay(load: "ExpertLoad", topology: "Topology", interval: int, expert_bytes: float | None, seed: int) -> "Replay":
    from eplb.online.replay import Replay

    return Replay(load=load, topology=topology, interval=interval, expert_bytes=expert_bytes, seed=seed)


def _online(max_moves: int | None, price: float | None, memory: int | None) -> "OnlineSettings":
    """The settings of `incremental` that were given."""
    from eplb.online import OnlineSettings

    online = OnlineSettings(max_moves=max_moves)
    if price is not None:
        online = replace(online, price=price)
    return online if memory is None else replace(online, window=memory)


def _row(served: "Served") -> tuple[output.Cell, ...]:
    return (
        served.policy,
        served.mean,
        served.p95,
        served.moved_copies,
        "-" if served.moved_bytes is None else f"{served.moved_bytes / 1e9:.1f}",
        "-" if served.stall_s is None else f"{served.stall_s:.2f}",
        f"{served.plan_s:.2f}",
        *_predicted(served),
    )


def _predicted(served: "Served") -> tuple[output.Cell, ...]:
    """Mean and p95 of the predicted steps."""
    return (*cost_rows.cells(served.mean_step_s), *cost_rows.cells(served.p95_step_s))


def _draw(served: "tuple[Served, ...]") -> None:
    """Print balance over time, a line a policy, all on one scale."""
    phases = {one.policy: one.phases(_NUM_PHASES).tolist() for one in served}
    least, most = min(map(min, phases.values())), max(map(max, phases.values()))
    output.facts(
        f"max/mean over time, {least:.3f} to {most:.3f}",
        [(name, "".join(_bar(value, least, most) for value in values)) for name, values in phases.items()],
    )


def _bar(value: float, least: float, most: float) -> str:
    if most <= least:
        return _BARS[0]
    return _BARS[min(int((value - least) / (most - least) * len(_BARS)), len(_BARS) - 1)]
