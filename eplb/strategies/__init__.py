"""Lists the strategies: STRATEGIES is the table that the planner, the command line and the tests read."""

from types import MappingProxyType

from eplb.core.problem import Strategy
from eplb.errors import UnknownNameError
from eplb.strategies.baselines.deepseek import DeepSeek
from eplb.strategies.baselines.linear import Linear
from eplb.strategies.baselines.round_robin import RoundRobin
from eplb.strategies.baselines.zigzag import Zigzag
from eplb.strategies.biased.biased import Biased
from eplb.strategies.greedy.greedy import Greedy
from eplb.strategies.ilp.ilp import Ilp
from eplb.strategies.scenario.scenario import Scenario
from eplb.strategies.traffic.traffic import TrafficAware

__all__ = ["ONLY_WHEN_NAMED", "STRATEGIES", "find_strategy"]

_ALL: tuple[Strategy, ...] = (
    *(Linear(), RoundRobin(), Zigzag(), DeepSeek()),
    *(Greedy(), Biased(), Scenario(), Ilp(), TrafficAware()),
)

ONLY_WHEN_NAMED = frozenset({"ilp", "traffic"})
"""Left out of a comparison unless named: the one searches for seconds, the other needs a trace."""

STRATEGIES: MappingProxyType[str, Strategy] = MappingProxyType({strategy.name: strategy for strategy in _ALL})


def find_strategy(name: str) -> Strategy:
    """The strategy of that name; UnknownNameError with the list if there is none."""
    if name not in STRATEGIES:
        raise UnknownNameError("strategy", name, [*STRATEGIES, "auto"])
    return STRATEGIES[name]
