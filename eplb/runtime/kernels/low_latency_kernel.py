"""Low-latency dispatch in one kernel: publish choices and tokens, count the rows of all choices, place the copies.

    P ranks   T tokens of a rank (capacity) = programs   K choices   S slots of this rank   H hidden   C = P*T copies
    NSEL: P*T*K rounded up to a power of two

A program sends one token, adds 1 to its rank's counter on every rank, waits for the counters of all ranks and places
one copy, so all programs of a rank must be resident together. Rows are counted instead of sorted: choice i of slot e
has the row #(slots < e) + #(slots == e before i), and the rows of slot e end at #(slots <= e).
"""

import triton
import triton.language as tl

from eplb.runtime.kernels.choices_kernel import written_choices
from eplb.runtime.kernels.dispatch_kernel import PLACE, PUSH, place_copy, pushed_float8, pushed_plain
from eplb.runtime.kernels.signals_kernel import (
    CHOICES,
    DISPATCH,
    ROWS_OVERFLOW,
    TOKENS_OVERFLOW,
    address_of,
    int_pointer,
    report,
    tick,
    wait_for_all,
)


@triton.jit
def numbered_rows(slot, ids_ptr, weights_ptr, row_ptr, weight_ptr, copy, low, num_slots, max_rows, width,
                  NSEL: tl.constexpr, K: tl.constexpr, KP: tl.constexpr):  # fmt: skip
    """Write row and weight of each choice of a copy; whether it has a row. `slot` [NSEL] are all local slots."""
    k = tl.arange(0, KP)
    choice = copy * K + k
    known = k < tl.where(width > 0, K, 0)
    own = tl.load(ids_ptr + choice, mask=known, other=-1, cache_modifier=".cg") - low
    weight = tl.load(weights_ptr + choice, mask=known, other=0.0, cache_modifier=".cg")
    n = tl.arange(0, NSEL)
    earlier = (slot[None, :] < own[:, None]) | ((slot[None, :] == own[:, None]) & (n[None, :] < choice[:, None]))
    before = tl.sum(earlier.to(tl.int32), axis=1)
    row = tl.where((own >= 0) & (own < num_slots) & (before < max_rows), before, -1)
    tl.store(row_ptr + choice, row, mask=k < K)
    tl.store(weight_ptr + choice, weight, mask=k < K)
    return tl.max(row, axis=0) >= 0


@triton.jit(do_not_specialize=["me"])
def low_latency_dispatch_kernel(
    tab,
    x_ptr,  # [tokens, H]
    slot_ptr,  # [tokens, K] integers, -1 masked
    weight_ptr,  # [tokens, K] f32
    hit_ptr,  # [T] i32, out
    row_ptr,  # [C, K] i32, out
    copy_weight_ptr,  # [C, K] f32, out
    offs_ptr,  # [S] i32, out
    num_tokens_P_ptr,  # [P] i32, out: tokens that combine returns; the capacity for other ranks
    map_epochs_P_ptr,  # [P] i32, out: epoch of the maps of each rank
    out_ptr,  # [rows, H], out
    num_tokens_ptr,  # [1] i32
    map_epoch_ptr,  # [1] integer
    first_slot_ptr,  # [P + 1] i32
    epoch_ptr,
    arrived_ptr,
    me,
    errors,
    counters,
    header,
    ids,
    weights,
    recv,
    scales,
    num_slots,
    max_rows,
    timeout_ns,
    P: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    H: tl.constexpr,
    ROW_BYTES: tl.constexpr,
    NSEL: tl.constexpr,
    BC: tl.constexpr,
    FP8: tl.constexpr,
    ROLE: tl.constexpr,
    THREADS: tl.constexpr,
):
    """Grid: at least T; the first T programs send a token."""
    pid = tl.program_id(0)
    epoch = tl.load(epoch_ptr)
    parity = epoch & 1
    num_tokens = tl.load(num_tokens_ptr)
    if (ROLE != PLACE) & (pid < T):
        t = pid + tl.arange(0, 1)
        hit = written_choices(tab, slot_ptr, weight_ptr, hit_ptr, first_slot_ptr, num_tokens, t, parity, me, errors,
                              ids, weights, P, T, K, KP)  # fmt: skip
        if pid == 0:
            for peer in tl.static_range(P):
                tl.store(num_tokens_P_ptr + peer, tl.where(me == peer, tl.minimum(num_tokens, T), T))
                header_ptr = int_pointer(address_of(tab, peer, header + (parity * P + me) * 16))
                tl.store(header_ptr + 1, tl.load(map_epoch_ptr).to(tl.int32))
            if num_tokens > T:
                report(tab, me, errors, TOKENS_OVERFLOW, CHOICES, 0, P)
        if FP8:
            pushed_float8(tab, x_ptr, tl.max(hit, axis=0), pid, num_tokens, parity, me, recv, scales, P, T, H,
                          ROW_BYTES, 1, BC // 128, 1)  # fmt: skip
        else:
            pushed_plain(tab, x_ptr, hit, t, num_tokens, parity, me, recv, P, T, H, ROW_BYTES, BC)
        tl.debug_barrier()
        for step in tl.static_range(1, P):
            counter_ptr = int_pointer(address_of(tab, (me + step) % P, counters + 4 * me))
            tl.atomic_add(counter_ptr, 1, sem="release", scope="sys")
        tl.atomic_add(int_pointer(address_of(tab, me, counters + 4 * me)), 1, sem="release", scope="gpu")
    if ROLE != PUSH:
        base = tl.load(tab + me)
        arrived = wait_for_all(tab, base, me, counters, (epoch + 1) * T, timeout_ns, errors, DISPATCH, P, THREADS)
        if pid == 0:
            for source in tl.static_range(P):
                from_ptr = int_pointer(base + header + (parity * P + source) * 16)
                map_epoch = tl.load(from_ptr + 1, mask=arrived, other=0, cache_modifier=".cg")
                tl.store(map_epochs_P_ptr + source, map_epoch)
        width = tl.where(arrived, H, 0)
        low = tl.load(first_slot_ptr + me)
        ids_ptr = int_pointer(base + ids + parity * (P * T * K * 4))
        weights_address = base + weights + parity * (P * T * K * 4)
        weights_ptr = weights_address.to(tl.pointer_type(tl.float32))
        n = tl.arange(0, NSEL)
        known = tl.where(width > 0, P * T * K, 0)
        slot = tl.load(ids_ptr + n, mask=n < known, other=-1, cache_modifier=".cg") - low
        slot = tl.where((slot >= 0) & (slot < num_slots), slot, num_slots)
        for e in range(pid, num_slots, tl.num_programs(0)):
            end = tl.sum((slot <= e).to(tl.int32), axis=0)
            tl.store(offs_ptr + e, tl.minimum(end, max_rows))
            if (e == num_slots - 1) & (end > max_rows):
                report(tab, me, errors, ROWS_OVERFLOW, DISPATCH, 0, P)
        for item in range(pid, P * T, tl.num_programs(0)):
            copy = pid * 0 + item
            here = numbered_rows(slot, ids_ptr, weights_ptr, row_ptr, copy_weight_ptr, copy, low, num_slots, max_rows,
                                 width, NSEL, K, KP)  # fmt: skip
            tl.debug_barrier()
            if here:
                place_copy(base, x_ptr, out_ptr, row_ptr, copy // T, copy % T, width, parity, me, recv, scales, P, T, K,
                           H, ROW_BYTES, BC, BC // 128, FP8)  # fmt: skip
        tick(epoch_ptr, arrived_ptr, epoch)
