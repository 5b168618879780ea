"""Weighted reduce and combine in one kernel: sum the rows of a token's experts, return the sum, add the sums.

    P ranks   T tokens of a rank (capacity)   K choices   H hidden   C = P*T copies, c = rank*T + token
    G tokens of one flag   BC columns of a tile

    push   tokens of the other ranks: sum of weight * row in the order of choices, rounded to the type of the rows, to
           `stage` of the token's rank; raise the flag
    own    tokens of this rank: the same sum; wait for the other ranks; add the sums in the order of ranks

In fixed order the rows themselves are returned and the token's rank adds weight * row in the order of choices, so the
result has the same bits for every placement. Under SPLIT even programs push and odd ones add, in the same order of
tokens: all programs must be resident together. Under PUSH_FIRST the lower half pushes, so a push never waits for a
program that waits. A rank that has failed writes NaN.
"""

import triton
import triton.language as tl

from eplb.runtime.kernels.signals_kernel import COMBINE, int_pointer, publish, tick, wait

SPLIT = tl.constexpr(0)
PUSH = tl.constexpr(1)
OWN = tl.constexpr(2)
PUSH_FIRST = tl.constexpr(3)


@triton.jit
def staged_row(base, stage, index, y_ptr, ROW_BYTES: tl.constexpr):
    """Pointer to a row of `stage` in the region at `base`, in the type of the rows."""
    address = base + stage + index.to(tl.int64) * ROW_BYTES
    return tl.multiple_of(address.to(tl.pointer_type(y_ptr.dtype.element_ty)), 16)


@triton.jit
def weighted_rows(y_ptr, row_ptr, weight_ptr, copy, column, K: tl.constexpr, H: tl.constexpr):
    """[BC] f32 sum of weight * row over the rows of a copy, and whether it has any."""
    total = column.to(tl.float32) * 0.0
    last_row = tl.load(row_ptr + copy * K)
    for choice in range(K):
        at = copy * K + choice
        row = tl.load(row_ptr + at)
        if row >= 0:  # masked loads would cost as much as a row
            y = tl.load(y_ptr + row.to(tl.int64) * H + column, mask=column < H, other=0.0)
            total += y.to(tl.float32) * tl.load(weight_ptr + at)
        last_row = tl.maximum(last_row, row)
    return total, last_row >= 0


@triton.jit
def pushed_token(base, y_ptr, row_ptr, weight_ptr, peer, token, parity, me, stage, P: tl.constexpr, T: tl.constexpr,
                 K: tl.constexpr, H: tl.constexpr, ROW_BYTES: tl.constexpr, BC: tl.constexpr,
                 FIXED: tl.constexpr):  # fmt: skip
    """Return the sum, or each row, of a token of another rank, whose region is at `base`."""
    copy = peer * T + token
    for first in range(0, H, BC):
        column = first + tl.arange(0, BC)
        if FIXED:
            for k in tl.static_range(K):
                row = tl.load(row_ptr + copy * K + k)
                if row >= 0:
                    y = tl.load(y_ptr + row.to(tl.int64) * H + column, mask=column < H)
                    index = (parity * T + token) * K + k
                    tl.store(staged_row(base, stage, index, y_ptr, ROW_BYTES) + column, y, mask=column < H)
        else:
            total, exists = weighted_rows(y_ptr, row_ptr, weight_ptr, copy, column, K, H)
            if exists:
                target_ptr = staged_row(base, stage, (parity * P + me) * T + token, y_ptr, ROW_BYTES)
                tl.store(target_ptr + column, total.to(y_ptr.dtype.element_ty), mask=column < H)


@triton.jit
def fixed_order_sum(base, y_ptr, row_ptr, weight_ptr, slot_ptr, token, column, parity, me, stage, T: tl.constexpr,
                    K: tl.constexpr, H: tl.constexpr, ROW_BYTES: tl.constexpr):  # fmt: skip
    """[BC] f32 sum of weight * row over the choices of an own token, rows of this rank and returned ones."""
    total = column.to(tl.float32) * 0.0
    for k in tl.static_range(K):
        at = (me * T + token) * K + k
        row = tl.load(row_ptr + at)
        weight = tl.load(weight_ptr + at)
        if row >= 0:
            total += tl.load(y_ptr + row.to(tl.int64) * H + column, mask=column < H, other=0.0).to(tl.float32) * weight
        else:
            width = tl.where(tl.load(slot_ptr + token * K + k) >= 0, H, 0)
            staged_ptr = staged_row(base, stage, (parity * T + token) * K + k, y_ptr, ROW_BYTES)
            staged = tl.load(staged_ptr + column, mask=column < width, other=0.0, cache_modifier=".cg")
            total += staged.to(tl.float32) * weight
    return total


@triton.jit
def waited_for(tab, own, me, flags, group, target, timeout_ns, errors, P: tl.constexpr, T: tl.constexpr,
               THREADS: tl.constexpr):  # fmt: skip
    """Wait for the sums of a group of own tokens from all other ranks."""
    arrived = me >= 0
    for ahead in tl.static_range(1, P):
        source = (me + ahead) % P
        arrived = arrived & wait(tab, own, me, flags, source * T + group, target, timeout_ns, errors, COMBINE, source,
                                 P, THREADS)  # fmt: skip
    return arrived


@triton.jit
def added_sums(base, own, hit, token, column, arrived, parity, me, stage, P: tl.constexpr, T: tl.constexpr,
               H: tl.constexpr, ROW_BYTES: tl.constexpr):  # fmt: skip
    """[BC] f32 sum of the own sum and those that other ranks returned, in the order of ranks."""
    total = column.to(tl.float32) * 0.0
    for peer in tl.static_range(P):
        if me == peer:
            total += own.to(tl.float32)
        else:
            width = tl.where(arrived, tl.where((hit >> peer) & 1 > 0, H, 0), 0)
            address = base + stage + ((parity * P + peer) * T + token).to(tl.int64) * ROW_BYTES
            staged_ptr = tl.multiple_of(address.to(tl.pointer_type(own.dtype)), 16)
            staged = tl.load(staged_ptr + column, mask=column < width, other=0.0, cache_modifier=".cg")
            total += staged.to(tl.float32)
    return total


@triton.jit(do_not_specialize=["me"])
def combine_kernel(
    tab,
    y_ptr,  # [rows, H]
    row_ptr,  # [C, K] i32
    weight_ptr,  # [C, K] f32
    hit_ptr,  # [T] i32
    slot_ptr,  # [tokens, K] slots of own tokens; read in fixed order
    out_ptr,  # [tokens, H], out
    num_tokens_ptr,  # [P] i32 tokens of each rank
    epoch_ptr,
    arrived_ptr,
    me,
    errors,
    flags,
    stage,
    timeout_ns,
    P: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
    H: tl.constexpr,
    ROW_BYTES: tl.constexpr,
    G: tl.constexpr,
    BC: tl.constexpr,
    FIXED: tl.constexpr,
    ROLE: tl.constexpr,
    THREADS: tl.constexpr,
):
    """Grid: any number of programs; an even one under SPLIT and PUSH_FIRST."""
    pid = tl.program_id(0)
    epoch = tl.load(epoch_ptr)
    parity = epoch & 1
    worker, workers, pushes = pid, tl.num_programs(0), pid >= 0
    if ROLE == SPLIT:
        worker, workers, pushes = pid // 2, workers // 2, pid % 2 == 0
    if ROLE == PUSH_FIRST:
        worker, workers, pushes = pid % (workers // 2), workers // 2, pid < workers // 2
    if (ROLE != OWN) & pushes:
        others: tl.constexpr = P - 1 if P > 1 else 1
        for item in range(worker, (P - 1) * ((T + G - 1) // G), workers):
            number = pid * 0 + item  # a tensor in the interpreter too
            peer, group = (me + 1 + number % others) % P, number // others
            base = tl.load(tab + peer)
            count = tl.load(num_tokens_ptr + peer)
            if group * G < tl.maximum(count, 1):
                for i in tl.static_range(G):
                    pushed = group * G + i
                    if pushed < count:
                        pushed_token(base, y_ptr, row_ptr, weight_ptr, peer, pushed, parity, me, stage, P, T, K, H,
                                     ROW_BYTES, BC, FIXED)  # fmt: skip
                tl.debug_barrier()
                publish(base, flags, me * T + group, epoch + 1)
    if (ROLE == OWN) | ((ROLE != PUSH) & (not pushes)):
        own = tl.load(tab + me)
        failed = tl.load(int_pointer(own + errors), volatile=True)
        for reporter in tl.static_range(1, P):
            failed = failed | tl.load(int_pointer(own + errors + 4 * reporter), volatile=True)
        own_count = tl.load(num_tokens_ptr + me)
        for own_group in range(worker, tl.maximum((own_count + G - 1) // G, 1), workers):
            arrived = failed == 0
            if (G > 1) | (own_count == 0):  # a group of one token sums its own rows before it waits
                arrived = arrived & waited_for(tab, own, me, flags, own_group, epoch + 1, timeout_ns, errors, P, T,
                                               THREADS)  # fmt: skip
            for j in tl.static_range(G):
                token = pid * 0 + own_group * G + j
                if token < own_count:
                    hit = tl.load(hit_ptr + token)
                    for first in range(0, H, BC):
                        column = first + tl.arange(0, BC)
                        here, _ = weighted_rows(y_ptr, row_ptr, weight_ptr, me * T + token, column, K, H)
                        here = here.to(y_ptr.dtype.element_ty)
                        if G == 1:
                            arrived = (failed == 0) & waited_for(tab, own, me, flags, own_group, epoch + 1, timeout_ns,
                                                                 errors, P, T, THREADS)  # fmt: skip
                        if FIXED:
                            total = fixed_order_sum(own, y_ptr, row_ptr, weight_ptr, slot_ptr, token, column, parity,
                                                    me, stage, T, K, H, ROW_BYTES)  # fmt: skip
                        else:
                            total = added_sums(own, here, hit, token, column, arrived, parity, me, stage, P, T, H,
                                               ROW_BYTES)  # fmt: skip
                        total += tl.where(arrived, 0.0, float("nan"))
                        row = out_ptr + token.to(tl.int64) * H
                        tl.store(row + column, total.to(out_ptr.dtype.element_ty), mask=column < H)
    if ROLE != PUSH:
        tick(epoch_ptr, arrived_ptr, epoch)
