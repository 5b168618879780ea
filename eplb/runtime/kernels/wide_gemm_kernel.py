"""Multiplies each slot's rows with its weights, tokens on the wide side of the tensor core's instruction.

S slots   R rows   O rows of one slot's weights   K width of a row

    tile        D [WR weight rows, TA + TB tokens] = W [WR, K] x A [TA + TB, K]^T
    job         one tile of tokens x WR weight rows; neighbouring jobs share the tokens
    SwiGLU      weight rows alternate 8 gate, 8 up, so gate and up of an output are registers of one thread:
                D [WR / 16, gate | up, 8, tokens] -> silu(gate) * up [WR / 2, tokens]

A tile may read rows of the next slot: it does not store them.
"""

import triton
import triton.language as tl


@triton.jit
def wide_gemm_kernel(
    weight_desc,  # [S * O, K], box [WR, BK]
    row_desc,  # [R, K], box [TA, BK]
    tail_desc,  # [R, K], box [TB, BK]; not read if TB = 0
    out_ptr,  # [R, WIDTH]
    tiles_ptr,  # [capacity, 4] int32 (slot, first row, end of the slot's rows, unused)
    count_ptr,  # [1] int32 number of tiles
    OUT: tl.constexpr,  # O
    K: tl.constexpr,
    WIDTH: tl.constexpr,  # O, or O / 2 after SwiGLU
    TA: tl.constexpr,
    TB: tl.constexpr,
    WR: tl.constexpr,
    BK: tl.constexpr,
    SWIGLU: tl.constexpr,
):
    """Blocks take every num_programs-th job; neighbouring jobs share a tile of tokens."""
    parts: tl.constexpr = OUT // WR
    columns: tl.constexpr = WR * WIDTH // OUT
    num_jobs = tl.load(count_ptr) * parts
    for job in tl.range(tl.program_id(0), num_jobs, tl.num_programs(0)):
        tile = job // parts
        part = job % parts
        slot = tl.load(tiles_ptr + tile * 4)
        first = tl.load(tiles_ptr + tile * 4 + 1)
        end = tl.load(tiles_ptr + tile * 4 + 2)
        main = tl.zeros((WR, TA), tl.float32)
        if TB > 0:
            tail = tl.zeros((WR, TB), tl.float32)
        for k in tl.range(0, K, BK):
            weight = weight_desc.load([slot * OUT + part * WR, k])
            rows = row_desc.load([first, k])
            main = tl.dot(weight, tl.trans(rows), main)
            if TB > 0:
                more = tail_desc.load([first + TA, k])
                tail = tl.dot(weight, tl.trans(more), tail)
        _store_tokens(main, out_ptr, first, end, part * columns, WIDTH, WR, TA, SWIGLU)
        if TB > 0:
            _store_tokens(tail, out_ptr, first + TA, end, part * columns, WIDTH, WR, TB, SWIGLU)


@triton.jit
def _store_tokens(
    acc,  # [WR, T] float32
    out_ptr,
    first,
    end,
    column,
    WIDTH: tl.constexpr,
    WR: tl.constexpr,
    T: tl.constexpr,
    SWIGLU: tl.constexpr,
):
    if SWIGLU:
        gate, up = tl.split(tl.permute(tl.reshape(acc, (WR // 16, 2, 8, T)), (0, 2, 3, 1)))
        value = tl.reshape(gate * tl.sigmoid(gate) * up, (WR // 2, T))
        columns = column + tl.arange(0, WR // 2)
    else:
        value = acc
        columns = column + tl.arange(0, WR)
    tokens = first + tl.arange(0, T)
    at = tokens[:, None].to(tl.int64) * WIDTH + columns[None, :]
    tl.store(out_ptr + at, tl.trans(value.to(out_ptr.dtype.element_ty)), mask=(tokens < end)[:, None])
