"""Knows how `eplb plan --previous` starts from a live placement."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from eplb_cli import inputs, output

if TYPE_CHECKING:
    from eplb.formats import ReadHints
    from eplb.plan import Plan
    from eplb_traces import ExpertLoad


@final
@dataclass(frozen=True)
class Replan:
    """What the user asks of a replan."""

    previous: Path
    hints: "ReadHints"
    target: float
    max_moves: int | None
    expert_bytes: float | None


def replan(load: "ExpertLoad", asked: Replan, *, seed: int) -> "Plan":
    """The plan that the live placement is changed to."""
    from eplb.migration import DEEPSEEK_V3_EXPERT_BYTES
    from eplb.rebalancer import rebalance

    previous = inputs.read_plan_for(load, asked.previous, None, asked.hints)
    with output.progress("replanning"):
        return rebalance(
            previous.placement,
            load,
            target=asked.target,
            max_moves=asked.max_moves,
            expert_bytes=DEEPSEEK_V3_EXPERT_BYTES if asked.expert_bytes is None else asked.expert_bytes,
            seed=seed,
        )
