"""Reads what is replayed: the history, the plans that serve it, and how it is replanned meanwhile."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import typer

from eplb_cli import output
from eplb_cli.arguments import files
from eplb_cli.arguments.parse import Nodes, id_list
from eplb_cli.arguments.reading import Reading

if TYPE_CHECKING:
    from eplb.core.placement import Placement
    from eplb.core.topology import Topology
    from eplb.formats import ReadHints
    from eplb.online.replay_arms import Arm
    from eplb_traces import ExpertLoad


@final
@dataclass(frozen=True, kw_only=True)
class Replanning:
    """What replans, and how.

    Parameters
    ----------
    strategies
        Names; each plans anew at the end of every interval.
    online
        Whether the online rebalancer is replayed too.
    every
        Steps of an interval.
    groups, group_mode, dispatch, seed
        As `eplb.plan` takes them; `group_mode` is for `strategies` alone.
    expert_bytes
        Bytes of one expert of one layer.
    """

    strategies: Sequence[str]
    online: bool
    every: int
    groups: int | None
    group_mode: str
    dispatch: str
    seed: int
    expert_bytes: float


def read_history(paths: Sequence[Path], reading: Reading) -> "ExpertLoad":
    """One window a step, empty ones left out; a trace is counted step by step unless --window says otherwise."""
    source = files.read_source(paths, reading)
    files.note_reading(source)
    with output.progress("counting"):
        load = files.Source(source.content, (), source.window or 1).load()
    kept = load.without_empty_windows()
    if kept.num_windows < load.num_windows:
        output.note(f"{load.num_windows - kept.num_windows} of {load.num_windows} steps have no token: left out")
    return kept


def chosen_layers(text: str | None, num_layers: int) -> tuple[int, ...]:
    """The layers of "0,5" or "0-3", ascending; all where nothing is given."""
    if text is None:
        return tuple(range(num_layers))
    chosen = sorted(set(id_list(text, "--layers")))
    if chosen[-1] >= num_layers:
        raise typer.BadParameter(f"layer {chosen[-1]}: expected below {num_layers}", param_hint="--layers")
    return tuple(chosen)


def read_placements(
    paths: Sequence[Path], load: "ExpertLoad", layers: Sequence[int], hints: "ReadHints"
) -> "dict[str, Placement]":
    """The plans of the model of `load`, by the names of their files, cut down to some layers."""
    from eplb.core.placement import Placement

    found = {}
    for path, name in zip(paths, files.names_of(paths), strict=True):
        whole = files.read_plan_for(load, path, None, hints).placement
        whole.check_model(load.shape, "history", name=name)
        shares = whole.replica_weights
        found[name] = Placement(
            whole.physical_to_logical_map[list(layers)],
            whole.num_experts,
            whole.topology,
            None if shares is None else shares[list(layers)],
        )
    return found


def topology_of_replans(
    fixed: "dict[str, Placement]", num_experts: int, ranks: int | None, nodes: Nodes | None, redundant: int | None
) -> "Topology":
    """The topology of the first plan; by the options where there is none, or --redundant asks for other slots."""
    from eplb_cli.arguments.topology import topology_from_options

    if not fixed:
        return topology_from_options(num_experts, ranks=ranks, nodes=nodes, redundant=redundant)
    first = next(iter(fixed.values())).topology
    if redundant is None:
        return first
    return topology_from_options(num_experts, ranks=first.num_ranks, nodes=first.nodes, redundant=redundant)


def replanning_arms(load: "ExpertLoad", topology: "Topology", how: Replanning) -> "Iterator[Arm]":
    """One arm for each strategy, then the online rebalancer."""
    from eplb.core.dispatch_rule import DispatchRule
    from eplb.online import OnlineSettings
    from eplb.online.replay_arms import Online, PeriodicReplan

    for name in how.strategies:
        yield PeriodicReplan(
            name=f"{name} every {how.every}",
            load=load,
            every=how.every,
            plan=_planner(name, topology, how),
            expert_bytes=how.expert_bytes,
        )
    if how.online:
        settings = OnlineSettings(
            interval=how.every,
            plan_steps=0,
            expert_bytes=how.expert_bytes,
            dispatch=DispatchRule.named(how.dispatch),
        )
        yield Online(load, topology, settings, how.seed)


def _planner(strategy: str, topology: "Topology", how: Replanning) -> "Callable[[ExpertLoad], Placement]":
    import eplb

    def planned(load: "ExpertLoad") -> "Placement":
        return eplb.plan(
            load,
            topology,
            strategy,
            groups=how.groups,
            group_mode=how.group_mode,
            dispatch=how.dispatch,
            seed=how.seed,
        ).placement

    return planned
