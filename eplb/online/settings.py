"""Knows the numbers that an online rebalancer is set up with; decides nothing."""

from dataclasses import dataclass
from typing import final

from eplb.core.migration import DEEPSEEK_V3_EXPERT_BYTES
from eplb.errors import InputError
from eplb.planning.rebalance import Horizon


@final
@dataclass(frozen=True, kw_only=True)
class OnlineSettings:
    """When to look, what to remember, what a move must be worth. Times are in steps, as they are recorded.

    Parameters
    ----------
    interval
        Steps between two looks; also the first look's distance from the start.
    window
        Steps that are remembered.
    half_life
        Steps after which a remembered step counts half; infinity for a plain sliding window. Steps that the traffic has
        left behind count less than that: see `fading`.
    cooldown
        Steps after a commit in which nothing is planned.
    plan_steps
        Steps from a look to its migration: planning runs in the background meanwhile, and the step at which the
        migration is due waits if it is not done. So what is decided depends on counts alone, not on how fast a rank
        plans. 0: the look itself plans.
    target
        No replan while max/mean, mean over layers and steps since the last look, is at most this.
    drift
        No replan while the traffic since the last look differs from what was planned for by at most this many times
        what steps that differ by chance would; 0 to replan always. Chance gives 1.
    price, max_moves
        Of a fetched copy where traffic drifts, up to four times as much where steps differ by chance; and most fetched
        copies of one migration: see `IncrementalScenario`.
    horizon
        If given, layers are moved only if the gain until the next look pays for the transfer. Its `num_loads` counts
        steps.
    expert_bytes
        Bytes of one expert of one layer.

    Raises
    ------
    InputError
        For a number out of range.
    """

    interval: int = 20
    window: int = 128
    half_life: float = 30.0
    cooldown: int = 0
    plan_steps: int = 1
    target: float = 1.02
    drift: float = 2.0
    price: float = 0.002
    max_moves: int | None = None
    horizon: Horizon | None = None
    expert_bytes: float = DEEPSEEK_V3_EXPERT_BYTES

    def __post_init__(self) -> None:
        for name, least in (("interval", 1), ("window", 1), ("cooldown", 0), ("plan_steps", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} = {getattr(self, name)}: expected >= {least}")
        if self.plan_steps >= self.interval:
            raise InputError(f"plan_steps = {self.plan_steps}: expected less than interval = {self.interval}")
        if not self.half_life > 0:
            raise InputError(f"half_life = {self.half_life}: expected > 0")
        for name, floor in (("target", 1.0), ("drift", 0.0), ("price", 0.0)):
            if not floor <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} = {getattr(self, name)}: expected finite and >= {floor:g}")
        if self.max_moves is not None and self.max_moves < 0:
            raise InputError(f"max_moves = {self.max_moves}: expected >= 0")
        if not 0 < self.expert_bytes < float("inf"):
            raise InputError(f"expert_bytes = {self.expert_bytes}: expected finite and > 0")
