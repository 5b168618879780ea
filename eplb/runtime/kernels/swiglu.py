"""Launches SwiGLU over interleaved gate and up columns. R rows   I intermediate size   S slots."""

import torch
from torch import Tensor

_TOKENS, _COLUMNS, _BLOCKS = 4, 2048, 528


def swiglu(both_RJ: Tensor, ends_S: Tensor) -> Tensor:
    """[R, I] silu(gate) * up of rows [R, 2 I] whose columns alternate 8 gate, 8 up; unused rows are not written."""
    from eplb.runtime.kernels.swiglu_kernel import swiglu_kernel

    inner = both_RJ.shape[1] // 2
    out = torch.empty((both_RJ.shape[0], inner), dtype=both_RJ.dtype, device=both_RJ.device)
    grid = (_BLOCKS, -(-inner // _COLUMNS))
    swiglu_kernel[grid](both_RJ, out, ends_S[-1:], INNER=inner, TM=_TOKENS, BN=_COLUMNS, num_warps=8)
    return out
