"""Launches the weighted sum of each token's rows. T tokens   J choices   M rows   H hidden."""

import torch
from torch import Tensor

_COLUMNS = 1024


def fused_weighted_sum(y_MH: Tensor, row_TJ: Tensor, weight_TJ: Tensor) -> Tensor:
    """[T, H] what `expert_rows.weighted_sum` computes, in one pass; products and sums may be fused.

    Parameters
    ----------
    y_MH
        Rows, contiguous; bf16, fp16 or fp32.
    row_TJ
        int64 row that each choice adds, -1 for none.
    weight_TJ
        float32 factor of that row.
    """
    from eplb.runtime.kernels.weighted_sum_kernel import weighted_sum_kernel

    num_tokens, num_choices = row_TJ.shape
    hidden = y_MH.shape[1]
    out = torch.empty((num_tokens, hidden), dtype=y_MH.dtype, device=y_MH.device)
    if num_tokens:
        grid = (num_tokens, -(-hidden // _COLUMNS))
        weighted_sum_kernel[grid](
            y_MH, row_TJ.contiguous(), weight_TJ.contiguous(), out, H=hidden, J=num_choices, BH=_COLUMNS, num_warps=4
        )
    return out
