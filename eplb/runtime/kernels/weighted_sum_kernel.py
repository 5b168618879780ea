"""Adds each token's rows, weighted, in the order of its choices.

T tokens   J choices   M rows   H hidden
"""

import triton
import triton.language as tl


@triton.jit
def weighted_sum_kernel(
    rows_ptr,  # [M, H]
    row_ptr,  # [T, J] int64 row of each choice, -1 for none
    weight_ptr,  # [T, J] float32
    out_ptr,  # [T, H]
    H: tl.constexpr,
    J: tl.constexpr,
    BH: tl.constexpr,
):
    """Block (t, i) writes BH columns of token t."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BH + tl.arange(0, BH)
    total = tl.zeros((BH,), tl.float32)
    for choice in tl.static_range(J):
        row = tl.load(row_ptr + token * J + choice)
        weight = tl.load(weight_ptr + token * J + choice)
        live = columns < tl.where(row >= 0, H, 0)
        value = tl.load(rows_ptr + row * H + columns, mask=live, other=0.0).to(tl.float32)
        total += tl.where(live, value * weight, 0.0)
    tl.store(out_ptr + token * H + columns, total.to(out_ptr.dtype.element_ty), mask=columns < H)
