"""The published algorithm's loops, compiled: against the plain ones, ties included."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb.strategies.baselines.deepseek_kernel import rebalance_layers
from tests.oracles import published_layer


@st.composite
def layers(draw):
    """Integer weights, many of them tied, with groups on nodes that divide as the algorithm asks."""
    num_nodes, ranks_per_node = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    slots, group_size, groups_per_node = (draw(st.integers(1, n)) for n in (4, 4, 3))
    num_experts = num_nodes * groups_per_node * group_size
    num_ranks = num_nodes * ranks_per_node
    slots = max(slots, -(-num_experts // num_ranks))
    top = draw(st.sampled_from([0, 2, 1000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = rng.integers(0, top + 1, num_experts).astype(np.float32)
    return weight, num_ranks * slots, num_nodes * groups_per_node, num_nodes, num_ranks


@given(layer=layers())
def test_slots_and_replica_numbers_are_those_of_the_plain_loops(layer):
    weight, num_slots, num_groups, num_nodes, num_ranks = layer
    phy2log, replica = np.empty((1, num_slots), np.int64), np.empty((1, num_slots), np.int64)
    logcnt = np.empty((1, weight.size), np.int64)
    rebalance_layers(weight[None], num_groups, num_nodes, num_ranks, phy2log, replica, logcnt)
    experts, replicas = published_layer(*layer)
    assert phy2log[0].tolist() == experts
    assert replica[0].tolist() == replicas
    assert logcnt[0].tolist() == [experts.count(expert) for expert in range(weight.size)]


def test_single_precision_loses_what_the_published_function_loses():
    # 2**24 + 1 is 2**24 in single precision: both experts weigh the same, so the redundant copy goes to the first.
    weight = np.array([[2.0**24, 2.0**24 + 1]], dtype=np.float32)
    phy2log, replica, logcnt = np.empty((1, 3), np.int64), np.empty((1, 3), np.int64), np.empty((1, 2), np.int64)
    rebalance_layers(weight, 1, 1, 3, phy2log, replica, logcnt)
    assert logcnt.tolist() == [[2, 1]]
    assert phy2log[0].tolist() == pytest.approx([0, 1, 0])
