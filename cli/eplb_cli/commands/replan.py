"""Replans from a live placement: `eplb plan --previous`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from eplb_cli import output
from eplb_cli.arguments import files

if TYPE_CHECKING:
    from eplb.core.problem import Plan
    from eplb.formats import ReadHints
    from eplb_traces import ExpertLoad


@final
@dataclass(frozen=True)
class Replan:
    """The options of a replan."""

    previous: Path
    hints: "ReadHints"
    lost_ranks: tuple[int, ...]
    target: float
    max_moves: int | None
    expert_bytes: float | None


def replan(load: "ExpertLoad", asked: Replan, *, seed: int) -> "Plan":
    """The plan that the live placement is changed to."""
    from eplb.core.migration import DEEPSEEK_V3_EXPERT_BYTES
    from eplb.planning.rebalance import rebalance
    from eplb.planning.replan_without_ranks import replan_without

    previous = files.read_plan_for(load, asked.previous, None, asked.hints).placement
    size = DEEPSEEK_V3_EXPERT_BYTES if asked.expert_bytes is None else asked.expert_bytes
    target, moves = asked.target, asked.max_moves
    with output.progress("replanning"):
        if asked.lost_ranks:
            return replan_without(
                previous, load, asked.lost_ranks, target=target, max_moves=moves, expert_bytes=size, seed=seed
            )
        return rebalance(previous, load, target=target, max_moves=moves, expert_bytes=size, seed=seed)
