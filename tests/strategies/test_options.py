"""The matrix of strategies and options is found again by trying: each pair is honoured, or refused by name."""

import numpy as np
import pytest

import eplb
from eplb.core.constraints import Constraints
from eplb.core.problem import GroupMode, Problem, Survive
from eplb.errors import InputError
from eplb.strategies import STRATEGIES
from eplb.strategies.incremental.incremental import Incremental
from eplb.strategies.incremental.incremental_scenario import IncrementalScenario
from eplb.strategies.options import HONOURED, PlanOption, asked_options, check_options
from eplb.strategies.step_time.step_time import StepTime
from eplb_traces.routing_trace import TokenBatch

# Experts of a group are hot in turn, so that no strategy pins groups by chance.
LOAD = eplb.ExpertLoad(np.random.default_rng(3).permutation(16)[None] + 1.0)
TOPOLOGY = eplb.Topology(2, 2, 8)
GROUPS = 4


def trace():
    ids = np.random.default_rng(0).random((40, 1, 16)).argsort(axis=2)[:, :, :2].astype(np.uint16)
    batch = TokenBatch(eplb.ModelShape(1, 16, 2), ids, np.zeros(40, np.int64), np.repeat(np.arange(5), 8))
    return eplb.RoutingTrace(batch.shape, [batch])


def ranks_of(made, expert):
    row, topology = made.placement.physical_to_logical_map[0], made.placement.topology
    return set(topology.rank_of_slot[row == expert].tolist())


def is_pinned(made):
    node_of_rank = TOPOLOGY.node_of_rank
    homes = [{int(node_of_rank[r]) for e in range(g * 4, g * 4 + 4) for r in ranks_of(made, e)} for g in range(GROUPS)]
    return all(len(nodes) == 1 for nodes in homes)


PIN = Constraints(pin=[(0, 3)], forbid=[(1, 0), (1, 1)])
TRIES = {
    PlanOption.PINNED: ({"group_mode": GroupMode.PINNED}, is_pinned),
    PlanOption.PRICED: (
        {"group_mode": GroupMode.PRICED, "group_price": 10.0},
        # A price that no gain in balance pays: replicas stay on their group's node.
        is_pinned,
    ),
    PlanOption.SURVIVE: ({"survive": Survive.RANK}, lambda made: all(len(ranks_of(made, e)) > 1 for e in range(16))),
    PlanOption.CONSTRAINTS: (
        {"constraints": PIN},
        lambda made: 3 in ranks_of(made, 0) and not ranks_of(made, 1) & {0, 1},
    ),
    PlanOption.TIME_LIMIT: ({"time_limit_s": 0.5}, lambda made: made.seconds < 30),
    PlanOption.TIME_LIMIT_OF_CONSTRAINTS: (
        {"time_limit_s": 0.5, "constraints": PIN},
        lambda made: made.seconds < 30 and 3 in ranks_of(made, 0),
    ),
    PlanOption.TRACE: ({"trace": trace()}, lambda made: any("held" in note for note in made.notes)),
    PlanOption.LOAD_CAP: ({"load_cap": 1.5, "trace": trace()}, lambda made: any("1.5" in note for note in made.notes)),
}


# What a refusal begins with: of several options the first one that the strategy does not plan for.
WORDS = {option: str(option) for option in PlanOption} | {
    PlanOption.TIME_LIMIT: "time_limit_s = 0.5",
    PlanOption.TIME_LIMIT_OF_CONSTRAINTS: "constraints",
    PlanOption.LOAD_CAP: "trace",
}


def test_every_strategy_has_its_row_and_every_option_its_try():
    assert set(HONOURED) == {*STRATEGIES, StepTime.name, Incremental.name, IncrementalScenario.name}
    assert set(TRIES) == set(PlanOption)


@pytest.mark.parametrize("option", list(PlanOption))
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_an_option_is_honoured_or_refused_by_name(name, option):
    options, is_kept = TRIES[option]
    if name == "traffic":
        options = {"trace": trace(), **options}
    if option in HONOURED[name]:
        made = eplb.plan(LOAD, TOPOLOGY, name, groups=GROUPS, **options)
        assert is_kept(made)
        return
    with pytest.raises(InputError, match=rf"^{WORDS[option]}.*: strategy {name} does not plan for it, expected"):
        eplb.plan(LOAD, TOPOLOGY, name, groups=GROUPS, **options)
    with pytest.raises(InputError, match=name):
        STRATEGIES[name](Problem(LOAD, TOPOLOGY, GROUPS, **options))


@pytest.mark.parametrize("option", list(PlanOption))
def test_auto_picks_a_strategy_that_plans_for_the_option_or_refuses_it(option):
    options, is_kept = TRIES[option]
    if option in (PlanOption.TIME_LIMIT, PlanOption.TRACE, PlanOption.LOAD_CAP):
        with pytest.raises(InputError, match=f"^{WORDS[option]}: strategy greedy does not plan for it"):
            eplb.plan(LOAD, TOPOLOGY, groups=GROUPS, **options)
        return
    assert is_kept(eplb.plan(LOAD, TOPOLOGY, groups=GROUPS, **options))


def test_a_plain_problem_asks_for_nothing_and_a_strategy_of_ones_own_decides_for_itself():
    assert asked_options(Problem(LOAD, TOPOLOGY)) == {}
    check_options(Problem(LOAD, TOPOLOGY, GROUPS, GroupMode.PINNED), "my own")


def test_a_comparison_under_pinned_groups_has_the_strategies_that_pin():
    results = eplb.compare(LOAD, TOPOLOGY, groups=GROUPS, group_mode="pinned")
    assert [result.plan.strategy for result in results] == ["deepseek", "greedy", "biased", "scenario"]
    assert all(is_pinned(result.plan) for result in results)
