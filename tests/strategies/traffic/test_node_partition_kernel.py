"""Experts to nodes: visits and excess against counting by hand, and small cases against all assignments."""

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb.strategies.traffic.node_partition_kernel import SLOT_PENALTY, partition_experts

seeds = st.integers(0, 2**32)


def visits_of(ids, node):
    return sum(len(set(node[token])) for token in ids)


def excess_of(node, load, slots, cap, room):
    total = 0.0
    for n in range(len(cap)):
        here = node == n
        total += max(0.0, load[here].sum() / cap[n] - 1) + SLOT_PENALTY * max(0, slots[here].sum() - room[n])
    return total


def case(seed, num_experts, num_nodes, num_tokens=40):
    random = np.random.default_rng(seed)
    ids = np.stack([random.permutation(num_experts)[:3] for _ in range(num_tokens)]).astype(np.int32)
    load = np.bincount(ids.ravel(), minlength=num_experts).astype(float)
    slots = random.integers(1, 3, num_experts)
    cap = np.full(num_nodes, load.sum() / num_nodes * random.uniform(1.0, 1.5))
    room = np.full(num_nodes, int(np.ceil(slots.sum() / num_nodes)) + 1)
    return ids, load, slots, cap, room, random.integers(0, num_nodes, num_experts)


def search(ids, load, slots, cap, room, node, steps, least=0):
    first = np.arange(len(ids) + 1) * ids.shape[1]
    found = node.copy()
    visits, excess = partition_experts(
        first, ids.ravel(), load, slots, cap, room, np.full(len(cap), least), steps, np.uint64(1), found
    )
    return found, visits, excess


@given(seeds, st.integers(4, 12), st.integers(2, 4), st.integers(0, 60))
def test_claims_hold_and_the_start_is_never_made_worse(seed, num_experts, num_nodes, steps):
    ids, load, slots, cap, room, start = case(seed, num_experts, num_nodes)
    node, visits, excess = search(ids, load, slots, cap, room, start, steps)
    assert visits == visits_of(ids, node)
    found = excess_of(node, load, slots, cap, room)
    assert abs(excess - found) < 1e-9
    before = excess_of(start, load, slots, cap, room)
    assert found < before + 1e-9
    if steps == 0:
        assert (node == start).all()


@given(seeds)
def test_small_cases_reach_the_best_of_all_assignments(seed):
    ids, load, slots, cap, room, start = case(seed, 6, 2, num_tokens=15)
    ways = [np.array(way) for way in product(range(2), repeat=6)]
    fitting = [visits_of(ids, way) for way in ways if excess_of(way, load, slots, cap, room) == 0]
    _, visits, excess = search(ids, load, slots, cap, room, start, 400)
    if fitting:
        assert excess == 0
        assert visits <= min(fitting) * 1.05
        assert visits >= min(fitting)


def test_a_node_keeps_its_least_number_of_experts():
    ids = np.array([[0, 1, 2, 3]] * 5, np.int32)
    load, slots = np.ones(4), np.ones(4, np.int64)
    start = np.array([0, 0, 1, 1])
    free, _, _ = search(ids, load, slots, np.full(2, 9.0), np.full(2, 4), start, 30)
    held, _, _ = search(ids, load, slots, np.full(2, 9.0), np.full(2, 4), start, 30, least=1)
    assert sorted(np.bincount(free, minlength=2)) == [0, 4]
    assert (np.bincount(held, minlength=2) >= 1).all()
