"""Kernels of the rule `online`: split the counts of a batch over replicas so that rank loads are nearly equal.

    E logical experts   X most replicas of an expert   P slots   R ranks; RP, XP: R and X rounded up to powers of two

    fill_ranks      counts [E], in order of falling counts     -> tokens[E, R] of each expert on each rank
    assign_sources  tokens[E, R], counts[R, E]                 -> quota[R, E, X]

The arithmetic is that of `split_counts` and `source_quotas`, step by step: sums are of integers in float64, which are
exact, and the one quotient is rounded as IEEE demands, so host and device agree in every token.
"""

import triton
import triton.language as tl


@triton.jit
def slot_ranks(log2phy_ptr, rank_of_slot_ptr, expert, x, X):
    """[XP] rank of each replica of an expert, -1 behind the last."""
    slot = tl.load(log2phy_ptr + expert * X + x, mask=x < X, other=-1)
    return tl.load(rank_of_slot_ptr + slot, mask=slot >= 0, other=-1).to(tl.int32)


@triton.jit
def filled(tokens, load, is_open):
    """[RP] int64 tokens of each open rank when `tokens` fill up the ranks that carry `load`; largest remainder."""
    base = load.to(tl.float64)
    above = tl.where(is_open[None, :], base[:, None] - base[None, :], 0.0)
    to_level = tl.sum(tl.where(above > 0, above, 0.0), axis=1)  # tokens that raise all lower ranks to this one
    is_filled = is_open & (to_level <= tokens.to(tl.float64))
    num_filled = tl.sum(is_filled.to(tl.int32), axis=0)
    level = (tokens.to(tl.float64) + tl.sum(tl.where(is_filled, base, 0.0), axis=0)) / num_filled.to(tl.float64)
    share = tl.where(is_open & (level > base), level - base, 0.0)
    whole = tl.floor(share + 1e-9)
    rest = tl.where(is_open, share - whole, -2.0)
    r = tl.arange(0, load.shape[0])
    ahead = (rest[None, :] > rest[:, None]) | ((rest[None, :] == rest[:, None]) & (r[None, :] < r[:, None]))
    place = tl.sum(ahead.to(tl.int32), axis=1)
    left = tokens - tl.sum(whole.to(tl.int64), axis=0)
    return whole.to(tl.int64) + (is_open & (place < left)).to(tl.int64)


@triton.jit
def fill_ranks_kernel(
    order_ptr,  # [E] i64 experts, replicated ones with tokens first, by falling counts
    num_ptr,  # [1] i64 of them
    total_ptr,  # [E] i64 tokens
    load_ptr,  # [R] i64 tokens of the experts with one replica
    log2phy_ptr,  # [E, X] i64
    rank_of_slot_ptr,  # [P] i64
    tokens_ptr,  # [E, R] i64, zeros, out
    X,
    R,
    SWEEPS: tl.constexpr,
    RP: tl.constexpr,
    XP: tl.constexpr,
):
    """One program: experts are filled in one after the other, each on what the others left."""
    r, x = tl.arange(0, RP), tl.arange(0, XP)
    load = tl.load(load_ptr + r, mask=r < R, other=0)
    num = tl.load(num_ptr)
    for _ in range(SWEEPS):
        for i in range(num):
            expert = tl.load(order_ptr + i)
            ranks = slot_ranks(log2phy_ptr, rank_of_slot_ptr, expert, x, X)
            is_open = tl.max((ranks[:, None] == r[None, :]).to(tl.int32), axis=0) > 0
            load -= tl.load(tokens_ptr + expert * R + r, mask=r < R, other=0)
            own = filled(tl.load(total_ptr + expert), load, is_open)
            load += own
            tl.debug_barrier()
            tl.store(tokens_ptr + expert * R + r, own, mask=r < R)
            tl.debug_barrier()


@triton.jit
def assign_sources_kernel(
    counts_ptr,  # [R, E] i64
    count_ptr,  # [E] i64 replicas
    tokens_ptr,  # [E, R] i64
    log2phy_ptr,  # [E, X] i64
    rank_of_slot_ptr,  # [P] i64
    quota_ptr,  # [R, E, X] i64, out
    E,
    X,
    R,
    RP: tl.constexpr,
    XP: tl.constexpr,
):
    """Give each source rank its share of each replica, its own replica first. Grid: E."""
    expert = tl.program_id(0)
    r, x = tl.arange(0, RP), tl.arange(0, XP)
    waiting = tl.load(counts_ptr + r * E + expert, mask=r < R, other=0)
    ranks = slot_ranks(log2phy_ptr, rank_of_slot_ptr, expert, x, X)
    exists = ranks >= 0
    is_twin = (ranks[:, None] == ranks[None, :]) & exists[:, None]
    num_twins = tl.maximum(tl.sum(is_twin.to(tl.int64), axis=1), 1)
    twin = tl.sum((is_twin & (x[None, :] < x[:, None])).to(tl.int64), axis=1)
    on_rank = tl.load(tokens_ptr + expert * R + ranks, mask=exists, other=0)
    room = on_rank // num_twins + (twin < on_rank % num_twins).to(tl.int64)
    quota = tl.zeros([RP, XP], dtype=tl.int64)
    for replica in range(X):
        is_own = r == tl.sum(tl.where(x == replica, ranks, 0), axis=0)
        free = tl.sum(tl.where(x == replica, room, 0), axis=0)
        local = tl.where(is_own, tl.minimum(waiting, free), 0)
        waiting -= local
        room = tl.where(x == replica, free - tl.sum(local, axis=0), room)
        quota += tl.where((x == replica)[None, :], local[:, None], 0)
    end_r, end_x = tl.cumsum(waiting, axis=0), tl.cumsum(room, axis=0)
    first = tl.maximum((end_r - waiting)[:, None], (end_x - room)[None, :])
    quota += tl.maximum(tl.minimum(end_r[:, None], end_x[None, :]) - first, 0)
    if tl.load(count_ptr + expert) < 2:
        alone = tl.load(counts_ptr + r * E + expert, mask=r < R, other=0)
        quota = tl.where((x == 0)[None, :], alone[:, None], 0)
    at = (r[:, None] * E + expert) * X + x[None, :]
    tl.store(quota_ptr + at, quota, mask=(r < R)[:, None] & (x < X)[None, :])
