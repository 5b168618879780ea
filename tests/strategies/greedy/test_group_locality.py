"""Expert groups at a price: between pinned and free, never worse than either, and near the optimum of small cases."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eplb
from eplb.core.problem import GroupMode, Problem
from eplb.errors import InputError
from eplb.evaluation.metrics import evaluate, off_node_replicas
from eplb.strategies import STRATEGIES
from tests.generators import problems

NODES = eplb.Topology(num_nodes=2, ranks_per_node=2, slots_per_rank=2)
# Groups of 2 experts; both nodes can hold two groups, but the hot experts 0 and 1 are of one group: pinned, their node
# has at least 20 + 2 of 26 tokens, 11 on its busiest rank where the mean is 6.5.
HOT_GROUP = [[10.0, 10, 1, 1, 1, 1, 1, 1]]


def priced(rows, topology, price, *, groups=4, strategy="auto"):
    load = eplb.ExpertLoad(np.array(rows))
    return eplb.plan(load, topology, strategy, groups=groups, group_mode="priced", group_price=price)


def cost(placement, load, price, groups):
    """[L] busiest over mean rank time, the mean being that of a perfect balance, and the price of what is away."""
    speed, total = placement.topology.relative_speed, load.total.sum(axis=1)
    rank_load = np.einsum("w,wlr->lr", load.weights, evaluate(placement, load).rank_load)
    busiest = np.where(total > 0, (rank_load / speed).max(axis=1) / np.where(total > 0, total, 1) * speed.sum(), 1.0)
    return busiest + price * off_node_replicas(placement, groups)


def test_a_copy_leaves_home_when_that_pays_and_stays_when_it_does_not():
    # 8 slots for 8 experts. With 0 and 1 on one node their ranks have 11, whoever is with them; on different nodes too:
    # 10 + 1. So leaving brings nothing and costs the price.
    assert off_node_replicas(priced(HOT_GROUP, NODES, 0.01).placement, 4).tolist() == [0]
    # 4 spare slots: pinned, a node's 6 slots hold 2 groups; the hot one has 20 + 2 on 2 ranks, 11 of a mean of 6.5:
    # 1.69. With a copy of 0 and one of 1 on the other node every rank can have 6.5: 0.69 saved by 2 copies or more.
    wide = replace(NODES, slots_per_rank=3)
    cheap, dear = priced(HOT_GROUP, wide, 0.01), priced(HOT_GROUP, wide, 0.7)
    assert off_node_replicas(cheap.placement, 4)[0] >= 2
    assert evaluate(cheap.placement, eplb.ExpertLoad(HOT_GROUP)).max_over_mean[0] < 1.2
    assert off_node_replicas(dear.placement, 4).tolist() == [0]
    assert evaluate(dear.placement, eplb.ExpertLoad(HOT_GROUP)).max_over_mean[0] == pytest.approx(11 / 6.5)


def test_the_judge_counts_copies_that_are_not_where_most_of_their_group_is():
    # Groups {0, 1} and {2, 3}; nodes of 3 slots. Group 0 has copies 0 1 | 0, group 1 has 2 | 3 2: one away each.
    placement = eplb.Placement([[0, 1, 2, 3, 2, 0]], 4, eplb.Topology(2, 1, 3))
    assert off_node_replicas(placement, 2).tolist() == [2]
    assert off_node_replicas(placement, 1).tolist() == [3]
    with pytest.raises(InputError, match="groups = 3: expected a divisor of 4 experts"):
        off_node_replicas(placement, 3)


@settings(max_examples=25)
@given(problem=problems(), price=st.sampled_from([1e-3, 0.02, 0.3, 50.0]))
def test_no_layer_is_worse_than_with_groups_free_or_pinned(problem, price):
    asked = replace(problem, group_mode=GroupMode.PRICED, group_price=price)
    found = cost(STRATEGIES["greedy"](asked).placement, problem.load, price, problem.num_groups)
    for mode in (GroupMode.FREE, problem.group_mode):
        other = STRATEGIES["greedy"](replace(problem, group_mode=mode)).placement
        assert (found <= cost(other, problem.load, price, problem.num_groups) * (1 + 1e-9)).all()


@settings(max_examples=10)
@given(problem=problems(), price=st.sampled_from([1e-3, 0.1]))
def test_an_expert_is_never_twice_on_a_rank_and_the_same_seed_gives_the_same_plan(problem, price):
    asked = replace(problem, group_mode=GroupMode.PRICED, group_price=price)
    first, second = (STRATEGIES["greedy"](asked, seed=3).placement for _ in range(2))
    assert first == second
    assert not first.duplicate_slots.any()


def _least_cost(load, topology, price, groups):
    """Smallest cost of any placement of a layer, by trying all."""
    hands = itertools.combinations(range(load.num_experts), 2)
    rows = np.array(list(itertools.product(hands, repeat=topology.num_ranks))).reshape(-1, 2 * topology.num_ranks)
    rows = rows[[len(set(row)) == load.num_experts for row in rows.tolist()]]
    layers = eplb.ExpertLoad(np.repeat(load.total, len(rows), axis=0))  # one layer for each placement
    return cost(eplb.Placement(rows, load.num_experts, topology), layers, price, groups).min()


@pytest.mark.parametrize("price", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_layers_come_close_to_the_optimum_found_by_trying_all_placements(seed, price):
    load = eplb.ExpertLoad(np.random.default_rng(seed).integers(1, 30, (1, 6)).astype(float))
    topology = eplb.Topology(2, 2, 2)
    made = STRATEGIES["greedy"](Problem(load, topology, 2, GroupMode.PRICED, group_price=price))
    assert cost(made.placement, load, price, 2)[0] <= 1.05 * _least_cost(load, topology, price, 2)


def test_the_more_a_copy_costs_the_fewer_are_away():
    rows = np.random.default_rng(7).lognormal(size=(3, 64))
    topology = eplb.Topology(4, 4, 5)
    away = [
        off_node_replicas(priced(rows, topology, price, groups=8).placement, 8).sum() for price in (1e-4, 5e-3, 0.1)
    ]
    assert away[0] > away[1] > away[2]


@pytest.mark.parametrize("name", ["linear", "zigzag", "deepseek", "scenario", "ilp"])
def test_a_strategy_that_weighs_no_price_says_so(name):
    with pytest.raises(InputError, match=f"group mode priced: .*{name} .*, expected strategy greedy"):
        priced(HOT_GROUP, NODES, 0.01, strategy=name)


def test_groups_that_do_not_fit_the_nodes_are_weighed_all_the_same():
    # 3 groups on 2 nodes cannot be pinned.
    made = priced([[9.0, 1, 1, 1, 1, 1]], eplb.Topology(2, 1, 3), 0.05, groups=3)
    assert off_node_replicas(made.placement, 3)[0] == 1  # a node of 3 slots holds one group and half of another


def test_the_notes_say_how_many_copies_are_away():
    made = priced(HOT_GROUP, NODES, 0.01)
    assert "off-node replicas (not on their group's home node): 0.0 of 8 in the mean layer, at most 0" in made.notes
