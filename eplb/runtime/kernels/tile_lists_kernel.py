"""Divides each slot's rows into tiles of a few heights, on the device.

S slots. A slot of n rows, q = n / BIG, r = n % BIG, becomes

    q tiles of BIG rows              the last one BIG + TAIL high if 0 < r <= TAIL
    one of SMALL                     if q = 0 and 0 < r <= SMALL
    one of MEDIUM                    if that holds r and neither of the above did
    one more of BIG                  for any other r > 0

so that each weight tile is read about once per BIG rows and little of a tile is padding.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_slots", "capacity"])
def tile_lists_kernel(
    ends_ptr,  # [S] int32 end of each slot's rows
    tiles_ptr,  # [4, capacity, 4] int32 (slot, first row, end of the slot's rows, unused)
    counts_ptr,  # [4] int32 tiles of each list: BIG, BIG + TAIL, MEDIUM, SMALL
    num_slots,
    capacity,
    SLOTS: tl.constexpr,  # a power of two >= S
    BIG: tl.constexpr,
    TAIL: tl.constexpr,
    MEDIUM: tl.constexpr,
    SMALL: tl.constexpr,
):
    """One block."""
    slot = tl.arange(0, SLOTS)
    end = tl.load(ends_ptr + slot, mask=slot < num_slots, other=0)
    first = tl.load(ends_ptr + slot - 1, mask=(slot > 0) & (slot < num_slots), other=0)
    rows = end - first
    rest = rows % BIG
    full = rows // BIG
    tall = ((full > 0) & (rest > 0) & (rest <= TAIL)).to(tl.int32)
    small = ((full == 0) & (rest > 0) & (rest <= SMALL)).to(tl.int32)
    medium = ((rest > 0) & (rest <= MEDIUM) & (tall + small == 0)).to(tl.int32)
    big = full + (rest > 0).to(tl.int32) - 2 * tall - small - medium

    place = tl.cumsum(big, 0) - big
    for number in range(0, tl.max(big, 0)):
        _store_tiles(tiles_ptr, place + number, slot, first + number * BIG, end, number < big)
    place = tl.cumsum(tall, 0) - tall
    _store_tiles(tiles_ptr + capacity * 4, place, slot, first + (full - 1) * BIG, end, tall > 0)
    place = tl.cumsum(medium, 0) - medium
    _store_tiles(tiles_ptr + capacity * 8, place, slot, first + full * BIG, end, medium > 0)
    place = tl.cumsum(small, 0) - small
    _store_tiles(tiles_ptr + capacity * 12, place, slot, first, end, small > 0)
    tl.store(counts_ptr, tl.sum(big, 0))
    tl.store(counts_ptr + 1, tl.sum(tall, 0))
    tl.store(counts_ptr + 2, tl.sum(medium, 0))
    tl.store(counts_ptr + 3, tl.sum(small, 0))


@triton.jit
def _store_tiles(list_ptr, place, slot, first, end, mask):
    tl.store(list_ptr + place * 4, slot, mask=mask)
    tl.store(list_ptr + place * 4 + 1, first, mask=mask)
    tl.store(list_ptr + place * 4 + 2, end, mask=mask)
