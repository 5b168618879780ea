"""What pays: one rule for replans on request and for the online rebalancer, its tie included."""

import math

import numpy as np
import pytest

from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.online.replan import replan
from eplb.online.settings import OnlineSettings
from eplb.planning.rebalance import Horizon, rebalance
from eplb_traces import ExpertLoad

# One layer, two ranks of two slots: 64 + 64 and 0 + 0 tokens. One exchange gives 64 and 64: the busiest rank falls by
# 64, a power of two, so that 64 x (seconds / 64) is exactly these seconds.
LIVE = Placement([[0, 1, 2, 3]], 4, Topology(1, 2, 2))
LOAD = ExpertLoad([[64.0, 64, 0, 0]])


def moved(horizon):
    """Replicas moved by a replan on request and by the online rebalancer."""
    on_request = rebalance(LIVE, LOAD, horizon=horizon, expert_bytes=1e6).migration.moved_copies
    settings = OnlineSettings(interval=2, window=2, half_life=1e9, price=0.0, horizon=horizon, expert_bytes=1e6)
    return on_request, replan(LIVE, LOAD, settings).migration.moved_copies


def test_a_layer_moves_only_if_it_gains_more_than_its_transfer_costs():
    migration = rebalance(LIVE, LOAD, expert_bytes=1e6).migration
    assert migration.moved_copies_by_layer.tolist() == [2]
    tie = migration.transfer_s_by_layer[0] / 64
    assert tie * 64 == migration.transfer_s_by_layer[0]
    for token_s, expected in ((math.nextafter(tie, 0), (0, 0)), (tie, (0, 0)), (math.nextafter(tie, 1), (2, 2))):
        assert moved(Horizon(token_s=token_s, num_loads=1)) == expected


def test_a_horizon_needs_the_bytes_of_an_expert():
    with pytest.raises(InputError, match="horizon: the cost of a move is unknown, expected expert_bytes"):
        rebalance(LIVE, LOAD, horizon=Horizon(token_s=1.0, num_loads=1))


def test_layers_that_do_not_move_do_not_pay():
    migration = rebalance(LIVE, ExpertLoad([[1.0, 0, 1, 0]]), expert_bytes=1e6).migration
    assert migration.moved_copies == 0
    assert Horizon(token_s=1.0, num_loads=1).pays(migration, np.array([5.0])).tolist() == [False]
