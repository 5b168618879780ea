"""Kernels of the exchange layout: publish the choices of a rank, then sort the choices of all ranks by slot.

    P ranks   T tokens of a rank (capacity)   K choices   S slots of this rank   C = P*T copies, c = rank*T + token
    B blocks of BT tokens, numbered over all ranks; KP, SP: K and S rounded up to powers of two

    publish_choices   slots, weights -> ids, weights of every rank; hit bits
    count_choices     ids            -> counts[S, B], place[C, K], local slots, weights
    scan_counts       counts         -> base[S, B], offs[S]
    number_rows       base + place   -> row[C, K]

Rows are sorted by slot, then copy, then choice.
"""

import triton
import triton.language as tl

from eplb.runtime.kernels.signals_kernel import (
    BAD_SLOT,
    CHOICES,
    ROWS_OVERFLOW,
    TOKENS_OVERFLOW,
    address_of,
    int_pointer,
    publish,
    report,
    tick,
    wait,
)


@triton.jit
def ranks_hit(slot, first_slot_ptr, P: tl.constexpr):
    """[BT] int32 bit p: one of the slots [BT, KP] is on rank p."""
    hit = tl.max(slot, axis=1) * 0
    for peer in tl.static_range(P):
        low, high = tl.load(first_slot_ptr + peer), tl.load(first_slot_ptr + peer + 1)
        here = tl.max(((slot >= low) & (slot < high)).to(tl.int32), axis=1)
        hit = hit | (here << peer)
    return hit


@triton.jit
def written_choices(tab, slot_ptr, weight_ptr, hit_ptr, first_slot_ptr, num_tokens, t, parity, me, errors, ids, weights,
                    P: tl.constexpr, T: tl.constexpr, K: tl.constexpr, KP: tl.constexpr):  # fmt: skip
    """Write slots, weights and hit bits of the tokens t, -1 for tokens behind the last; the hit bits."""
    k = tl.arange(0, KP)
    at = t[:, None] * K + k[None, :]
    inside = (t < T)[:, None] & (k < K)[None, :]
    real = (t < num_tokens)[:, None] & inside
    slot = tl.load(slot_ptr + at, mask=real, other=-1).to(tl.int32)
    weight = tl.load(weight_ptr + at, mask=real, other=0.0)
    if tl.max(tl.max(slot, axis=1), axis=0) >= tl.load(first_slot_ptr + P):
        report(tab, me, errors, BAD_SLOT, CHOICES, 0, P)
    hit = ranks_hit(slot, first_slot_ptr, P)
    tl.store(hit_ptr + t, hit, mask=t < T)
    for peer in tl.static_range(P):
        half = parity * P + me
        ids_ptr = int_pointer(address_of(tab, peer, ids + half * (T * K * 4)))
        tl.store(ids_ptr + at, slot, mask=inside)
        weights_ptr = address_of(tab, peer, weights + half * (T * K * 4)).to(tl.pointer_type(tl.float32))
        tl.store(weights_ptr + at, weight, mask=inside)
    return hit


@triton.jit(do_not_specialize=["me"])
def publish_choices_kernel(
    tab,
    slot_ptr,  # [tokens, K] integers, -1 masked
    weight_ptr,  # [tokens, K] f32
    hit_ptr,  # [T] i32, out
    num_tokens_ptr,  # [1] i32
    map_epoch_ptr,  # [1] integer
    first_slot_ptr,  # [P + 1] i32
    totals_ptr,  # [S] i32, zeroed
    epoch_ptr,  # [1] i32
    me,
    errors,
    flags,
    header,
    ids,
    weights,
    num_slots,
    P: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    BT: tl.constexpr,
    SP: tl.constexpr,
):
    """Write the choices of BT tokens to every rank. Grid: T / BT."""
    block = tl.program_id(0)
    epoch = tl.load(epoch_ptr)
    parity = epoch & 1
    num_tokens = tl.load(num_tokens_ptr)
    map_epoch = tl.load(map_epoch_ptr).to(tl.int32)
    t = block * BT + tl.arange(0, BT)
    written_choices(tab, slot_ptr, weight_ptr, hit_ptr, first_slot_ptr, num_tokens, t, parity, me, errors, ids, weights,
                    P, T, K, KP)  # fmt: skip
    if block == 0:
        e = tl.arange(0, SP)
        tl.store(totals_ptr + e, e * 0, mask=e < num_slots)
        if num_tokens > T:
            report(tab, me, errors, TOKENS_OVERFLOW, CHOICES, 0, P)
        for peer in tl.static_range(P):
            header_ptr = int_pointer(address_of(tab, peer, header + (parity * P + me) * 16))
            tl.store(header_ptr, tl.minimum(num_tokens, T))
            tl.store(header_ptr + 1, map_epoch)
    tl.debug_barrier()
    for peer in tl.static_range(P):
        publish(tl.load(tab + peer), flags, me * T + block, epoch + 1)


@triton.jit(do_not_specialize=["me"])
def count_choices_kernel(
    tab,
    slot_ptr,  # [C, K] i32, out: local slot, -1 elsewhere
    weight_ptr,  # [C, K] f32, out
    place_ptr,  # [C, K] i32, out: earlier choices of the block with the same slot
    counts_ptr,  # [S, B] i32, out
    totals_ptr,  # [S] i32, added
    num_tokens_ptr,  # [P] i32, out: tokens of each rank
    map_epochs_ptr,  # [P] i32, out
    first_slot_ptr,
    epoch_ptr,
    arrived_ptr,
    me,
    errors,
    flags,
    header,
    ids,
    weights,
    num_slots,
    timeout_ns,
    P: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    BT: tl.constexpr,
    SP: tl.constexpr,
    CHUNK: tl.constexpr,
    THREADS: tl.constexpr,
):
    """Count the choices of one block by slot. Grid: B."""
    block = tl.program_id(0)
    blocks = (T + BT - 1) // BT
    epoch = tl.load(epoch_ptr)
    source, inner = block // blocks, block % blocks
    own = tl.load(tab + me)
    arrived = wait(tab, own, me, flags, source * T + inner, epoch + 1, timeout_ns, errors, CHOICES, source, P, THREADS)
    half = (epoch & 1) * P + source
    low, high = tl.load(first_slot_ptr + me), tl.load(first_slot_ptr + me + 1)
    ids_ptr = int_pointer(address_of(tab, me, ids + half * (T * K * 4)))
    weights_ptr = address_of(tab, me, weights + half * (T * K * 4)).to(tl.pointer_type(tl.float32))
    n = tl.arange(0, BT * KP)
    t, k = inner * BT + n // KP, n % KP
    inside = (t < T) & (k < K)
    known = tl.where(arrived, T, 0)
    present = (t < known) & (k < K)
    slot = tl.load(ids_ptr + t * K + k, mask=present, other=-1, cache_modifier=".cg")
    local = tl.where((slot >= low) & (slot < high), slot - low, -1)
    place, total = n * 0, n * 0
    for start in range(0, BT * KP, CHUNK):
        m = start + tl.arange(0, CHUNK)
        tm, km = inner * BT + m // KP, m % KP
        other = tl.load(ids_ptr + tm * K + km, mask=(tm < known) & (km < K), other=-1, cache_modifier=".cg")
        same = (local[:, None] == (other - low)[None, :]) & (local >= 0)[:, None]
        total += tl.sum(same.to(tl.int32), axis=1)
        place += tl.sum((same & (m[None, :] < n[:, None])).to(tl.int32), axis=1)
    at = (source * T + t) * K + k
    tl.store(slot_ptr + at, local, mask=inside)
    tl.store(place_ptr + at, place, mask=inside)
    weight = tl.load(weights_ptr + t * K + k, mask=present, other=0.0, cache_modifier=".cg")
    tl.store(weight_ptr + at, weight, mask=inside)
    e = tl.arange(0, SP)
    tl.store(counts_ptr + e * (P * blocks) + block, e * 0, mask=e < num_slots)
    tl.debug_barrier()
    first = inside & (local >= 0) & (place == 0)
    tl.store(counts_ptr + local * (P * blocks) + block, total, mask=first)
    tl.atomic_add(totals_ptr + local, total, mask=first, sem="relaxed")
    if inner == 0:
        header_ptr = int_pointer(address_of(tab, me, header + half * 16))
        tl.store(num_tokens_ptr + source, tl.load(header_ptr, mask=arrived, other=0, cache_modifier=".cg"))
        tl.store(map_epochs_ptr + source, tl.load(header_ptr + 1, mask=arrived, other=0, cache_modifier=".cg"))
    tick(epoch_ptr, arrived_ptr, epoch)


@triton.jit(do_not_specialize=["me"])
def scan_counts_kernel(
    tab,
    counts_ptr,  # [S, B] i32
    totals_ptr,  # [S] i32
    base_ptr,  # [S, B] i32, out: first row of the choices of a block with this slot
    offs_ptr,  # [S] i32, out: end of the rows of a slot
    me,
    errors,
    num_slots,
    num_blocks,
    max_rows,
    P: tl.constexpr,
    SP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Sum counts over slots, then blocks. Grid: S."""
    slot = tl.program_id(0)
    e = tl.arange(0, SP)
    totals = tl.load(totals_ptr + e, mask=e < num_slots, other=0)
    first = tl.sum(tl.where(e < slot, totals, 0), axis=0)
    end = tl.sum(tl.where(e <= slot, totals, 0), axis=0)
    tl.store(offs_ptr + slot, tl.minimum(end, max_rows))
    if (slot == num_slots - 1) & (end > max_rows):
        report(tab, me, errors, ROWS_OVERFLOW, CHOICES, 0, P)
    for start in range(0, num_blocks, CHUNK):
        b = start + tl.arange(0, CHUNK)
        counts = tl.load(counts_ptr + slot * num_blocks + b, mask=b < num_blocks, other=0)
        tl.store(base_ptr + slot * num_blocks + b, first + tl.cumsum(counts, axis=0) - counts, mask=b < num_blocks)
        first += tl.sum(counts, axis=0)


@triton.jit
def number_rows_kernel(
    slot_ptr,  # [C, K] i32 local slots
    place_ptr,  # [C, K] i32
    base_ptr,  # [S, B] i32
    row_ptr,  # [C, K] i32, out: -1 elsewhere or beyond max_rows
    num_choices,
    num_blocks,
    max_rows,
    T: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Row of each choice. Grid: C*K / CHUNK."""
    i = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    slot = tl.load(slot_ptr + i, mask=i < num_choices, other=-1)
    copy = i // K
    block = copy // T * ((T + BT - 1) // BT) + copy % T // BT
    base = tl.load(base_ptr + slot * num_blocks + block, mask=slot >= 0, other=0)
    row = base + tl.load(place_ptr + i, mask=slot >= 0, other=0)
    tl.store(row_ptr + i, tl.where((slot >= 0) & (row < max_rows), row, -1), mask=i < num_choices)
