"""Holds the settings of an online rebalancer."""

from dataclasses import dataclass
from typing import final

from eplb.core.counts import check_count, check_max_moves
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.expert_bytes import known_expert_bytes
from eplb.errors import InputError
from eplb.planning.rebalance import Horizon
from eplb_traces.display import fields_html, short_repr


@final
@dataclass(frozen=True, kw_only=True)
class OnlineSettings:
    """Intervals, memory and the least gain of a move. Times are in recorded steps.

    Parameters
    ----------
    interval
        Steps between two checks of the load, and before the first one.
    window
        Steps that are kept.
    half_life
        Steps after which a step counts half; infinity for a plain sliding window. Stale steps, whose load differs from
        the newest, count less: see `staleness`.
    cooldown
        Steps after a commit in which nothing is planned.
    plan_steps
        Steps from a check to its migration. Planning runs in the background meanwhile; the step at which the migration
        is due waits for it. So decisions depend on counts alone, not on how fast a rank plans. 0: the check plans.
    target
        No replan while max/mean, mean over layers and steps since the last check, is at most this.
    change
        No replan while the change of the load since the last plan is at most this many times the change that chance
        gives; 0 to replan always. See `window.change_against_chance`.
    price, max_moves
        Least gain of a fetched replica where the load changes, up to four times as much where steps differ by chance;
        and most fetched replicas of one migration: see `IncrementalScenario`.
    horizon
        If given, layers are moved only if the gain until the next check exceeds the transfer. Its `num_loads` counts
        steps.
    expert_bytes
        Bytes of one expert of one layer; None: unknown.
    dispatch
        How the runtime splits an expert's tokens over its replicas: load is measured and planned for under this rule.
        Not "weighted": a migration carries no shares.
    sources
        [R] share of the tokens that each rank sends, for rules by which the rank of a token decides its replica; None:
        all alike.

    Raises
    ------
    InputError
        For a number out of range, an unknown rule, or "weighted".
    """

    interval: int = 20
    window: int = 128
    half_life: float = 30.0
    cooldown: int = 0
    plan_steps: int = 1
    target: float = 1.02
    change: float = 2.0
    price: float = 0.002
    max_moves: int | None = None
    horizon: Horizon | None = None
    expert_bytes: float | None = None
    dispatch: DispatchRule = DispatchRule.EVEN
    sources: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dispatch", DispatchRule.named(self.dispatch))
        for name, least in (("interval", 1), ("window", 1), ("cooldown", 0), ("plan_steps", 0)):
            check_count(name, getattr(self, name), least=least)
        if self.plan_steps >= self.interval:
            raise InputError(f"plan_steps = {self.plan_steps}: expected less than interval = {self.interval}")
        if not self.half_life > 0:
            raise InputError(f"half_life = {self.half_life}: expected > 0")
        for name, floor in (("target", 1.0), ("change", 0.0), ("price", 0.0)):
            if not floor <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} = {getattr(self, name)}: expected finite and >= {floor:g}")
        check_max_moves(self.max_moves)
        if known_expert_bytes(self.expert_bytes) is None and self.horizon is not None:
            raise InputError("horizon: the cost of a move is unknown, expected expert_bytes")
        if self.dispatch is DispatchRule.WEIGHTED:
            raise InputError("dispatch = weighted: a migration carries no shares, expected another rule")

    def __repr__(self) -> str:
        return short_repr(self)

    def _repr_html_(self) -> str:
        return fields_html(self)
