"""Layers with fixed shapes: equal to the reference on the CPU; on a GPU eager execution equals the replayed graph."""

import pytest
import torch

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.runtime import (
    CapturedLayers,
    ExpertWeights,
    ExpertWeightsShape,
    GateUpLayout,
    MoeLayer,
    PlacementTables,
    RankGroup,
    Reference,
    SoftmaxGate,
    StaticRows,
    TimedExperts,
    TokenSource,
)
from eplb.runtime.layer.captured import check_capturable, masked_layer

PLACEMENT = Placement([[0, 1, 2, 3, 4, 0, 1, 5], [5, 4, 3, 2, 1, 0, 0, -1]], 6, Topology(1, 2, 4))
OTHER_MAP = [0, 1, 2, 3, 4, 5, 5, 5]
HIDDEN, INNER = 256, 128


def _layers(backend, device, dtype, layout=GateUpLayout.SPLIT, rule=DispatchRule.EVEN):
    generator = torch.Generator().manual_seed(0)
    group = RankGroup(PLACEMENT.topology)
    tables = PlacementTables(PLACEMENT, rule, device)
    shape = ExpertWeightsShape(num_layers=2, num_slots=8, hidden_size=HIDDEN, intermediate_size=INNER)
    weights = ExpertWeights(shape, compute_dtype=dtype, device=device, layout=layout)
    for layer in range(2):
        for slot in range(8):
            weights.write_dense(
                layer,
                slot,
                torch.full((2, INNER, HIDDEN), 0.01 * (layer + 1)).normal_(0, 0.1, generator=generator),
                torch.zeros(HIDDEN, INNER).normal_(0, 0.1, generator=generator),
            )
    layers = []
    for layer in range(2):
        router = torch.randn((6, HIDDEN), generator=generator).to(device)
        gate = SoftmaxGate(router, 2)
        layers.append(MoeLayer(layer, gate, tables, group, backend(group), TimedExperts(weights)))
    return layers


def _batch(num_tokens, device, dtype, seed=1):
    x = torch.randn((num_tokens, HIDDEN), generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    half = num_tokens // 2
    return x, torch.arange(num_tokens, device=device), TokenSource.consecutive(0, [half, num_tokens - half], device)


@pytest.mark.parametrize("used", [0, 1, 7, 9])
def test_fixed_shapes_give_the_reference_for_used_tokens_and_zeros_for_the_others(used):
    x, ids, source = _batch(9, "cpu", torch.float32)
    for static, plain in zip(
        _layers(StaticRows, "cpu", torch.float32), _layers(Reference, "cpu", torch.float32), strict=True
    ):
        found = masked_layer(static, x, ids, source, torch.tensor(used))
        assert torch.allclose(found[:used], plain(x, ids, source).y_TH[:used], atol=1e-4)
        assert found[used:].eq(0).all()


def test_layers_that_wait_for_the_device_are_refused():
    for backend, rule, message in (
        (Reference, DispatchRule.EVEN, "backend reference waits"),
        (StaticRows, DispatchRule.ONLINE, "replica rule online"),
    ):
        with pytest.raises(InputError, match=message):
            check_capturable(_layers(backend, "cpu", torch.float32, rule=rule))
    with pytest.raises(InputError, match="none were given"):
        check_capturable([])


def test_a_cpu_has_no_graphs():
    x, _, source = _batch(4, "cpu", torch.float32)
    with pytest.raises(InputError, match="the input is on cpu"):
        CapturedLayers(_layers(StaticRows, "cpu", torch.float32), source, x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("layout", [GateUpLayout.SPLIT, GateUpLayout.INTERLEAVED])
def test_a_replay_equals_eager_for_other_routing_maps_and_numbers_of_tokens(layout):
    layers = _layers(StaticRows, "cuda", torch.bfloat16, layout)
    x, _, source = _batch(40, "cuda", torch.bfloat16)
    captured = CapturedLayers(layers, source, x)
    for number, used in enumerate((40, 17, 1, 40)):
        if number == 3:
            layers[0].tables.publish(0, OTHER_MAP)
        x, ids, _ = _batch(40, "cuda", torch.bfloat16, seed=number)
        eager = x
        for layer in layers:
            eager = masked_layer(layer, eager, ids, source, torch.tensor(used, device="cuda"))
        found = captured(x[:used], ids[:used])
        assert torch.equal(found, eager[:used])
        assert float(found.float().norm()) > 0
    with pytest.raises(InputError, match="41 tokens: the graph was captured for at most 40"):
        captured(torch.zeros(41, HIDDEN, device="cuda", dtype=torch.bfloat16), torch.zeros(41, device="cuda"))
