"""Dispatch and expand in one kernel: push the tokens of this rank, place the copies that arrived at their rows.

    P ranks   T tokens of a rank (capacity)   K choices   H hidden   C = P*T copies, c = rank*T + token
    G tokens of one flag   BC columns of a tile   NG groups of 128 channels of a tile

    pid < pushers     for G own tokens: read x once, store it to `recv` of every rank that they visit, raise the flag
    pid >= pushers    for each copy, own tokens first: wait for its flag, store it at each of its rows

Programs that push never wait and have the lower numbers, so the kernel cannot deadlock with its own grid. With FP8 the
wire carries e4m3 values and one f32 scale for each 128 channels; own tokens are rounded the same way.
"""

import triton
import triton.language as tl

from eplb.runtime.kernels.signals_kernel import DISPATCH, address_of, publish, tick, wait

BOTH = tl.constexpr(0)
PUSH = tl.constexpr(1)
PLACE = tl.constexpr(2)
PUSH_AND_WAIT = tl.constexpr(3)
E4M3_MAX = tl.constexpr(448.0)
SMALLEST_MAX = tl.constexpr(1e-10)


@triton.jit
def quantised(x):
    """E4m3 values and scales of rows [N, 128]: scale = max / 448, value = x * (448 / max)."""
    x = x.to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(x), axis=1), SMALLEST_MAX)
    value = x * tl.math.div_rn(tl.zeros_like(largest) + E4M3_MAX, largest)[:, None]
    return value.to(tl.float8e4nv), largest * (1.0 / E4M3_MAX)


@triton.jit
def pushed_plain(tab, x_ptr, hit, t, num_tokens, parity, me, recv, P: tl.constexpr, T: tl.constexpr, H: tl.constexpr,
                 ROW_BYTES: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """Store the rows of the tokens t [G] on the ranks that they visit, as they are."""
    for first in range(0, H, BC):
        column = first + tl.arange(0, BC)
        inside = (t < num_tokens)[:, None] & (column < H)[None, :]
        x = tl.load(x_ptr + t.to(tl.int64)[:, None] * H + column[None, :], mask=inside)
        for step in tl.static_range(1, P):
            peer = (me + step) % P
            base = address_of(tab, peer, recv + (parity * P + me).to(tl.int64) * T * ROW_BYTES)
            row_ptr = tl.multiple_of(base.to(tl.pointer_type(x_ptr.dtype.element_ty)), 16)
            stride = ROW_BYTES // (x_ptr.dtype.element_ty.primitive_bitwidth // 8)
            visits = ((hit >> peer) & 1) > 0
            tl.store(row_ptr + t.to(tl.int64)[:, None] * stride + column[None, :], x, mask=inside & visits[:, None])


@triton.jit
def pushed_float8(tab, x_ptr, hit, group, num_tokens, parity, me, recv, scales, P: tl.constexpr, T: tl.constexpr,
                  H: tl.constexpr, ROW_BYTES: tl.constexpr, G: tl.constexpr, NG: tl.constexpr,
                  STAGES: tl.constexpr):  # fmt: skip
    """Store e4m3 rows and scales of G tokens on the ranks that they visit; `hit` [G * NG] or a scalar."""
    n = tl.arange(0, G * NG)
    t = group * G + n // NG
    lane = tl.arange(0, 128)
    for first in tl.range(0, H // 128, NG, num_stages=STAGES):
        block = first + n % NG
        inside = (t < num_tokens) & (block < H // 128)
        at = t.to(tl.int64) * H + block * 128
        x = tl.load(x_ptr + at[:, None] + lane[None, :], mask=inside[:, None], other=0.0)
        value, scale = quantised(x)
        for step in tl.static_range(1, P):
            peer = (me + step) % P
            half = (parity * P + me).to(tl.int64) * T
            visits = inside & (((hit >> peer) & 1) > 0)
            base = address_of(tab, peer, recv + half * ROW_BYTES)
            row_ptr = tl.multiple_of(base.to(tl.pointer_type(tl.float8e4nv)), 16)
            row = t.to(tl.int64) * ROW_BYTES + block * 128
            tl.store(row_ptr + row[:, None] + lane[None, :], value, mask=visits[:, None])
            scale_ptr = address_of(tab, peer, scales + half * (H // 128 * 4)).to(tl.pointer_type(tl.float32))
            tl.store(scale_ptr + t.to(tl.int64) * (H // 128) + block, scale, mask=visits)


@triton.jit
def stored_at_rows(x, out_ptr, row_ptr, copy, column, width, K: tl.constexpr, H: tl.constexpr):
    """Store a tile at the columns below `width` of each row of a copy."""
    for k in tl.static_range(K):
        row = tl.load(row_ptr + copy * K + k)
        if row >= 0:
            tl.store(out_ptr + row.to(tl.int64) * H + column, x, mask=column < width)


@triton.jit
def placed_plain(source_ptr, out_ptr, row_ptr, copy, width, K: tl.constexpr, H: tl.constexpr,
                 BC: tl.constexpr):  # fmt: skip
    """Copy the first `width` columns of a row to the rows of a copy."""
    for first in range(0, H, BC):
        column = first + tl.arange(0, BC)
        x = tl.load(source_ptr + column, mask=column < width, cache_modifier=".cg")
        stored_at_rows(x, out_ptr, row_ptr, copy, column, width, K, H)


@triton.jit
def placed_float8(source_ptr, scale_ptr, out_ptr, row_ptr, copy, width, K: tl.constexpr, H: tl.constexpr,
                  NG: tl.constexpr):  # fmt: skip
    """Dequantise the first `width` columns of an e4m3 row to the rows of a copy."""
    for first in range(0, H // 128, NG):
        block = first + tl.arange(0, NG)
        column = block[:, None] * 128 + tl.arange(0, 128)[None, :]
        value = tl.load(source_ptr + column, mask=column < width, cache_modifier=".cg").to(tl.float32)
        scale = tl.load(scale_ptr + block, mask=block < width // 128, other=0.0, cache_modifier=".cg")
        x = (value * scale[:, None]).to(out_ptr.dtype.element_ty)
        stored_at_rows(x, out_ptr, row_ptr, copy, column, width, K, H)


@triton.jit
def placed_own_float8(x_ptr, out_ptr, row_ptr, copy, K: tl.constexpr, H: tl.constexpr, NG: tl.constexpr):
    """Round one row of this rank to e4m3 and back, to the rows of its copy."""
    for first in range(0, H // 128, NG):
        block = first + tl.arange(0, NG)
        column = block[:, None] * 128 + tl.arange(0, 128)[None, :]
        value, scale = quantised(tl.load(x_ptr + column, mask=column < H, other=0.0))
        x = (value.to(tl.float32) * scale[:, None]).to(out_ptr.dtype.element_ty)
        stored_at_rows(x, out_ptr, row_ptr, copy, column, H, K, H)


@triton.jit
def place_copy(own, x_ptr, out_ptr, row_ptr, source, token, width, parity, me, recv, scales, P: tl.constexpr,
               T: tl.constexpr, K: tl.constexpr, H: tl.constexpr, ROW_BYTES: tl.constexpr, BC: tl.constexpr,
               NG: tl.constexpr, FP8: tl.constexpr):  # fmt: skip
    """Store one copy, of this rank or received, at its rows."""
    copy = source * T + token
    if source == me:
        own_ptr = x_ptr + token.to(tl.int64) * H
        if FP8:
            placed_own_float8(own_ptr, out_ptr, row_ptr, copy, K, H, NG)
        else:
            placed_plain(own_ptr, out_ptr, row_ptr, copy, H, K, H, BC)
    else:
        index = (parity * P + source).to(tl.int64) * T + token
        address = own + recv + index * ROW_BYTES
        if FP8:
            value_ptr = tl.multiple_of(address.to(tl.pointer_type(tl.float8e4nv)), 16)
            scale_address = own + scales + index * (H // 128 * 4)
            scale_ptr = scale_address.to(tl.pointer_type(tl.float32))
            placed_float8(value_ptr, scale_ptr, out_ptr, row_ptr, copy, width, K, H, NG)
        else:
            value_ptr = tl.multiple_of(address.to(tl.pointer_type(x_ptr.dtype.element_ty)), 16)
            placed_plain(value_ptr, out_ptr, row_ptr, copy, width, K, H, BC)


@triton.jit(do_not_specialize=["me"])
def dispatch_kernel(
    tab,
    x_ptr,  # [tokens, H]
    hit_ptr,  # [T] i32
    row_ptr,  # [C, K] i32, -1 for none
    out_ptr,  # [rows, H], out
    num_tokens_ptr,  # [1] i32
    num_tokens_P_ptr,  # [P] i32 tokens of each rank
    epoch_ptr,
    arrived_ptr,
    me,
    errors,
    flags,
    recv,
    scales,
    pushers,
    timeout_ns,
    P: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    H: tl.constexpr,
    ROW_BYTES: tl.constexpr,
    G: tl.constexpr,
    PUSH_BC: tl.constexpr,
    PLACE_BC: tl.constexpr,
    STAGES: tl.constexpr,
    FP8: tl.constexpr,
    ROLE: tl.constexpr,
    THREADS: tl.constexpr,
):
    """Grid: `pushers` programs that push, then the programs that place; under the other roles one kind only.

    Under PUSH_AND_WAIT the programs that push wait for the tokens of all ranks, and nothing is placed.
    """
    pid = tl.program_id(0)
    epoch = tl.load(epoch_ptr)
    parity = epoch & 1
    if (ROLE == PUSH) | (ROLE == PUSH_AND_WAIT) | ((ROLE == BOTH) & (pid < pushers)):
        num_tokens = tl.minimum(tl.load(num_tokens_ptr), T)
        for group in range(pid, tl.maximum((num_tokens + G - 1) // G, 1), pushers):
            if FP8:
                tile_t = group * G + tl.arange(0, G * (PUSH_BC // 128)) // (PUSH_BC // 128)
                tile_hit = tl.load(hit_ptr + tile_t, mask=tile_t < num_tokens, other=0)
                pushed_float8(tab, x_ptr, tile_hit, group, num_tokens, parity, me, recv, scales, P, T, H, ROW_BYTES, G,
                              PUSH_BC // 128, STAGES)  # fmt: skip
            else:
                t = group * G + tl.arange(0, G)
                hit = tl.load(hit_ptr + t, mask=t < num_tokens, other=0)
                pushed_plain(tab, x_ptr, hit, t, num_tokens, parity, me, recv, P, T, H, ROW_BYTES, PUSH_BC)
            tl.debug_barrier()
            for step in tl.static_range(1, P):
                publish(tl.load(tab + (me + step) % P), flags, me * T + group, epoch + 1)
    if (ROLE == PLACE) | ((ROLE == BOTH) & (pid >= pushers)):
        skip = pushers if ROLE == BOTH else 0
        own = tl.load(tab + me)
        if pid == skip:  # a rank without tokens for this rank has raised its first flag too
            for step in tl.static_range(1, P):
                peer = (me + step) % P
                wait(tab, own, me, flags, peer * T, epoch + 1, timeout_ns, errors, DISPATCH, peer, P, THREADS)
        for item in range(pid - skip, P * T, tl.num_programs(0) - skip):
            number = pid * 0 + item  # a tensor in the interpreter too
            source, token = (me + number // T) % P, number % T
            k = tl.arange(0, KP)
            rows = tl.load(row_ptr + (source * T + token) * K + k, mask=k < K, other=-1)
            if tl.max(rows, axis=0) >= 0:
                width = number * 0 + H
                if source != me:
                    arrived = wait(tab, own, me, flags, source * T + token // G, epoch + 1, timeout_ns, errors,
                                   DISPATCH, source, P, THREADS)  # fmt: skip
                    width = tl.where(arrived, H, 0)
                place_copy(own, x_ptr, out_ptr, row_ptr, source, token, width, parity, me, recv, scales, P, T, K, H,
                           ROW_BYTES, PLACE_BC, PLACE_BC // 128, FP8)  # fmt: skip
    if ROLE == PUSH_AND_WAIT:
        base = tl.load(tab + me)
        for ahead in tl.static_range(1, P):
            other = (me + ahead) % P
            groups = tl.maximum((tl.load(num_tokens_P_ptr + other) + G - 1) // G, 1)
            for other_group in range(pid, groups, pushers):
                wait(tab, base, me, flags, other * T + other_group, epoch + 1, timeout_ns, errors, DISPATCH, other, P,
                     THREADS)  # fmt: skip
    if ROLE != PUSH:
        tick(epoch_ptr, arrived_ptr, epoch)
