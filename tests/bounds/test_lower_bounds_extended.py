"""The bounds that count what shares a rank, use speeds, pin groups or look at many windows, against exact optima."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb.bounds.lower_bounds import (
    _least_worst_node,
    _one_of_equal_nodes,
    co_residency_bound,
    full_slot_bound,
    lower_bounds,
    mean_bound,
    pair_mixture_bound,
    pinned_bounds,
    replication_bound,
    scenario_bound,
)
from eplb.core.problem import BindingBound
from eplb.core.topology import Topology
from eplb.strategies.greedy.greedy import Greedy
from eplb.strategies.ilp.small_exact_kernel import find_optimum
from eplb_traces import ExpertLoad
from tests import oracles
from tests.generators import SPEEDS, layer_loads, problems


def exact(load, slots, speeds=None):
    """The optimum of one layer, by enumeration."""
    speeds = np.ones(len(slots)) if speeds is None else np.asarray(speeds) / np.mean(speeds)
    load = np.sort(load)[::-1].copy()
    scratch = np.zeros(load.size, dtype=np.int64)
    listed = min(load.size - 1, int(np.log(20_000) / np.log(2 ** len(slots) - 1)))
    return find_optimum(load, np.asarray(slots), speeds, listed, np.inf, scratch)


def known(load, topology):
    replication = replication_bound(load, topology, distinct=True)
    return np.maximum(mean_bound(load, topology), full_slot_bound(load, topology, replication))


def test_two_large_replicas_need_two_small_ones_beside_them():
    # 3 ranks of 2 slots, loads 10, 1, 1, 1, 1. Two replicas of the 10: 5 + 1 at least, as the four 1 keep one each.
    load, topology = np.array([[10.0, 1, 1, 1, 1]]), Topology(1, 3, 2)
    best = lower_bounds(load, topology, reached=np.array([6.0]))
    assert best.value == pytest.approx([6], rel=1e-9)
    assert best.binding == (BindingBound.CO_RESIDENCY,)
    assert 5.999 < lower_bounds(load, topology).value[0] <= 6


def test_three_small_replicas_beside_each_large_one():
    # 3 ranks of 4 slots, loads 10 and ten of 1: one free copy, two copies of the 10, beside each three of the 1: 5 + 3.
    # The mean is 20 / 3.
    load, topology = np.array([[10.0] + [1.0] * 10]), Topology(1, 3, 4)
    best = lower_bounds(load, topology)
    assert best.value == pytest.approx([8], rel=1e-4)
    assert best.binding == (BindingBound.CO_RESIDENCY,)


@pytest.mark.parametrize("start", [1.0, 3.5])
def test_a_load_whose_replicas_do_not_fit_is_refuted(start):
    # 3 ranks of 2 slots. Up to 3.3 the 10 needs more replicas than ranks, up to 5 all need more than the slots;
    # the search ends at 1.25 times its start.
    load, topology = np.array([[10.0, 1, 1, 1, 1]]), Topology(1, 3, 2)
    assert co_residency_bound(load, topology, np.array([start])) == pytest.approx([1.25 * start])
    assert pair_mixture_bound(load, topology, np.array([start]), np.array([start * 1.1])) > [start * 1.09]


def test_co_residency_is_searched_from_the_mean_too():
    # 3 ranks of 2 slots, five loads of 6 and a 1: two of the 6 meet, 12. The mean 31 / 3 is more than 1.25 times 6 + 1.
    best = lower_bounds(np.array([[6.0, 6, 6, 6, 6, 1]]), Topology(1, 3, 2))
    assert best.value == pytest.approx([12], rel=1e-4)


@pytest.mark.parametrize(("slots", "bound"), [(8, 17), (9, 0)])
def test_co_residency_is_searched_up_to_eight_slots_a_rank(slots, bound):
    # 3 ranks of 8 slots, loads 20 and 22 of 1: one free copy, so that 10 lies beside seven of the 1. The mean is 14.
    load, topology = np.array([[20.0] + [1.0] * (3 * slots - 2)]), Topology(1, 3, slots)
    base = mean_bound(load, topology)
    assert co_residency_bound(load, topology, base) == pytest.approx(np.maximum(base, bound), rel=1e-4)


def test_a_mixture_of_thresholds_refutes_more_than_one_of_them():
    # 5 ranks of 2 slots: the optimum, 27, by enumeration.
    load, topology = np.array([[28.0, 28, 24, 22, 15, 5, 2]]), Topology(1, 5, 2)
    assert exact(load[0], [2] * 5) == 27
    assert lower_bounds(load, topology).value == pytest.approx([24.8])
    best = lower_bounds(load, topology, reached=np.array([27.0]))
    assert 27 / 1.003 < best.value[0] <= 27
    assert best.binding == (BindingBound.PAIR_MIXTURE,)
    # A reached load that is within 0.2 % of the bound is near enough.
    near = np.array([24.8 * 1.0019])
    assert pair_mixture_bound(load, topology, np.array([24.8]), near) == pytest.approx([24.8])


def test_a_mixture_is_searched_from_the_best_bound_before_it():
    # The optimum of 5 ranks of 2 slots is 22, by enumeration; co-residency gives 21. What the mixtures refute is not an
    # interval: a search that begins at the largest replica ends there.
    load, topology = np.array([[28.0, 28, 10, 10, 9, 8, 7]]), Topology(1, 5, 2)
    assert exact(load[0], [2] * 5) == 22
    best = lower_bounds(load, topology, reached=np.array([24.15]))
    assert 22 / 1.003 < best.value[0] <= 22


def test_every_layer_is_bounded_where_layers_are_more_than_experts():
    loads = np.array([[10.0, 1, 1, 1, 1], [28, 28, 24, 22, 15]] * 4)
    for topology, reached in ((Topology(1, 3, 2), 6.0), (Topology(1, 4, 2), 40.0)):
        base, above = known(loads, topology), np.full(8, reached)
        for bound in (co_residency_bound, pair_mixture_bound):
            found = bound(loads, topology, base, above)
            alone = [bound(loads[[i]], topology, base[[i]], above[[i]])[0] for i in range(8)]
            assert found.tolist() == alone
            assert (found >= base).all()


def test_what_shares_the_rank_of_the_largest_replica_is_at_least_the_smallest_shares():
    # 2 ranks of 3 slots, 4 experts: at most two replicas each. Beside the largest: (1 + 2) / 2.
    load = np.array([[9.0, 1, 2, 4]])
    assert full_slot_bound(load, Topology(1, 2, 3), np.array([5.0])).tolist() == [6.5]
    # With relative speeds 1.5 and 0.5 they weigh 1.5 / 1.5 on the fast rank.
    assert full_slot_bound(load, Topology(1, 2, 3, rank_speed=[3, 1]), np.array([5.0])).tolist() == [6]
    # Three others of eight: 1 + 2 + 3, one replica each.
    descending = np.array([[8.0, 7, 6, 5, 4, 3, 2, 1]])
    assert full_slot_bound(descending, Topology(1, 2, 4), np.array([8.0])).tolist() == [14]
    # The rank with the fewest slots counts: 2, 3 and 4 slots, at most three replicas.
    assert full_slot_bound(load, Topology(1, 3, [2, 3, 4]), np.array([5.0])) == pytest.approx([5 + 1 / 3])


def test_the_co_residency_bound_changes_nothing_where_it_does_not_apply():
    load = np.array([[10.0, 1, 1, 1, 1, 1]])
    base = np.array([1.0])
    for topology in (Topology(1, 6, 1), Topology(1, 3, 2, rank_speed=[1, 1, 2])):
        assert co_residency_bound(load, topology, base) is base
        assert pair_mixture_bound(load, topology, base, base * 2) is base
    assert pair_mixture_bound(load, Topology(1, 3, [2, 2, 3]), base, base * 2) is base


@settings(max_examples=120)
@given(data=st.data(), num_ranks=st.integers(2, 5), slots=st.integers(2, 4))
def test_no_placement_goes_below_the_co_residency_and_pair_mixture_bounds(data, num_ranks, slots):
    most = min(num_ranks * slots, 9 if num_ranks < 5 else 7)
    load = data.draw(layer_loads(data.draw(st.integers(slots, most))))
    if load.sum() == 0:
        return
    topology = Topology(1, num_ranks, slots)
    optimum = exact(load, [slots] * num_ranks)
    base = known(load[None], topology)
    assert base[0] <= optimum * (1 + 1e-12)
    for reached in (None, np.array([optimum]), np.array([optimum * 1.1])):
        bound = co_residency_bound(load[None], topology, base, reached)
        assert base[0] <= bound[0] <= optimum * (1 + 1e-12)
    for above in (1.0, 1.01, 1.3):
        bound = pair_mixture_bound(load[None], topology, base, np.array([optimum * above]))
        assert base[0] <= bound[0] <= optimum * (1 + 1e-12)


@settings(max_examples=120)
@given(data=st.data(), slots=st.lists(st.integers(1, 3), min_size=2, max_size=5))
def test_no_bound_is_too_high_where_some_ranks_have_fewer_slots(data, slots):
    most_slots, most = max(slots), min(sum(slots), 8 if len(slots) < 5 else 7)
    if most_slots == 1 or most < most_slots:
        return
    load = data.draw(layer_loads(data.draw(st.integers(most_slots, most))))
    topology = Topology(1, len(slots), slots)
    if load.sum() == 0 or sum(min(load.size, s) for s in slots) < sum(slots):
        return
    optimum = exact(load, slots)
    if not np.isfinite(optimum):  # no counts fill the ranks without an expert twice
        return
    base = known(load[None], topology)
    for reached in (None, np.array([optimum]), np.array([optimum * 1.1])):
        bound = co_residency_bound(load[None], topology, base, reached)
        assert base[0] <= bound[0] <= optimum * (1 + 1e-12)
    for above in (1.0, 1.01, 1.3):
        assert pair_mixture_bound(load[None], topology, base, np.array([optimum * above]))[0] <= optimum * (1 + 1e-12)


def test_a_large_replica_needs_a_small_one_or_an_empty_slot_beside_it():
    # Ranks of 2, 2 and 1 slots, loads 10, 8, 4, 4, 3, one copy each. Mean 29 / 3. The 10 alone: 8 + 3, 4 + 4: 11.
    load, topology = np.array([[10.0, 8, 4, 4, 3]]), Topology(1, 3, [2, 2, 1])
    best = lower_bounds(load, topology, reached=np.array([11.0]))
    assert best.value == pytest.approx([11], rel=1e-4)
    assert best.binding[0] in (BindingBound.CO_RESIDENCY, BindingBound.FULL_SLOT)


def test_bounds_close_the_gap_of_two_slots_a_rank():
    # 144 ranks x 2 slots; greedy's gap to mean and largest copy is 2 % here, most of it the bound's.
    load = np.random.default_rng(0).lognormal(0, 1, (8, 256))
    topology = Topology(1, 144, 2)
    _, rank_load = Greedy().pack(load, topology.rank_first_slot)
    reached = rank_load.max(axis=1)
    assert (reached / known(load, topology)).mean() > 1.015
    assert (reached / lower_bounds(load, topology, reached=reached).value).mean() < 1.006


@settings(max_examples=60)
@given(data=st.data(), num_ranks=st.integers(2, 3), slots=st.integers(1, 3))
def test_speeds_sharpen_the_replication_bound_and_no_placement_goes_below_it(data, num_ranks, slots):
    num_experts = data.draw(st.integers(max(2, slots), num_ranks * slots)) if num_ranks * slots > 1 else 2
    load = data.draw(layer_loads(num_experts))
    speeds = data.draw(st.lists(SPEEDS, min_size=num_ranks, max_size=num_ranks))
    if load.sum() == 0:
        return
    topology = Topology(1, num_ranks, slots, rank_speed=speeds)
    any_placement = replication_bound(load[None], topology)[0]
    distinct = replication_bound(load[None], topology, distinct=True)[0]
    equal = replication_bound(load[None], Topology(1, num_ranks, slots))[0]
    assert equal / topology.relative_speed.max() <= any_placement * (1 + 1e-12)
    assert any_placement <= distinct * (1 + 1e-12)
    assert distinct <= exact(load, [slots] * num_ranks, speeds) * (1 + 1e-12)


def test_copies_on_slow_ranks_count_by_the_slowest():
    # Speeds 3 and 1, relative 1.5 and 0.5, one slot each, loads 6 and 0 (E = 2, no redundancy): 6 / 1.5.
    assert replication_bound(np.array([[6.0, 0]]), Topology(1, 2, 1, rank_speed=[3, 1]), distinct=True).tolist() == [4]
    # Two slots each: one copy 6 / 1.5 = 4, two copies max(3 / 1.5, 3 / 0.5) = 6; split freely 6 / 2 = 3.
    topology = Topology(1, 2, 2, rank_speed=[3, 1])
    assert replication_bound(np.array([[6.0, 0, 0]]), topology, distinct=True).tolist() == [4]
    assert replication_bound(np.array([[6.0, 0, 0]]), topology).tolist() == [3]
    # Speeds 1.2, 0.9, 0.9, six slots: 9 on all ranks is 9 / 3; on two it were 9 / 2.1, where 4.9 needs one replica.
    topology = Topology(1, 3, 2, rank_speed=[4, 3, 3])
    assert replication_bound(np.array([[9.0, 4.9]]), topology) == pytest.approx([3])


@settings(max_examples=40)
@given(problem=problems(tiny=True), seed=st.integers(0, 10**6))
def test_no_plan_is_better_over_windows_than_the_scenario_bound(problem, seed):
    rng = np.random.default_rng(seed)
    num_experts, topology = problem.load.num_experts, problem.topology
    windows = rng.integers(0, 9, (3, 1, num_experts)).astype(float)
    windows[0] += 1
    load = ExpertLoad(windows, weights=[1.0, 2.0, 3.0])
    bound = scenario_bound(load, topology)[0]
    slots, speeds = topology.rank_num_slots.tolist(), topology.relative_speed.tolist()
    best = np.inf
    for hands in itertools.islice(oracles.every_layout(num_experts, slots, alike=False), 400):
        ratios = []
        for tokens in windows[:, 0].tolist():
            mean = sum(tokens) / len(slots)
            ratios.append(oracles.busiest_time(hands, tokens, speeds) / mean if mean > 0 else 1.0)
        best = min(best, np.average(ratios, weights=load.weights))
    assert bound <= best * (1 + 1e-12)


def brute_pinned(load, topology, num_groups):
    """The best placement in which each group lies on one node and each node has equally many groups."""
    experts = np.arange(load.size).reshape(num_groups, -1)
    per_node = num_groups // topology.num_nodes
    best = np.inf
    for order in itertools.permutations(range(num_groups)):
        nodes = [order[i : i + per_node] for i in range(0, num_groups, per_node)]
        slots = [int(topology.rank_num_slots[0])] * topology.ranks_per_node
        best = min(best, max(exact(load[experts[list(groups)].ravel()], slots) for groups in nodes))
    return best


@settings(max_examples=25)
@given(load=layer_loads(8), slots=st.integers(2, 3))
def test_no_pinned_placement_goes_below_the_pinned_bound(load, slots):
    topology = Topology(2, 2, slots)
    if load.sum() == 0:
        return
    found = pinned_bounds(load[None], topology, 4)
    assert found.value[0] <= brute_pinned(load, topology, 4) * (1 + 1e-12)
    assert found.value[0] >= found.free[0]
    assert found.free == pytest.approx(lower_bounds(load[None], topology).value)


def test_the_price_of_locality_of_two_groups_on_two_nodes():
    # Loads 6, 6 | 1, 1: pinned, a node of one rank has 12 of 14; free, the mean is 7.
    found = pinned_bounds(np.array([[6.0, 6, 1, 1]]), Topology(2, 1, 2), 2)
    assert found.value == pytest.approx([12])
    assert found.free == pytest.approx([7])
    assert found.price_of_locality == pytest.approx([5 / 7])


def test_groups_are_shared_out_as_well_as_they_can_be():
    # Groups of loads 8, 4, 3, 1 on 2 nodes of one rank: 8 + 1 beside 4 + 3.
    load = np.array([[8.0, 4, 3, 1]])
    assert pinned_bounds(load, Topology(2, 1, 2), 4).value == pytest.approx([9])


def test_more_groups_than_are_partitioned_still_bound_the_heaviest_groups_node():
    # Ten groups of one expert, 2 nodes of 5 slots: the 9 and four of the 1 make 13; free the mean is 9.
    load = np.array([[9.0] + [1.0] * 9])
    assert pinned_bounds(load, Topology(2, 1, 5), 10).value == pytest.approx([13])


@pytest.mark.parametrize(
    ("load", "num_nodes", "bound"),
    [
        # Two of the three 5 share a node of four slots: 5 + 5 + 1 + 1.
        ([5.0, 5, 5, 1, 1, 1, 1, 1], 2, 12),
        # Nine groups are not shared out: a 5 beside 1 + 1, less than the mean 25 / 3, though 5 + 5 + 1 share a node.
        ([5.0, 5, 5, 5, 1, 1, 1, 1, 1], 3, 25 / 3),
    ],
)
def test_as_many_as_eight_groups_are_shared_out(load, num_nodes, bound):
    topology = Topology(num_nodes, 1, len(load) // num_nodes)
    assert pinned_bounds(np.array([load]), topology, len(load)).value == pytest.approx([bound])


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from([(4, 2), (6, 3), (6, 2), (4, 1)]))
def test_the_least_worst_node_is_that_of_the_best_partition(seed, shape):
    num_groups, per_node = shape
    rng = np.random.default_rng(seed)
    chosen = list(itertools.combinations(range(num_groups), per_node))
    bound = {one: rng.random(2) for one in chosen}
    best = np.full(2, np.inf)
    for order in itertools.permutations(range(num_groups)):
        nodes = [tuple(sorted(order[i : i + per_node])) for i in range(0, num_groups, per_node)]
        best = np.minimum(best, np.max([bound[node] for node in nodes], axis=0))
    table = {sum(2**group for group in one): value for one, value in bound.items()}
    assert _least_worst_node(table, num_groups).tolist() == best.tolist()


def test_nodes_are_alike_in_slots_and_speeds_or_not_at_all():
    alike = _one_of_equal_nodes(Topology(2, 2, [3, 2, 3, 2], rank_speed=[3, 1, 3, 1]))
    assert alike == Topology(1, 2, [3, 2], rank_speed=[1.5, 0.5])
    assert _one_of_equal_nodes(Topology(1, 2, 3)) == Topology(1, 2, 3)
    assert _one_of_equal_nodes(Topology(2, 2, [3, 2, 3, 3])) is None
    assert _one_of_equal_nodes(Topology(2, 2, 3, rank_speed=[2, 1, 2, 2])) is None


def test_the_heaviest_groups_node_is_bounded_by_the_fastest_node():
    # Groups of 12 x 4 and nine of 1 x 4 on 2 nodes of 2 ranks with speeds 1.5, 1.5 | 0.5, 0.5: the heaviest group and
    # four others, 64 tokens, over the fast node's 3. Free: 84 tokens over 4.
    load, topology = np.array([[12.0] * 4 + [1.0] * 36]), Topology(2, 2, 10, rank_speed=[3, 3, 1, 1])
    found = pinned_bounds(load, topology, 10)
    assert found.value == pytest.approx([64 / 3])
    assert found.free == pytest.approx([21])
    # The same with as few groups as are partitioned where nodes are alike: 48 tokens over 3; free, 52 over 4.
    two = pinned_bounds(np.array([[12.0] * 4 + [1.0] * 4]), Topology(2, 2, 2, rank_speed=[3, 3, 1, 1]), 2)
    assert two.value == pytest.approx([48 / 3])


def test_the_scenario_bound_is_the_weighted_mean_over_windows_of_bound_over_mean():
    # One slot a rank: 3 over the mean 2; 1 over 1; a window without load counts as 1. (1 x 1.5 + 2 x 1 + 3 x 1) / 6.
    load = ExpertLoad([[[3.0, 1]], [[1, 1]], [[0, 0]]], weights=[1.0, 2.0, 3.0])
    assert scenario_bound(load, Topology(1, 2, 1)) == pytest.approx([6.5 / 6])


def test_a_layer_without_load_has_no_price_of_locality():
    found = pinned_bounds(np.zeros((1, 4)), Topology(2, 1, 2), 2)
    assert (found.value.tolist(), found.price_of_locality.tolist()) == ([0], [0])


def test_a_load_that_one_replica_carries_but_for_rounding_is_bounded_by_that_replica():
    # Relative speeds 2 x 5 / 6 and less: more replicas carry no more, and 31 / speed x speed rounds below 31.
    topology = Topology(1, 2, 1, rank_speed=[5, 1])
    speed = topology.relative_speed[0]
    assert 31.0 / speed * speed < 31
    assert replication_bound(np.array([[31.0, 0]]), topology, distinct=True) == pytest.approx([31 / speed])
