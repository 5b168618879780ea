"""Expert weights on a GPU: the grouped path agrees with the loop, for every storage; skipped without a GPU."""

import pytest

torch = pytest.importorskip("torch")

from eplb.runtime.weights.expert_weights import ExpertWeights, ExpertWeightsShape  # noqa: E402  # torch first
from eplb.runtime.weights.quantization import Dense, Fp4Blocks, Fp8Blocks  # noqa: E402  # torch first

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SHAPE = ExpertWeightsShape(num_layers=1, num_slots=5, hidden_size=256, intermediate_size=384)


@pytest.mark.parametrize("codec", [Dense(torch.bfloat16), Fp8Blocks(), Fp4Blocks()], ids=["bf16", "fp8", "fp4"])
@pytest.mark.parametrize("rows", [[3, 0, 70, 1, 0], [0, 0, 0, 0, 0], [128, 128, 128, 128, 128]])
def test_grouped_rows_agree_with_a_loop_over_slots(codec, rows):
    torch.manual_seed(0)
    weights = ExpertWeights(SHAPE, codec, compute_dtype=torch.bfloat16, device="cuda")
    for slot in range(SHAPE.num_slots):
        gate_up = torch.randn(2, SHAPE.intermediate_size, SHAPE.hidden_size, device="cuda", dtype=torch.bfloat16) / 16
        down = torch.randn(SHAPE.hidden_size, SHAPE.intermediate_size, device="cuda", dtype=torch.bfloat16) / 16
        weights.write_dense(0, slot, gate_up, down)
    x = torch.randn(sum(rows) + 7, SHAPE.hidden_size, device="cuda", dtype=torch.bfloat16)  # 7 unused rows behind
    rows_per_slot = torch.tensor(rows, device="cuda")

    assert weights.has_grouped_path
    grouped = weights.forward(0, x, rows_per_slot)[: sum(rows)]
    looped = weights.looped(0, x, rows_per_slot)[: sum(rows)]

    torch.testing.assert_close(grouped, looped, rtol=2e-2, atol=2e-2)
