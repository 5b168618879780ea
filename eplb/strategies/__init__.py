"""Lists the strategies: STRATEGIES is the table that the planner, the command line and the tests read."""

from types import MappingProxyType
from typing import TypeGuard

from eplb.core.problem import Strategy
from eplb.errors import InputError, UnknownNameError
from eplb.strategies.baselines.deepseek import DeepSeek
from eplb.strategies.baselines.linear import Linear
from eplb.strategies.baselines.round_robin import RoundRobin
from eplb.strategies.baselines.zigzag import Zigzag
from eplb.strategies.biased.biased import Biased
from eplb.strategies.greedy.greedy import Greedy
from eplb.strategies.ilp.ilp import Ilp
from eplb.strategies.own_strategy import (
    StrategyLike,
    as_strategy,
    imported_strategy,
    installed_strategies,
    load_installed,
)
from eplb.strategies.scenario.scenario import Scenario
from eplb.strategies.traffic.traffic import TrafficAware

__all__ = ["ONLY_WHEN_NAMED", "STRATEGIES", "StrategyLike", "accepted_strategy", "find_strategy"]

_ALL: tuple[Strategy, ...] = (
    *(Linear(), RoundRobin(), Zigzag(), DeepSeek()),
    *(Greedy(), Biased(), Scenario(), Ilp(), TrafficAware()),
)

ONLY_WHEN_NAMED = frozenset({"ilp", "traffic"})
"""Left out of a comparison unless named: the one searches for seconds, the other needs a trace."""

STRATEGIES: MappingProxyType[str, Strategy] = MappingProxyType({strategy.name: strategy for strategy in _ALL})


def find_strategy(name: str) -> Strategy:
    """The strategy of that name: of the table, "module:object", "file.py:object", or of an installed package.

    Raises
    ------
    UnknownNameError
        With the list, if there is none.
    InputError
        If what is named cannot be imported, is no strategy, or has the name of one of eplb's strategies.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    if ":" in name:
        return _with_own_name(imported_strategy(name))
    installed = installed_strategies()
    if name not in installed:
        raise UnknownNameError("strategy", name, [*STRATEGIES, *installed, "auto"])
    return _with_own_name(load_installed(installed[name]))


def accepted_strategy(strategy: StrategyLike) -> Strategy:
    """The strategy that a caller means: a name, as in `find_strategy`, or a callable, as in `as_strategy`.

    Raises
    ------
    InputError
        For anything else, and for a callable with the name of one of eplb's strategies.
    """
    if isinstance(strategy, str):
        return find_strategy(strategy)
    if is_of_eplb(strategy):
        return strategy
    return _with_own_name(as_strategy(strategy))


def is_of_eplb(strategy: object) -> TypeGuard[Strategy]:
    """Whether it is one of eplb's strategies, with any parameters."""
    return isinstance(strategy, tuple(type(one) for one in _ALL))


def _with_own_name(strategy: Strategy) -> Strategy:
    """Refuse a name under which a plan's record would stand for one of eplb's strategies."""
    if strategy.name in STRATEGIES or strategy.name == "auto":
        raise InputError(f"strategy name {strategy.name!r} is that of an eplb strategy: expected another one")
    return strategy
