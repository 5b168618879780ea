"""`eplb.backtest`: scores strategies on a history, by plans made on its first part and evaluated on the rest."""

from collections.abc import Callable, Sequence

from eplb.arguments.accepted import LoadLike, accepted_load, accepted_topology
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.problem import GroupMode, Problem
from eplb.core.topology import Topology
from eplb.planning.backtest import Candidate, Score, whole
from eplb.planning.backtest import backtest as score
from eplb.planning.planner import candidates_under
from eplb.strategies import StrategyLike, accepted_strategy


def backtest(  # noqa: PLR0913  # the same keywords as plan()
    load: LoadLike,
    topology: Topology,
    strategies: Sequence[StrategyLike] | None = None,
    *,
    held_out: float = 0.25,
    groups: int | None = None,
    group_mode: str = GroupMode.FREE,
    dispatch: str = DispatchRule.EVEN,
    sources: Sequence[float] | None = None,
    seed: int = 0,
    on_score: Callable[[], None] | None = None,
) -> tuple[Score, ...]:
    """Plan on the first part of a history and score the plans on the rest, best first.

    Parameters
    ----------
    load
        The history, windows in order of time, in any form that `plan` takes.
    topology
        Ranks, nodes and slots.
    strategies
        Names or strategies of your own, each planned on the whole first part; by default the candidates of "auto".
    held_out
        Share of the windows, at the end, that no plan sees.
    groups, group_mode, dispatch, sources, seed
        As in `plan`.
    on_score
        Called after each strategy.

    Raises
    ------
    InputError
        If the history has too few windows to hold some out, and as `plan` does.

    Examples
    --------
    >>> import eplb
    >>> load = eplb.datasets.moe_435m_windows()
    >>> topology = eplb.Topology.for_experts(256, num_ranks=32, num_redundant=32)
    >>> for score in eplb.backtest(load, topology, ["scenario", "linear"]):
    ...     print(score.candidate.name, round(score.mean, 2))
    scenario 1.19
    linear 1.61
    """
    load = accepted_load(load)
    problem = Problem(
        load,
        accepted_topology(topology),
        num_groups=load.shape.num_expert_groups if groups is None else groups,
        group_mode=GroupMode.named(group_mode),
        dispatch=DispatchRule.named(dispatch),
        sources=sources,
    )
    if strategies is None:
        candidates = candidates_under(problem.dispatch)
        return score(problem, candidates, held_out=held_out, seed=seed, on_score=on_score)
    named = [accepted_strategy(strategy) for strategy in strategies]
    candidates = tuple(Candidate(one.name, one, whole) for one in named)
    return score(problem, candidates, held_out=held_out, seed=seed, on_score=on_score)
