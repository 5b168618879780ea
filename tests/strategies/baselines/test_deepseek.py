"""DeepSeek's policy as a strategy: which policy when, and what it refuses. The slots are tested with the drop-in."""

import numpy as np
import pytest

import eplb
from eplb.errors import InputError
from tests.oracles import published_rebalance

LOAD = eplb.ExpertLoad(np.random.default_rng(3).permutation(36).reshape(3, 12) + 1.0)


def test_free_groups_mean_the_global_policy():
    placement = eplb.plan(LOAD, eplb.Topology(2, 4, 2), "deepseek", groups=4).placement
    expected, _, _ = published_rebalance(LOAD.total, 16, 1, 1, 8)
    assert placement.physical_to_logical_map.tolist() == expected.tolist()


def test_pinned_groups_mean_the_hierarchical_policy():
    placement = eplb.plan(LOAD, eplb.Topology(2, 4, 2), "deepseek", groups=4, group_mode="pinned").placement
    expected, _, _ = published_rebalance(LOAD.total, 16, 4, 2, 8)
    assert placement.physical_to_logical_map.tolist() == expected.tolist()
    # Groups of 3 experts stay on one of the nodes of 8 slots.
    for row in placement.physical_to_logical_map // 3:
        assert not set(row[:8].tolist()) & set(row[8:].tolist())


def test_it_plans_for_the_sum_of_all_windows():
    windows = eplb.ExpertLoad(np.stack([LOAD.total, LOAD.total[:, ::-1]]), weights=[1, 2])
    placement = eplb.plan(windows, eplb.Topology(1, 4, 4), "deepseek").placement
    expected, _, _ = published_rebalance(LOAD.total + 2 * LOAD.total[:, ::-1], 16, 1, 1, 4)
    assert placement.physical_to_logical_map.tolist() == expected.tolist()


def test_ranks_of_unequal_slots_are_refused():
    with pytest.raises(InputError, match="slots_per_rank: deepseek plans only for ranks with equally many slots"):
        eplb.plan(LOAD, eplb.Topology(1, 2, [6, 8]), "deepseek")


def test_groups_are_pinned_to_equal_nodes_only():
    with pytest.raises(InputError, match=r"nodes of \(3, 1\) ranks: deepseek pins groups only to equal nodes"):
        eplb.plan(LOAD, eplb.Topology(2, (3, 1), 6), "deepseek", groups=4, group_mode="pinned")
