"""The strategies: one a file, and the table that every list of them comes from."""

from types import MappingProxyType

from eplb.errors import UnknownNameError
from eplb.plan import Strategy
from eplb.strategies.deepseek import DeepSeek
from eplb.strategies.greedy import Greedy
from eplb.strategies.ilp import Ilp
from eplb.strategies.linear import Linear
from eplb.strategies.round_robin import RoundRobin
from eplb.strategies.scenario import Scenario
from eplb.strategies.zigzag import Zigzag

__all__ = ["STRATEGIES", "find_strategy"]

_ALL: tuple[Strategy, ...] = (Linear(), RoundRobin(), Zigzag(), DeepSeek(), Greedy(), Scenario(), Ilp())

STRATEGIES: MappingProxyType[str, Strategy] = MappingProxyType({strategy.name: strategy for strategy in _ALL})


def find_strategy(name: str) -> Strategy:
    """The strategy of that name; UnknownNameError with the list if there is none."""
    if name not in STRATEGIES:
        raise UnknownNameError("strategy", name, [*STRATEGIES, "auto"])
    return STRATEGIES[name]
