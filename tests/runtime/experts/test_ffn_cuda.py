"""Every grouped FFN against float32 on a Hopper GPU, eager and replayed with other rows; skipped without one."""

import pytest

torch = pytest.importorskip("torch")

from eplb.runtime.experts.candidates import BF16_FFNS, FP8_FFNS, why_no_candidates  # noqa: E402  # torch first
from eplb.runtime.experts.timed_experts import TimedExperts  # noqa: E402  # torch first
from eplb.runtime.kernels.fp8_gemm import quantize_rows  # noqa: E402  # torch first
from eplb.runtime.weights.expert_weights import ExpertWeights, ExpertWeightsShape, GateUpLayout  # noqa: E402
from eplb.runtime.weights.quantization import Fp8Blocks  # noqa: E402  # torch first

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)

SHAPE = ExpertWeightsShape(num_layers=2, num_slots=6, hidden_size=256, intermediate_size=384)
ROWS = ([3, 0, 300, 1, 64, 290], [0, 0, 0, 0, 0, 0], [128, 33, 256, 32, 288, 17], [0, 0, 5000, 0, 0, 0])


def _weights(codec, layout):
    torch.manual_seed(0)
    weights = ExpertWeights(SHAPE, codec, device="cuda", layout=layout)
    for layer in range(2):
        for slot in range(SHAPE.num_slots):
            gate_up = torch.randn(2, SHAPE.intermediate_size, SHAPE.hidden_size, device="cuda") / 16
            down = torch.randn(SHAPE.hidden_size, SHAPE.intermediate_size, device="cuda") / 16
            weights.write_dense(layer, slot, gate_up.bfloat16(), down.bfloat16())
    assert why_no_candidates(weights) == ""
    return weights


@pytest.fixture(scope="module")
def bf16_weights():
    return _weights(None, GateUpLayout.INTERLEAVED)


@pytest.fixture(scope="module")
def fp8_weights():
    return _weights(Fp8Blocks(), GateUpLayout.SPLIT)


def _case(weights, rows, unused=5):
    x = torch.randn(sum(rows) + unused, SHAPE.hidden_size, device="cuda").bfloat16()
    x[sum(rows) :] = float("nan")
    expected = []
    for slot, part in enumerate(torch.split(x[: sum(rows)].float(), rows)):
        gate_up, down = (matrix.float() for matrix in weights.dense(1, slot))
        expected.append((torch.nn.functional.silu(part @ gate_up[0].T) * (part @ gate_up[1].T)) @ down.T)
    return x, torch.tensor(rows, device="cuda"), torch.cat(expected)


def _relative_error(found, expected):
    return float((found.float() - expected).norm() / expected.norm().clamp(min=1e-9))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("ffn", BF16_FFNS, ids=lambda ffn: ffn.name)
def test_a_bf16_ffn_is_close_to_float32(bf16_weights, ffn, rows):
    x, rows_per_slot, expected = _case(bf16_weights, rows)
    y = ffn(bf16_weights.layer_parts(1), x, rows_per_slot.cumsum(0).to(torch.int32))
    assert _relative_error(y[: sum(rows)], expected) < 6e-3


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("ffn", FP8_FFNS, ids=lambda ffn: ffn.name)
def test_an_fp8_ffn_is_close_to_float32(fp8_weights, ffn, rows):
    x, rows_per_slot, expected = _case(fp8_weights, rows)
    y = ffn(fp8_weights.layer_parts(1), x, rows_per_slot.cumsum(0).to(torch.int32))
    assert _relative_error(y[: sum(rows)], expected) < 5e-2


def test_the_trial_chooses_and_a_graph_follows_changing_rows(bf16_weights):
    experts = TimedExperts(bf16_weights)
    first, second = ROWS[0], [290, 1, 64, 3, 300, 0]
    x, rows_per_slot, _ = _case(bf16_weights, first)
    experts.prepare(len(x), expected_rows=sum(first))
    (trial,) = experts.trials.values()
    assert trial.seconds.keys() == {ffn.name for ffn in BF16_FFNS}
    assert trial.chosen.name == min(trial.seconds, key=trial.seconds.get)
    experts.forward(1, x, rows_per_slot)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = experts.forward(1, x, rows_per_slot)
    other_x, other_rows, expected = _case(bf16_weights, second)
    x.copy_(other_x)
    rows_per_slot.copy_(other_rows)
    graph.replay()
    assert _relative_error(y[: sum(second)], expected) < 6e-3


def test_quantized_rows_are_those_of_torch():
    x = torch.randn(40, 512, device="cuda").bfloat16()
    x[3, :128] = 0
    quantized = quantize_rows(x, torch.tensor([7, 37], dtype=torch.int32, device="cuda"))
    groups = x[:37].float().view(37, 4, 128)
    peaks = groups.abs().amax(dim=2)
    scale = torch.where(peaks > 0, peaks * torch.tensor(1 / 448, device="cuda"), 1.0)
    expected = (groups / scale[:, :, None]).clamp(-448, 448).to(torch.float8_e4m3fn).view(37, 512)
    assert torch.equal(quantized.scale_KR[:, :37].T, scale)
    differing = quantized.rows_RK[:37].view(torch.uint8) != expected.view(torch.uint8)
    assert int(differing.sum()) <= 2  # a division may round differently
