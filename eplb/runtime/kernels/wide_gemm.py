"""Launches the wide grouped GEMM, one launch for each list of tiles.

S slots   R rows   O rows of one slot's weights   K width of a row
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from eplb.runtime.kernels.tile_lists import TileLists


@final
@dataclass(frozen=True)
class GemmShape:
    """How a GEMM is cut for the device.

    Parameters
    ----------
    weight_rows
        Rows of a weight tile.
    depth
        Columns of one step of the sum.
    stages
        Steps whose loads are in flight.
    warps
        Warps of a block.
    grid
        Blocks; each takes every grid-th job.
    """

    weight_rows: int = 128
    depth: int = 64
    stages: int = 4
    warps: int = 8
    grid: int = 132


def wide_gemm(
    rows_RK: Tensor, weight_SOK: Tensor, lists: TileLists, shapes: tuple[GemmShape, ...], *, swiglu: bool
) -> Tensor:
    """Rows times their slot's weights; with `swiglu`, gate and up rows alternate by eights and are combined.

    Parameters
    ----------
    rows_RK
        Rows sorted by slot, contiguous.
    weight_SOK
        Weights, contiguous; O a multiple of the shapes' `weight_rows`.
    lists
        Tiles of the rows.
    shapes
        One for each list.
    swiglu
        Whether the output is silu(gate) * up, [R, O / 2], instead of [R, O].

    Returns
    -------
    Tensor
        Rows past the last slot's end are not written.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    from eplb.runtime.kernels.wide_gemm_kernel import wide_gemm_kernel

    num_slots, height, depth = weight_SOK.shape
    width = height // 2 if swiglu else height
    out = torch.empty((rows_RK.shape[0], width), dtype=rows_RK.dtype, device=rows_RK.device)
    weight = weight_SOK.view(num_slots * height, depth)
    for number, ((main, tail), shape) in enumerate(zip(lists.heights.of_lists(), shapes, strict=True)):
        if not main:
            continue
        wide_gemm_kernel[(shape.grid,)](
            TensorDescriptor.from_tensor(weight, [shape.weight_rows, shape.depth]),
            TensorDescriptor.from_tensor(rows_RK, [main, shape.depth]),
            TensorDescriptor.from_tensor(rows_RK, [tail or main, shape.depth]),
            out, lists.tiles[number], lists.counts[number:],
            OUT=height, K=depth, WIDTH=width, TA=main, TB=tail, WR=shape.weight_rows, BK=shape.depth, SWIGLU=swiglu,
            num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
    return out
