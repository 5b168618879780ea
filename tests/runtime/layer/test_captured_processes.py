"""Layers of two processes through fixed buffers, in Triton's interpreter: equal to the layers over all-to-all."""

from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import EplbError, InputError
from eplb.runtime import (
    AllToAll,
    BufferSizes,
    CapturedLayers,
    CollectiveBuffers,
    ExchangeMode,
    FixedExchange,
    GroupLimit,
    HashGate,
    Launch,
    MoeLayer,
    PlacementTables,
    RankGroup,
    SigmoidGroupGate,
    SoftmaxGate,
    TokenSource,
    fixed_buffers,
    hash_table,
    run_processes,
    time_modes,
)

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
CPU = torch.device("cpu")
HIDDEN, EXPERTS, TOP_K, TOKENS = 8, 6, 2, 5
PLACEMENTS = [[0, 1, 2, 3, 4, 0, 1, 5], [5, 4, 3, 2, 1, 0, 0, -1]]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@dataclass(frozen=True)
class Scaled:
    """An expert multiplies its rows by its number; integers stay exact."""

    tables: PlacementTables
    first_slot: int

    def forward(self, layer, x_RH, rows_per_slot):
        own_S = self.tables.phy2log_LP[layer, self.first_slot : self.first_slot + len(rows_per_slot)] + 1
        ends_S = rows_per_slot.cumsum(0)
        slot_R = torch.searchsorted(ends_S, torch.arange(len(x_RH)), right=True).clamp(max=len(ends_S) - 1)
        return x_RH * own_S[slot_R, None]


def _layers(member, rule, hash_routing=False):
    topology = Topology(1, 2, 4)
    group = RankGroup.of(topology, member.process_group)
    tables = PlacementTables(Placement(PLACEMENTS, EXPERTS, topology), rule)
    generator = torch.Generator().manual_seed(0)
    layers = []
    for layer in range(2):
        router = torch.randn((EXPERTS, HIDDEN), generator=generator)
        gate = SigmoidGroupGate(router, torch.zeros(EXPERTS), TOP_K, GroupLimit(3, 2))
        if hash_routing:
            gate = HashGate(router, hash_table(50, num_experts=EXPERTS, top_k=TOP_K))
        experts = Scaled(tables, group.slots.start)
        layers.append(MoeLayer(layer, gate, tables, group, AllToAll(group), experts))
    return layers, tables


def _exchanges(group):
    sizes = BufferSizes(TOKENS, TOP_K, HIDDEN, 4)
    yield CollectiveBuffers.create(group, sizes, torch.float32, CPU)
    for mode in ExchangeMode:
        yield FixedExchange.create(group, sizes, torch.float32, CPU, mode=mode, timeout_s=60.0)


def _wrong(member, argument):
    """Names of the exchanges and steps in which the layers differ from all-to-all."""
    rule, hash_routing = argument
    layers, tables = _layers(member, rule, hash_routing)
    source = TokenSource.consecutive(member.process, [TOKENS], CPU)
    wrong = []
    for exchange in _exchanges(layers[0].group):
        captured = CapturedLayers(layers, source, torch.zeros((TOKENS, HIDDEN)), exchange)
        for step, counts in enumerate(((5, 2), (0, 4))):
            if step == 1:
                tables.publish(0, np.roll(PLACEMENTS[0], 3))
            used = counts[member.process]
            generator = torch.Generator().manual_seed(7 * step + member.process)
            x = torch.randint(-4, 5, (used, HIDDEN), generator=generator).float()
            ids = torch.randint(0, 50, (used,), generator=generator)
            expected = x
            for layer in layers:
                expected = layer(expected, ids, TokenSource.consecutive(member.process, [used], CPU)).y_TH
            found = captured(x, ids)
            captured.raise_on_error()
            if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4) or (used and not found.any()):
                wrong.append(f"{exchange.name}, step {step}")
        tables.publish(0, PLACEMENTS[0])
    return wrong


@pytest.mark.parametrize(
    ("rule", "hash_routing"),
    [(DispatchRule.EVEN, True), (DispatchRule.TRTLLM, False), (DispatchRule.ONLINE, False)],
)
def test_layers_through_buffers_equal_layers_over_all_to_all(rule, hash_routing):
    assert run_processes(Launch(2), _wrong, (rule, hash_routing)) == [[], []]


class _FixedTimes:
    """Executes every call once and gives the times of the tokens at hand, on process 1 those of a slow device."""

    device = CPU

    def __init__(self, process):
        self.process, self.tried = process, 0

    def seconds(self, calls, *, repeats, warm_s=0.0):
        for call in calls:
            call()
        self.tried += 1
        slow = 1 + self.process
        return np.array([5e-6, 2e-6 * slow if self.tried == 1 else 4e-6 * slow])


def _trials(member, _):
    group = RankGroup.of(Topology(1, 2, 4), member.process_group)
    sizes, timer = BufferSizes(3, 1, HIDDEN, 4), _FixedTimes(member.process)
    trials = time_modes(group, sizes, torch.float32, CPU, tried=(2, 100), timer=timer)
    large = fixed_buffers(group, BufferSizes(4097, 1, 1, 4), torch.float32, CPU)
    assert (large.buffers.name, large.trials) == ("symmetric, normal", None)
    assert large.reason == "the low-latency mode holds 4096 tokens"
    chosen = [fixed_buffers(group, BufferSizes(n, 1, HIDDEN, 4), torch.float32, CPU, trials=trials) for n in (2, 3)]
    return trials.threshold, str(trials), [one.buffers.name for one in chosen]


def test_the_mode_threshold_is_that_of_the_slowest_process_on_every_process():
    text = "normal and low-latency mode, 2 tokens: 5.0 and 4.0 us, 3 tokens: 5.0 and 8.0 us; low latency up to 2 tokens"
    assert run_processes(Launch(2), _trials, None) == [(2, text, ["symmetric, low-latency", "symmetric, normal"])] * 2


def _errors(member, _):
    """What this process raises for buffers of another capacity, a slot that does not exist, and other maps."""
    layers, tables = _layers(member, DispatchRule.EVEN)
    exchanges = _exchanges(layers[0].group)
    buffers = next(exchanges)
    source = TokenSource.consecutive(member.process, [TOKENS], CPU)
    found = []
    try:
        CapturedLayers(layers, source, torch.zeros((TOKENS + 1, HIDDEN)), buffers)
    except InputError as error:
        found.append(str(error))
    buffers.slot_TK.fill_(0)
    buffers.slot_TK[1, 0] = 8
    buffers.num_tokens.fill_(2)
    buffers.combine(buffers.dispatch(torch.ones((TOKENS, HIDDEN))))
    try:
        buffers.raise_on_error()
    except EplbError as error:
        found.append(str(error))
    tables.epoch_L += member.process
    for with_epochs in (next(_exchanges(layers[0].group)), *exchanges):
        captured = CapturedLayers(layers[:1], source, torch.zeros((TOKENS, HIDDEN)), with_epochs)
        captured(torch.ones((2, HIDDEN)), torch.zeros(2, dtype=torch.int64))
        try:
            captured.raise_on_error()
        except EplbError as error:
            found.append(str(error))
    return found


def test_wrong_sizes_slots_and_maps_raise():
    expected = [
        "buffers for 5 tokens: expected 6, as the input",
        "rank 0: a selection has a slot that does not exist",
        *["epoch of the maps by process: [0, 1], expected the same everywhere"] * 3,
    ]
    assert run_processes(Launch(2), _errors, None) == [expected] * 2


def _by_columns(member, _):
    """Names of the exchanges that a captured layer leaves wrong if its first input lies in memory by columns."""
    layers, _ = _layers(member, DispatchRule.EVEN)
    x = torch.randint(-4, 5, (TOKENS, HIDDEN), generator=torch.Generator().manual_seed(member.process)).float()
    ids, source = torch.zeros(TOKENS, dtype=torch.int64), TokenSource.consecutive(member.process, [TOKENS], CPU)
    by_columns = x.t().contiguous().t()
    expected, wrong = layers[0](x, ids, source).y_TH, []
    for exchange in _exchanges(layers[0].group):
        found = layers[0].captured(source, by_columns, exchange)(by_columns, ids)
        if not torch.allclose(found, expected, rtol=1e-4):
            wrong.append(exchange.name)
    return wrong


def test_an_input_by_columns_gives_the_same_result():
    assert run_processes(Launch(2), _by_columns, None) == [[], []]


def _refusals(member, _):
    """What buffers say about a gate of another K, and rows of another type, width or order in memory."""
    layers, _ = _layers(member, DispatchRule.EVEN)
    group, x = layers[0].group, torch.ones((TOKENS, HIDDEN))
    ids, source = torch.zeros(TOKENS, dtype=torch.int64), TokenSource.consecutive(member.process, [TOKENS], CPU)
    found = []

    def refused(call):
        try:
            call()
        except InputError as error:
            found.append(str(error).split(":")[0])

    for exchange in _exchanges(group):
        one = replace(layers[0], gate=SoftmaxGate(torch.ones((EXPERTS, HIDDEN)), 1))
        refused(lambda exchange=exchange, one=one: one.captured(source, x, exchange)(x, ids))
        if isinstance(exchange, FixedExchange):
            for rows in (x.bfloat16(), x[:, :4].contiguous(), x.t().contiguous().t()):
                refused(lambda exchange=exchange, rows=rows: exchange.dispatch(rows))
                refused(lambda exchange=exchange, rows=rows: exchange.combine(rows))
    sizes = BufferSizes(TOKENS, TOP_K, HIDDEN)  # two bytes an element
    refused(lambda: FixedExchange.create(group, sizes, torch.float32, CPU, mode=ExchangeMode.NORMAL))
    return found


def test_buffers_refuse_choices_and_rows_of_other_sizes():
    kinds = ("torch.bfloat16 and shape (5, 8), strides (8, 1)", "torch.float32 and shape (5, 4), strides (4, 1)",
             "torch.float32 and shape (5, 8), strides (1, 5)")  # fmt: skip
    rows = [f"rows of {kind}" for kind in kinds for _ in range(2)]
    expected = ["choices (5, 1)", *["choices (5, 1)", *rows] * 2, "rows of torch.float32"]
    assert run_processes(Launch(2), _refusals, None) == [expected] * 2


def test_buffers_need_a_gpu_or_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    sizes = BufferSizes(TOKENS, TOP_K, HIDDEN)
    with pytest.raises(InputError, match="buffers of collectives: tensors on cpu, the kernels need a GPU"):
        fixed_buffers(RankGroup(Topology(1, 1, 4)), sizes, torch.float32, CPU)
