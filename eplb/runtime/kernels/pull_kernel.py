"""Combine by reading: every rank adds the sums that the other ranks hold for its tokens in their own memory.

    P ranks   T tokens of a rank (capacity)   H hidden   G tokens and BC columns of a tile

    stage of rank d, row (s, t): the sum over the experts of rank d for token t of rank s

A rank raises one flag on every other rank once its sums are written, and waits for theirs before it reads. Sums are
added in the order of ranks. A rank that has failed writes NaN.
"""

import triton
import triton.language as tl

from eplb.runtime.kernels.signals_kernel import COMBINE, address_of, publish, tick, wait

BOTH = tl.constexpr(0)
ANNOUNCE = tl.constexpr(1)
READ = tl.constexpr(2)


@triton.jit(do_not_specialize=["me"])
def pull_kernel(
    tab,
    hit_ptr,  # [T] i32
    out_ptr,  # [tokens, H], out
    num_tokens_ptr,  # [1] i32 own tokens
    epoch_ptr,
    arrived_ptr,
    me,
    errors,
    flags,
    stage,
    timeout_ns,
    P: tl.constexpr,
    T: tl.constexpr,
    H: tl.constexpr,
    ROW_BYTES: tl.constexpr,
    G: tl.constexpr,
    BC: tl.constexpr,
    STAGES: tl.constexpr,
    ROLE: tl.constexpr,
    THREADS: tl.constexpr,
):
    """Grid: any number of programs."""
    pid = tl.program_id(0)
    epoch = tl.load(epoch_ptr)
    if (ROLE != READ) & (pid == 0):
        for step in tl.static_range(1, P):
            publish(tl.load(tab + (me + step) % P), flags, me * T, epoch + 1)
    if ROLE != ANNOUNCE:
        own = tl.load(tab + me)
        arrived = me >= 0
        for ahead in tl.static_range(1, P):
            source = (me + ahead) % P
            arrived = arrived & wait(tab, own, me, flags, source * T, epoch + 1, timeout_ns, errors, COMBINE, source, P,
                                     THREADS)  # fmt: skip
        num_tokens = tl.minimum(tl.load(num_tokens_ptr), T)
        columns: tl.constexpr = (H + BC - 1) // BC
        tiles = (num_tokens + G - 1) // G * columns
        element: tl.constexpr = out_ptr.dtype.element_ty
        stride: tl.constexpr = ROW_BYTES // (element.primitive_bitwidth // 8)
        first_row = ((epoch & 1) * P + me).to(tl.int64) * T
        for item in tl.range(pid, tiles, tl.num_programs(0), num_stages=STAGES):
            tile = pid * 0 + item
            t = tile // columns * G + tl.arange(0, G)
            column = tile % columns * BC + tl.arange(0, BC)
            hit = tl.load(hit_ptr + t, mask=t < num_tokens, other=0)
            total = tl.zeros([G, BC], dtype=tl.float32)
            for peer in tl.static_range(P):
                visits = tl.where(arrived, (hit >> peer) & 1, 0) > 0
                base = address_of(tab, peer, stage + first_row * ROW_BYTES)
                row_ptr = tl.multiple_of(base.to(tl.pointer_type(element)), 16)
                at = t.to(tl.int64)[:, None] * stride + column[None, :]
                inside = visits[:, None] & (column < H)[None, :]
                total += tl.load(row_ptr + at, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
            total += tl.where(arrived, 0.0, float("nan"))
            out = t.to(tl.int64)[:, None] * H + column[None, :]
            tl.store(out_ptr + out, total.to(element), mask=(t < num_tokens)[:, None] & (column < H)[None, :])
        tick(epoch_ptr, arrived_ptr, epoch)
