"""Layers with fixed shapes: equal to the reference on the CPU; on a GPU eager execution equals the replayed graph."""

import pytest
import torch

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.runtime import (
    BufferSizes,
    CapturedLayers,
    CollectiveBuffers,
    ExchangeMode,
    ExpertWeights,
    ExpertWeightsShape,
    FixedExchange,
    GateUpLayout,
    MoeLayer,
    PlacementTables,
    RankGroup,
    Reference,
    RoutingPlan,
    SoftmaxGate,
    StaticRows,
    TimedExperts,
    TokenSource,
)
from eplb.runtime.layer.captured import check_capturable, masked_layer

PLACEMENT = Placement(
    [[0, 1, 2, 3, 4, 0, 1, 5], [5, 4, 3, 2, 1, 0, 0, -1]],
    6,
    Topology(1, 2, 4),
    replica_weights=[[0.25, 0.5, 1, 1, 1, 0.75, 0.5, 1], [1, 1, 1, 1, 1, 0.125, 0.875, 0]],
)
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


def test_a_slot_that_does_not_exist_gives_nan_for_its_token_alone():
    backend = StaticRows(RankGroup(PLACEMENT.topology))
    source = TokenSource.consecutive(0, [2, 0], "cpu")
    routing = RoutingPlan(torch.tensor([[0, 8], [1, -1]]), torch.ones((2, 2)), source, torch.tensor(0))
    handle = backend.plan_exchange(routing)
    y = backend.combine(backend.dispatch(torch.ones((2, 3)), handle), handle)
    assert y[0].isnan().all()
    assert y[1].tolist() == [1, 1, 1]


def test_backends_that_wait_for_the_device_are_refused():
    with pytest.raises(InputError, match="backend reference waits"):
        check_capturable(_layers(Reference, "cpu", torch.float32))
    x, _, source = _batch(4, "cpu", torch.float32)
    with pytest.raises(InputError, match="none were given"):
        CapturedLayers([], source, x)


@pytest.mark.parametrize("rule", [DispatchRule.EVEN, DispatchRule.ONLINE])
def test_on_a_cpu_the_same_call_runs_eagerly_and_gives_the_reason(rule):
    layer = _layers(Reference, "cpu", torch.float32, rule=rule)[0]
    x, ids, source = _batch(6, "cpu", torch.float32)
    captured = layer.captured(source, x)
    assert captured.reason == "the input is on cpu, and graphs need a GPU"
    assert repr(captured) == f"CapturedLayers(1 layers, 6 tokens, reference, eager: {captured.reason})"
    assert torch.allclose(captured(x, ids), layer(x, ids, source).y_TH, atol=1e-5)
    assert torch.allclose(captured(x[:2], ids[:2])[0], layer(x, ids, source).y_TH[0], atol=1e-5)
    with pytest.raises(InputError, match="7 tokens: the graph was captured for at most 6"):
        captured(torch.zeros(7, HIDDEN), torch.zeros(7))
    with pytest.raises(InputError, match=r"rows \(2, 1\) and token ids \(2,\): expected rows of width 256"):
        captured(x[:2, :1], ids[:2])
    with pytest.raises(InputError, match=r"token ids \(1,\): expected .* an id for each"):
        captured(x[:2], ids[:1])
    with pytest.raises(InputError, match="source of 6 tokens: expected 5, as the batch"):
        layer.captured(source, x[:5])


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
    assert repr(captured) == "CapturedLayers(2 layers, 40 tokens, static, one graph)"
    with pytest.raises(InputError, match="41 tokens: the graph was captured for at most 40"):
        captured(torch.zeros(41, HIDDEN, device="cuda", dtype=torch.bfloat16), torch.zeros(41, device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rule", list(DispatchRule))
def test_a_replay_through_buffers_equals_eager_under_every_rule(rule):
    layers = _layers(StaticRows, "cuda", torch.bfloat16, GateUpLayout.INTERLEAVED, rule)
    x, _, source = _batch(40, "cuda", torch.bfloat16)
    sizes = BufferSizes(40, 2, HIDDEN)
    for exchange in (
        FixedExchange.create(layers[0].group, sizes, x.dtype, x.device, mode=ExchangeMode.NORMAL),
        FixedExchange.create(layers[0].group, sizes, x.dtype, x.device, mode=ExchangeMode.LOW_LATENCY),
        CollectiveBuffers.create(layers[0].group, sizes, x.dtype, x.device),
    ):
        captured = CapturedLayers(layers, source, x, exchange)
        for number, used in enumerate((40, 17, 1)):
            x, ids, _ = _batch(40, "cuda", torch.bfloat16, seed=number)
            eager = x
            for layer in layers:
                eager = masked_layer(layer, eager, ids, source, torch.tensor(used, device="cuda"), exchange)
            expected = eager[:used].clone()
            assert torch.equal(captured(x[:used], ids[:used]), expected)
            captured.raise_on_error()
