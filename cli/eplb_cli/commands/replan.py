"""Replans from a live placement: `eplb plan --previous`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, final

import typer

from eplb_cli import output
from eplb_cli.arguments import files
from eplb_cli.arguments.engine import source_shares
from eplb_cli.arguments.parse import Nodes

if TYPE_CHECKING:
    from eplb.core.dispatch_rule import DispatchRule
    from eplb.core.placement import Placement
    from eplb.core.problem import Plan
    from eplb.core.topology_change import TopologyChange
    from eplb_traces import ExpertLoad


@final
@dataclass(frozen=True, kw_only=True)
class NewRanks:
    """What changes about the ranks; None and nothing where it stays as it was.

    Ranks of the previous plan are named by the ids that the engine has for them.
    """

    num_ranks: int | None = None
    nodes: Nodes | None = None
    slots: int | None = None
    redundant: int | None = None
    lost: tuple[int, ...] = ()
    retiring: tuple[int, ...] = ()
    rank_map: Sequence[tuple[int, int]] | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Replan:
    """The options of a replan."""

    previous: Path
    previous_ranks: int | None
    previous_nodes: Nodes | None
    ranks: NewRanks
    keep_rank_ids: bool
    target: float
    max_moves: int | None
    expert_bytes: float | None
    rule: "DispatchRule"
    sources: str | None
    """As typed: the ranks are those of the live placement."""


class Replanned(NamedTuple):
    """A replan and what it starts from."""

    made: "Plan"
    live: "Placement"
    sources: tuple[float, ...] | None = None
    """The share of the tokens that each rank sends; None: all alike."""


def replan(load: "ExpertLoad", asked: Replan, *, seed: int) -> Replanned:
    """The plan that the live placement is changed to."""
    from eplb.core.expert_bytes import known_expert_bytes
    from eplb.planning.changed_topology import ranks_of, ranks_with_ids
    from eplb.planning.gain import live_if_nothing_gained
    from eplb.planning.rebalance import rebalance
    from eplb.planning.replan_on import replan_on
    from eplb.planning.replan_without_ranks import replan_without

    previous, ranks = _previous(load, asked)
    live = previous.placement
    size = known_expert_bytes(asked.expert_bytes, load.shape, previous.shape)
    target, moves = asked.target, asked.max_moves
    with output.progress("replanning"):
        if asked.keep_rank_ids and not ranks.lost:
            raise typer.BadParameter("needs --lost-ranks: ranks that keep their columns", param_hint="--keep-rank-ids")
        lost = ranks_with_ids(ranks_of(previous), ranks.lost, "lost rank")
        if lost and ranks == NewRanks(lost=ranks.lost):
            _check_even(asked)
            made = replan_without(live, load, lost, target=target, max_moves=moves, expert_bytes=size, seed=seed)
            if asked.keep_rank_ids:
                made = _with_ids_kept(made, (*previous.absent_ranks, *ranks.lost))
            return Replanned(made, live)
        change = _change(previous, ranks, num_experts=load.num_experts)
        stays = change.rank_map == tuple(range(change.after.num_ranks))
        if stays and change.before == change.after:
            shares = source_shares(asked.sources, live.topology.num_ranks)
            made = rebalance(
                live,
                load,
                target=target,
                max_moves=moves,
                expert_bytes=size,
                dispatch=asked.rule,
                sources=shares,
                seed=seed,
            )
            made = live_if_nothing_gained(made, live, load, asked.rule, shares)
            return Replanned(replace(made, absent_ranks=previous.absent_ranks), live, shares)
        _check_even(asked)
        made = replan_on(live, load, change, target=target, max_moves=moves, expert_bytes=size, seed=seed)
        return Replanned(replace(made, absent_ranks=previous.absent_ranks) if stays else made, live)


def _check_even(asked: Replan) -> None:
    """Refuse a dispatch rule that a change of ranks is not planned for."""
    from eplb.core.dispatch_rule import EVEN_RULES

    reason = (
        "ranks that change are replanned for --dispatch even; then replan with --previous once more for another rule"
    )
    if asked.rule not in EVEN_RULES:
        raise typer.BadParameter(f"{asked.rule}: {reason}", param_hint="--dispatch")
    if asked.sources is not None:
        raise typer.BadParameter(f"{asked.sources}: {reason}", param_hint="--sources")


def _with_ids_kept(made: "Plan", absent: Sequence[int]) -> "Plan":
    note = (
        f"lost ranks {sorted(absent)} keep their ids: their columns in SGLang's file hold expert 0, for a server "
        "in which these ranks are not active (elastic expert parallelism)"
    )
    return replace(made, absent_ranks=tuple(sorted(absent)), notes=(*made.notes, note))


def _previous(load: "ExpertLoad", asked: Replan) -> tuple["Plan", NewRanks]:
    """The live plan, and what changes: --ranks and --nodes describe a map that has no record, if nothing else does."""
    from eplb.formats import ReadHints, RecordStatus, parse_file

    given = asked.previous_ranks is not None or asked.previous_nodes is not None
    parsed = parse_file(asked.previous)
    holds_ranks = parsed.record_status in (RecordStatus.IN_FILE, RecordStatus.IN_SIDECAR)
    hints, ranks = ReadHints(num_ranks=asked.previous_ranks, num_nodes=asked.previous_nodes), asked.ranks
    if not (given or holds_ranks):
        hints = ReadHints(num_ranks=ranks.num_ranks, num_nodes=ranks.nodes)
        ranks = replace(ranks, num_ranks=None, nodes=None)
    return files.plan_for(load, parsed, hints), ranks


def _change(previous: "Plan", ranks: NewRanks, *, num_experts: int) -> "TopologyChange":
    """The change of the ranks of the previous plan.

    Raises
    ------
    typer.BadParameter
        If the slots do not divide by the ranks.
    """
    from eplb.planning.changed_topology import NumberedRanks, change_between, changed_topology, ranks_of, ranks_with_ids

    before = ranks_of(previous)
    after = changed_topology(
        before.topology,
        leaving=ranks_with_ids(before, (*ranks.lost, *ranks.retiring), "leaving rank"),
        num_ranks=ranks.num_ranks,
        nodes=ranks.nodes,
        slots_per_rank=ranks.slots,
    )
    if ranks.redundant is not None:
        after = replace(after, slots_per_rank=_slots_of(num_experts + ranks.redundant, after.num_ranks))
    same = after.num_ranks == before.topology.num_ranks and not ranks.lost and not ranks.retiring
    ids = before.ids if same else tuple(range(after.num_ranks))
    return change_between(
        before, NumberedRanks(after, ids), pairs=ranks.rank_map, lost=ranks.lost, retiring=ranks.retiring
    )


def _slots_of(num_slots: int, num_ranks: int) -> int:
    if num_slots % num_ranks:
        more = -num_slots % num_ranks
        raise typer.BadParameter(
            f"{num_slots} slots do not divide by {num_ranks} ranks: {more} more would", param_hint="--redundant"
        )
    return num_slots // num_ranks
