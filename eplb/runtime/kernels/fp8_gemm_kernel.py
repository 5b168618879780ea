"""Multiplies each slot's e4m3 rows with its e4m3 weights: a scale for 1 x 128 of the rows and 128 x 128 of the weights.

S slots   R rows   O rows of one slot's weights   K width of a row, a multiple of 128

Tokens are on the M side, where a thread needs two scales of rows (on the N side it would gather 32). Products of 128
columns are summed in the tensor core, then scaled and added in float32. With SwiGLU the first O / 2 weight rows are
gates, the others ups.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def fp8_gemm_kernel(
    row_desc,  # [R, K] e4m3, box [TM, 128]
    row_scale_ptr,  # [K / 128, R] float32
    weight_desc,  # [S * O, K] e4m3, box [BN, 128]
    weight_scale_ptr,  # [S * O / 128, K / 128] float32
    out_ptr,  # [R, WIDTH]
    tiles_ptr,  # [capacity, 4] int32 (slot, first row, end of the slot's rows, unused)
    count_ptr,  # [1] int32 number of tiles
    num_rows,  # R
    OUT: tl.constexpr,  # O
    K: tl.constexpr,
    WIDTH: tl.constexpr,  # O, or O / 2 after SwiGLU
    TM: tl.constexpr,
    BN: tl.constexpr,
    SWIGLU: tl.constexpr,
):
    """Blocks take every num_programs-th job; neighbouring jobs share a tile of tokens."""
    parts: tl.constexpr = WIDTH // BN
    blocks: tl.constexpr = K // 128
    num_jobs = tl.load(count_ptr) * parts
    for job in tl.range(tl.program_id(0), num_jobs, tl.num_programs(0)):
        tile = job // parts
        column = job % parts * BN
        slot = tl.load(tiles_ptr + tile * 4)
        first = tl.load(tiles_ptr + tile * 4 + 1)
        end = tl.load(tiles_ptr + tile * 4 + 2)
        tokens = first + tl.arange(0, TM)
        live = tokens < end
        top = slot * OUT + column  # weight row of the first output column
        scale_ptr = weight_scale_ptr + top // 128 * blocks
        value = tl.zeros((TM, BN), tl.float32)
        if SWIGLU:
            up = tl.zeros((TM, BN), tl.float32)
        for block in tl.range(0, blocks):
            rows = row_desc.load([first, block * 128])
            row_scale = tl.load(row_scale_ptr + block * num_rows + tokens, mask=live, other=0.0)
            weight = weight_desc.load([top, block * 128])
            scale = row_scale * tl.load(scale_ptr + block)
            value += tl.dot(rows, tl.trans(weight)) * scale[:, None]
            if SWIGLU:
                up_weight = weight_desc.load([top + WIDTH, block * 128])
                up_scale = row_scale * tl.load(scale_ptr + WIDTH // 128 * blocks + block)
                up += tl.dot(rows, tl.trans(up_weight)) * up_scale[:, None]
        if SWIGLU:
            value = value * tl.sigmoid(value) * up
        at = tokens[:, None].to(tl.int64) * WIDTH + column + tl.arange(0, BN)[None, :]
        tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=live[:, None])


@triton.jit(do_not_specialize=["num_rows"])
def quantize_rows_kernel(
    rows_ptr,  # [R, K]
    out_ptr,  # [R, K] e4m3
    scale_ptr,  # [K / 128, R] float32
    used_ptr,  # [1] int32 rows in use
    num_rows,  # R
    K: tl.constexpr,
    TM: tl.constexpr,
    GROUPS: tl.constexpr,  # groups of 128 columns that a block converts
):
    """Block (i, j) converts TM rows and GROUPS groups of columns."""
    tokens = tl.program_id(0) * TM + tl.arange(0, TM)
    used = tokens < tl.load(used_ptr)
    groups = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    live = used[:, None] & (groups < K // 128)[None, :]
    at = (tokens[:, None].to(tl.int64) * K + groups[None, :] * 128)[:, :, None] + tl.arange(0, 128)[None, None, :]
    rows = tl.load(rows_ptr + at, mask=live[:, :, None], other=0.0).to(tl.float32)
    peak = tl.max(tl.abs(rows), axis=2)
    scale = tl.where(peak > 0, peak * (1 / 448), 1.0)
    scaled = rows / scale[:, :, None]
    scaled = tl.minimum(tl.maximum(scaled, -448.0), 448.0)
    tl.store(out_ptr + at, scaled.to(out_ptr.dtype.element_ty), mask=live[:, :, None])
    tl.store(scale_ptr + groups[None, :] * num_rows + tokens[:, None], scale, mask=live)
