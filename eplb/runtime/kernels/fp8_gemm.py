"""Launches the FP8 grouped GEMM and the quantization of rows that it needs.

S slots   R rows   O rows of one slot's weights   K width of a row
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from eplb.runtime.kernels.tile_lists import TileLists

_TOKENS, _GROUPS = 4, 8  # of a block of the quantization


@final
@dataclass(frozen=True)
class QuantizedRows:
    """Rows in e4m3 under a scale for each 128 columns."""

    rows_RK: Tensor
    scale_KR: Tensor
    """[K / 128, R] float32: scales of neighbouring rows are neighbours in memory."""


@final
@dataclass(frozen=True)
class Fp8Weights:
    """Weights in e4m3 under a scale for each block of 128 x 128."""

    weight_SOK: Tensor
    scale: Tensor
    """[S, O / 128, K / 128] float32."""


@final
@dataclass(frozen=True)
class Fp8Shape:
    """Columns of an output tile, steps in flight, warps of a block, blocks."""

    columns: int = 128
    stages: int = 4
    warps: int = 4
    grid: int = 264


def quantize_rows(rows_RK: Tensor, ends_S: Tensor) -> QuantizedRows:
    """Rows in e4m3; those past the last slot's end are not written."""
    from eplb.runtime.kernels.fp8_gemm_kernel import quantize_rows_kernel

    num_rows, width = rows_RK.shape
    out = torch.empty(rows_RK.shape, dtype=torch.float8_e4m3fn, device=rows_RK.device)
    scale = torch.empty((width // 128, num_rows), dtype=torch.float32, device=rows_RK.device)
    grid = (-(-num_rows // _TOKENS), -(-width // (128 * _GROUPS)))
    quantize_rows_kernel[grid](
        rows_RK, out, scale, ends_S[-1:], num_rows, K=width, TM=_TOKENS, GROUPS=_GROUPS, num_warps=4
    )
    return QuantizedRows(out, scale)


def fp8_gemm(rows: QuantizedRows, weights: Fp8Weights, lists: TileLists, shape: Fp8Shape, *, swiglu: bool) -> Tensor:
    """Rows times their slot's weights in bf16; with `swiglu`, silu of the first O / 2 outputs times the others.

    The lists hold tiles of one height. Rows past the last slot's end are not written.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    from eplb.runtime.kernels.fp8_gemm_kernel import fp8_gemm_kernel

    num_slots, height, depth = weights.weight_SOK.shape
    num_rows = rows.rows_RK.shape[0]
    width = height // 2 if swiglu else height
    out = torch.empty((num_rows, width), dtype=torch.bfloat16, device=rows.rows_RK.device)
    weight = weights.weight_SOK.view(num_slots * height, depth)
    fp8_gemm_kernel[(shape.grid,)](
        TensorDescriptor.from_tensor(rows.rows_RK, [lists.heights.big, 128]),
        rows.scale_KR,
        TensorDescriptor.from_tensor(weight, [shape.columns, 128]),
        weights.scale,
        out, lists.tiles, lists.counts, num_rows,
        OUT=height, K=depth, WIDTH=width, TM=lists.heights.big, BN=shape.columns, SWIGLU=swiglu,
        num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip
    return out
