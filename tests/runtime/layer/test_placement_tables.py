"""Placement tables: contents, in-place updates, and refused maps."""

import pytest
import torch

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.dispatch.engine_rules import rank_slot_map
from eplb.errors import InputError, PlacementError
from eplb.runtime import PlacementTables

_TOPOLOGY = Topology(1, 2, 3)
_PLACEMENT = Placement([[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 3, -1]], 4, _TOPOLOGY)


def _tensors(tables):
    return {name: value for name, value in vars(tables).items() if isinstance(value, torch.Tensor)}


def test_tables_equal_the_placement():
    tables = PlacementTables(_PLACEMENT)
    assert tables.phy2log_LP.tolist() == _PLACEMENT.physical_to_logical_map.tolist()
    assert tables.logcnt_LE.tolist() == [[2, 2, 1, 1], [1, 1, 1, 2]]
    assert tables.log2phy_LEX[0].tolist() == [[0, 4, -1], [1, 5, -1], [2, -1, -1], [3, -1, -1]]
    assert tables.rank_of_slot_P.tolist() == [0, 0, 0, 1, 1, 1]
    assert tables.epoch_L.tolist() == [0, 0]


def test_publishing_keeps_every_address_and_equals_new_tables():
    new = Placement([[3, 2, 1, 0, 3, 3], [0, 1, 2, 3, 3, -1]], 4, _TOPOLOGY)
    for rule in (DispatchRule.EVEN, DispatchRule.ASCEND, DispatchRule.SGLANG_STATIC):
        tables = PlacementTables(_PLACEMENT, rule)
        before = {name: tensor.data_ptr() for name, tensor in _tensors(tables).items()}
        tables.publish(0, new.physical_to_logical_map[0])
        assert {name: tensor.data_ptr() for name, tensor in _tensors(tables).items()} == before
        fresh = _tensors(PlacementTables(new, rule))
        fresh["epoch_L"] = torch.tensor([1, 0])
        assert all(torch.equal(tensor, fresh[name]) for name, tensor in _tensors(tables).items())


def test_a_layer_published_alone_keeps_its_random_choice():
    placement = Placement([[0, 0, 1, 0]] * 3, 2, Topology(4, 1, 1))
    tables = PlacementTables(placement, DispatchRule.SGLANG_STATIC)
    tables.publish(2, placement.physical_to_logical_map[2])
    assert tables.rank_slot_LRE[2].tolist() == rank_slot_map(placement, DispatchRule.SGLANG_STATIC)[2].tolist()


def test_cumulative_weights_end_at_one_and_skip_replicas_without_share():
    placement = Placement([[0, 0, 0, 1]], 2, Topology(1, 2, 2), [[0.0, 1.0, 0.0, 1.0]])
    tables = PlacementTables(placement, DispatchRule.WEIGHTED)
    assert tables.weight_bound_LEX[0].tolist() == [[0, 2**32, 2**32], [2**32] * 3]


@pytest.mark.parametrize(
    ("row", "layer", "error", "fragment"),
    [
        ([0, 1, 2, 0, 0, 0], 0, PlacementError, "expert 3 has no slot"),
        ([0, 1, 2, 3, 0, 9], 0, PlacementError, "slot 5"),
        ([0, 1, 2, 3, 0], 0, PlacementError, "5"),
        ([0, 1, 2, 3, 0, 1], 2, InputError, "layer = 2"),
    ],
)
def test_an_invalid_map_changes_nothing(row, layer, error, fragment):
    tables = PlacementTables(_PLACEMENT)
    before = {name: tensor.clone() for name, tensor in _tensors(tables).items()}
    with pytest.raises(error, match=fragment):
        tables.publish(layer, row)
    assert all(torch.equal(tensor, before[name]) for name, tensor in _tensors(tables).items())


def test_too_many_replicas_and_missing_weights_are_refused():
    with pytest.raises(InputError, match="has 2 replicas: the tables have room for max_replicas = 1"):
        PlacementTables(_PLACEMENT, max_replicas=1)
    with pytest.raises(InputError, match="no replica_weights"):
        PlacementTables(_PLACEMENT, DispatchRule.WEIGHTED)
