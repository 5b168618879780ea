"""A whole layer on one process: order of steps, shared experts, handles that can be used again, epochs."""

import dataclasses

import pytest
import torch

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.runtime import (
    AllGather,
    AllToAll,
    ExchangeEpochError,
    GateChoice,
    MoeLayer,
    PlacementTables,
    RankGroup,
    Reference,
    SoftmaxGate,
    TensorParallelLayer,
    TokenSource,
)
from eplb.runtime.exchange.protocol import check_epochs
from eplb.runtime.verification.probe_experts import ProbeExperts, probe_weight

_PLACEMENT = Placement([[0, 1, 2, 3, 4, 0, 1, 5], [5, 4, 3, 2, 1, 0, 0, -1]], 6, Topology(1, 2, 4))
_HIDDEN = 8


def _layer(backend, layer=0, rule=DispatchRule.EVEN, **parts):
    group = RankGroup(_PLACEMENT.topology)
    experts = ProbeExperts(8, _HIDDEN, "cpu")
    experts.load(layer, _PLACEMENT.physical_to_logical_map[layer].tolist())
    router = torch.randn((6, _HIDDEN), generator=torch.Generator().manual_seed(0))
    tables = PlacementTables(_PLACEMENT, rule)
    return MoeLayer(layer, SoftmaxGate(router, 2), tables, group, backend(group), experts, **parts)


def _batch():
    x = torch.randn((9, _HIDDEN), generator=torch.Generator().manual_seed(1))
    return x, torch.arange(9), TokenSource.consecutive(0, [5, 4], "cpu")


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("backend", [Reference, AllGather, AllToAll])
@pytest.mark.parametrize("rule", [DispatchRule.EVEN, DispatchRule.ONLINE])
def test_a_layer_is_the_weighted_sum_of_its_logical_experts(backend, layer, rule):
    x, token_ids, source = _batch()
    result = _layer(backend, layer, rule)(x, token_ids, source)
    expected = torch.zeros_like(x, dtype=torch.float64)
    for token in range(9):
        for expert, weight in zip(result.choice.expert_ids_TK[token], result.choice.weight_TK[token], strict=True):
            w = probe_weight(layer, int(expert), hidden=_HIDDEN).double()
            expected[token] += x[token].double() @ w * weight.double()
    assert torch.allclose(result.y_TH.double(), expected, atol=1e-4)


def test_shared_experts_are_added_to_every_token():
    x, token_ids, source = _batch()
    routed = _layer(Reference)(x, token_ids, source).y_TH
    both = _layer(Reference, shared=lambda x_TH: 3 * x_TH)(x, token_ids, source).y_TH
    assert torch.equal(both, routed + 3 * x)


def test_a_handle_is_frozen_and_can_be_reused_for_other_hidden_states():
    layer = _layer(AllToAll)
    x, token_ids, source = _batch()
    result = layer(x, token_ids, source)
    assert torch.equal(layer.execute(2 * x, result.handle), 2 * result.y_TH)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.handle.rows = None


def test_a_routing_plan_keeps_the_epoch_of_its_maps():
    layer = _layer(AllToAll)
    x, token_ids, source = _batch()
    before = layer(x, token_ids, source).handle
    layer.tables.publish(0, _PLACEMENT.physical_to_logical_map[0])
    assert int(before.routing.epoch) == 0
    assert int(layer(x, token_ids, source).handle.routing.epoch) == 1
    with pytest.raises(ExchangeEpochError, match=r"\[0, 1\]"):
        check_epochs([0, 1])


@pytest.mark.parametrize(("ranks", "slots"), [(2, 2), (2, 8), (4, 2)])
def test_a_group_with_other_slots_than_the_maps_is_refused(ranks, slots):
    group, tables = RankGroup(Topology(1, ranks, slots)), PlacementTables(_PLACEMENT)
    experts = ProbeExperts(8, _HIDDEN, "cpu")
    message = f"for 2 ranks with 8 slots: the group has {ranks} ranks with {ranks * slots} slots"
    with pytest.raises(InputError, match=message):
        MoeLayer(0, SoftmaxGate(torch.ones((6, _HIDDEN)), 2), tables, group, AllGather(group), experts)
    with pytest.raises(InputError, match=message):
        TensorParallelLayer(0, tables, group, AllGather(group), (experts,), RankGroup(Topology(1, 1, 1)))


@pytest.mark.parametrize("backend", [Reference, AllGather, AllToAll])
def test_a_tensor_parallel_layer_without_a_token_returns_none(backend):
    group, experts = RankGroup(_PLACEMENT.topology), ProbeExperts(8, _HIDDEN, "cpu")
    layer = TensorParallelLayer(
        0, PlacementTables(_PLACEMENT), group, backend(group), (experts,), RankGroup(Topology(1, 1, 1))
    )
    nothing = GateChoice(torch.empty((0, 2), dtype=torch.int64), torch.empty((0, 2)))
    assert layer(torch.empty((0, _HIDDEN)), nothing).shape == (0, _HIDDEN)
