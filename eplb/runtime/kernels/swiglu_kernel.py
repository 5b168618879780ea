"""Combines gate and up columns that alternate by eights.

both [R, 2 I]   | 8 gate | 8 up | 8 gate | 8 up | ..        out [R, I] = silu(gate) * up
"""

import triton
import triton.language as tl


@triton.jit
def swiglu_kernel(
    both_ptr,  # [R, 2 I]
    out_ptr,  # [R, I]
    used_ptr,  # [1] int32 rows in use
    INNER: tl.constexpr,  # I
    TM: tl.constexpr,
    BN: tl.constexpr,
):
    """Blocks (i, j) take every num_programs-th group of TM rows of BN columns."""
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    used = tl.load(used_ptr)
    for first in tl.range(tl.program_id(0) * TM, used, tl.num_programs(0) * TM):
        tokens = first + tl.arange(0, TM)
        live = (tokens < used)[:, None] & (columns < INNER)[None, :]
        at = tokens[:, None].to(tl.int64) * (2 * INNER) + (columns // 8 * 16 + columns % 8)[None, :]
        gate = tl.load(both_ptr + at, mask=live, other=0.0).to(tl.float32)
        up = tl.load(both_ptr + at + 8, mask=live, other=0.0).to(tl.float32)
        value = gate * tl.sigmoid(gate) * up
        to = tokens[:, None].to(tl.int64) * INNER + columns[None, :]
        tl.store(out_ptr + to, value.to(out_ptr.dtype.element_ty), mask=live)
