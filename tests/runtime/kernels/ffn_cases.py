"""The kernels of the grouped FFN in Triton's interpreter; `test_ffn_kernels.py` runs this file in its own process."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from eplb.runtime.exchange.expert_rows import weighted_sum
from eplb.runtime.kernels.fp8_gemm import Fp8Shape, Fp8Weights, fp8_gemm, quantize_rows
from eplb.runtime.kernels.swiglu import swiglu
from eplb.runtime.kernels.tile_lists import TileHeights, make_tile_lists
from eplb.runtime.kernels.weighted_sum import fused_weighted_sum
from eplb.runtime.kernels.wide_gemm import GemmShape, wide_gemm
from eplb.runtime.weights.quantization import Fp8Blocks

LISTS = TileHeights(64, 16, 32, 16)
ROWS = ([0, 64, 0, 80, 81, 16, 17, 32, 33, 128, 144, 1], [5], [0, 0, 0], [200], [63, 65, 0])


def _ends(rows):
    return torch.tensor(rows).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("heights", [LISTS, TileHeights(16), TileHeights(64)])
def test_tiles_cover_each_row_once_and_none_of_another_slot(rows, heights):
    ends = _ends(rows)
    lists = make_tile_lists(ends, sum(rows) + 3, heights)
    covered = torch.zeros(sum(rows), dtype=torch.int64)
    for number, (main, tail) in enumerate(heights.of_lists()):
        count = int(lists.counts[number])
        assert main or not count
        for slot, first, end, _ in lists.tiles[number, :count].tolist():
            assert end == ends[slot]
            assert first >= end - rows[slot]
            assert min(end, first + main + tail) - first > (main if tail else 0)
            covered[first : min(end, first + main + tail)] += 1
    assert covered.eq(1).all()


def test_remainders_go_to_the_list_that_pads_least():
    lists = make_tile_lists(_ends([0, 64, 80, 81, 16, 17, 33, 144]), 500, LISTS)
    # 64: one big. 80: one tall. 81: big + medium (17). 16: small. 17: medium. 33: big. 144: big + tall (80).
    assert lists.counts.tolist() == [1 + 1 + 1 + 1, 1 + 1, 1 + 1, 1]


def _filled(rows, width, num_unused=3):
    generator = torch.Generator().manual_seed(sum(rows) + width)
    x = torch.randn(sum(rows) + num_unused, width, generator=generator)
    x[sum(rows) :] = float("nan")
    return x


def _weights(num_slots, height, depth):
    return torch.randn(num_slots, height, depth, generator=torch.Generator().manual_seed(1)) / 8


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("heights", [LISTS, TileHeights(16)])
@pytest.mark.parametrize("fused", [False, True])
def test_the_wide_gemm_equals_a_loop_over_slots(rows, heights, fused):
    x, weight = _filled(rows, 40), _weights(len(rows), 64, 40)
    shapes = (GemmShape(weight_rows=32, depth=16, grid=3),) * 4
    y = wide_gemm(x, weight, make_tile_lists(_ends(rows), len(x), heights), shapes, swiglu=fused)
    for slot, part in enumerate(torch.split(x[: sum(rows)], rows)):
        product = part @ weight[slot].T
        if fused:
            gate, up = product.view(-1, 4, 2, 8).unbind(2)
            product = (F.silu(gate) * up).flatten(1)
        first = sum(rows[:slot])
        assert torch.allclose(y[first : first + len(part)], product, atol=1e-5)


def test_swiglu_of_alternating_columns():
    both = _filled([5, 4], 48)
    out = swiglu(both, _ends([5, 4]))
    gate, up = both[:9].view(9, 3, 2, 8).unbind(2)
    assert torch.allclose(out[:9], (F.silu(gate) * up).flatten(1), atol=1e-6)


@pytest.mark.parametrize("rows", ROWS[:3])
@pytest.mark.parametrize("fused", [False, True])
def test_the_fp8_gemm_equals_the_product_of_the_decoded_numbers(rows, fused):
    x = _filled(rows, 256)
    stored = Fp8Blocks().encode(_weights(len(rows), 256, 256))
    quantized = quantize_rows(x, _ends(rows))
    weights = Fp8Weights(stored["weight"], stored["scale"])
    lists = make_tile_lists(_ends(rows), len(x), TileHeights(16))
    y = fp8_gemm(quantized, weights, lists, Fp8Shape(columns=64, grid=2), swiglu=fused)
    decoded_x = quantized.rows_RK.float() * quantized.scale_KR.T.repeat_interleave(128, dim=1)
    decoded = Fp8Blocks().decode(stored, torch.float32)
    for slot, part in enumerate(torch.split(decoded_x[: sum(rows)], rows)):
        product = part @ decoded[slot].T
        if fused:
            product = F.silu(product[:, :128]) * product[:, 128:]
        first = sum(rows[:slot])
        torch.testing.assert_close(y[first : first + len(part)].float(), product, atol=5e-3, rtol=2e-2)


@pytest.mark.parametrize(("num_tokens", "hidden"), [(5, 40), (1, 1030), (0, 8)])
def test_the_fused_weighted_sum_is_that_of_the_backends(num_tokens, hidden):
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(3 * num_tokens + 1, hidden, generator=generator)
    y[-1] = float("nan")  # a row that no choice adds
    rows = torch.randint(-1, 3 * num_tokens, (num_tokens, 3), generator=generator) if num_tokens else torch.empty(0, 3)
    weights = torch.rand(num_tokens, 3, generator=generator)
    found = fused_weighted_sum(y, rows.long(), weights)
    assert torch.allclose(found, weighted_sum(y, rows.long(), weights), atol=1e-6)


def test_scales_of_rows_and_zeros():
    x = _filled([6], 256)
    x[2, :128] = 0
    quantized = quantize_rows(x, _ends([6]))
    peaks = x[:6].view(6, 2, 128).abs().amax(dim=2).T
    assert torch.allclose(quantized.scale_KR[:, :6], torch.where(peaks > 0, peaks / 448, 1.0))
    assert quantized.rows_RK[2, :128].float().eq(0).all()
