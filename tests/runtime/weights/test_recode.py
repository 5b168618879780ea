"""FP4 experts stored as FP8 keep their numbers."""

import pytest
import torch

from eplb.errors import InputError
from eplb.runtime.weights.expert_weights import ExpertWeights, ExpertWeightsShape
from eplb.runtime.weights.quantization import Fp4Blocks, Fp8Blocks
from eplb.runtime.weights.recode import experts_as_fp8, fp4_as_fp8

SHAPE = ExpertWeightsShape(num_layers=2, num_slots=2, hidden_size=160, intermediate_size=96)


def _fp4_weights():
    weights = ExpertWeights(SHAPE, Fp4Blocks(), compute_dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for layer in range(2):
        for slot in range(2):
            scale = 4.0 ** (3 * layer - slot)
            gate_up = torch.randn((2, 96, 160), generator=generator) * scale
            weights.write_dense(layer, slot, gate_up, torch.randn((160, 96), generator=generator) * scale)
    return weights


def test_fp8_experts_equal_the_fp4_experts():
    weights = _fp4_weights()
    recoded = experts_as_fp8(weights)
    assert isinstance(recoded.codec, Fp8Blocks)
    for layer in range(2):
        for slot in range(2):
            for found, expected in zip(recoded.dense(layer, slot), weights.dense(layer, slot), strict=True):
                assert torch.equal(found, expected)
    # The codec's own scale, peak / 448, is no power of two and would round.
    gate_up, _ = weights.dense(0, 0)
    assert not torch.equal(Fp8Blocks().decode(Fp8Blocks().encode(gate_up), torch.float32), gate_up)


@pytest.mark.parametrize("peak", [6.0, 448.0, 0.5, 2.0**20, 3 * 2.0**-20])
def test_no_peak_overflows(peak):
    matrix = torch.zeros(32, 64)
    matrix[3, 40] = -peak
    stored = fp4_as_fp8(Fp4Blocks().encode(matrix))
    expected = Fp4Blocks().decode(Fp4Blocks().encode(matrix), torch.float32)
    assert torch.equal(Fp8Blocks().decode(stored, torch.float32), expected)
    assert expected.abs().max() > 0


def test_other_weights_are_refused():
    with pytest.raises(InputError, match="weights are fp8, expected fp4"):
        experts_as_fp8(ExpertWeights(SHAPE, Fp8Blocks(), compute_dtype=torch.float32))
