"""Kernel of the replica choice: the slot of each selection, by the tables of a layer, without a wait of the host.

    T tokens   K choices   N = T*K selections   E logical experts   X most replicas   P slots   R ranks
    position = K * index of the token in the batch of its rank + k

The hash and the rules are those of `choose_slots`, bit by bit. An expert without a replica gets the slot P, which the
exchange reports.
"""

import triton
import triton.language as tl

EVEN = tl.constexpr(0)
WEIGHTED = tl.constexpr(1)
LOCAL_FIRST = tl.constexpr(2)
FIRST_ON_NODE = tl.constexpr(3)
BY_ROW = tl.constexpr(4)
BY_TOKEN_HASH = tl.constexpr(5)
BY_RANK = tl.constexpr(6)
ROUND_ROBIN = tl.constexpr(7)
TURN = tl.constexpr(1024)
"""Selections of a rank that are numbered together under ROUND_ROBIN."""


@triton.jit
def mixed(x):
    """Murmur3's finaliser of uint32 numbers."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def share_of_hash(hashed, count):
    """A number below `count`, by the upper bits of the hash."""
    return ((hashed.to(tl.int64) * count) >> 32).to(tl.int32)


@triton.jit
def near_slot(log2phy_ptr, rank_of_slot_ptr, node_of_rank_ptr, expert, rank, chosen, hashed, X, RULE: tl.constexpr):
    """The first replica on the rank, otherwise by hash among those on its node, otherwise among all.

    FIRST_ON_NODE takes the first replica on the node, unless all are on it.
    """
    node = tl.load(node_of_rank_ptr + rank, mask=chosen, other=-1)
    here, on_node, existing = expert * 0 - 1, expert * 0, expert * 0
    for x in range(X):
        slot = tl.load(log2phy_ptr + expert * X + x, mask=chosen, other=-1)
        exists = slot >= 0
        slot_rank = tl.load(rank_of_slot_ptr + slot, mask=exists, other=-1)
        near = exists & (tl.load(node_of_rank_ptr + slot_rank, mask=exists, other=-2) == node)
        here = tl.where((here < 0) & exists & (slot_rank == rank), slot, here)
        on_node += near.to(tl.int64)
        existing += exists.to(tl.int64)
    if RULE == FIRST_ON_NODE:
        on_node = tl.where(on_node < existing, on_node, 0)
    wanted = share_of_hash(hashed, tl.where(on_node > 0, on_node, existing))
    if RULE == FIRST_ON_NODE:
        wanted = tl.where(on_node > 0, 0, wanted)
    found = here
    for candidate in range(X):
        slot_c = tl.load(log2phy_ptr + expert * X + candidate, mask=chosen, other=-1)
        exists_c = slot_c >= 0
        rank_c = tl.load(rank_of_slot_ptr + slot_c, mask=exists_c, other=-1)
        near_c = exists_c & (tl.load(node_of_rank_ptr + rank_c, mask=exists_c, other=-2) == node)
        taken = tl.where(on_node > 0, near_c, exists_c)
        found = tl.where((found < 0) & taken & (wanted == 0), slot_c, found)
        wanted = wanted - taken.to(tl.int32)
    return found


@triton.jit
def place_in_turn(expert_ptr, rank_ptr, index_ptr, first, n, expert, rank, turn, num_selections, K: tl.constexpr,
                  BLOCK: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
    """[BLOCK] earlier selections with the same expert in the same turn of the same rank; they are consecutive."""
    place = n * 0
    for back in range(0, TURN + BLOCK, CHUNK):
        m = first + (BLOCK - CHUNK) - back + tl.arange(0, CHUNK)
        real = (m >= 0) & (m < num_selections)
        expert_m = tl.load(expert_ptr + m, mask=real, other=-1)
        rank_m = tl.load(rank_ptr + m // K, mask=real, other=-1)
        turn_m = (tl.load(index_ptr + m // K, mask=real, other=0) * K + m % K) // TURN
        same = (expert_m[None, :] == expert[:, None]) & (rank_m[None, :] == rank[:, None])
        same = same & (turn_m[None, :] == turn[:, None]) & (m[None, :] < n[:, None])
        place += tl.sum(same.to(tl.int32), axis=1)
    return place


@triton.jit
def choose_slots_kernel(
    expert_ptr,  # [T, K] i64, -1 masked
    slot_ptr,  # [T, K] i64, out
    rank_ptr,  # [T] i64 source rank
    index_ptr,  # [T] i64 position in the batch of the rank
    log2phy_ptr,  # [E, X] i64
    count_ptr,  # [E] i64
    bound_ptr,  # [E, X] i64
    rank_of_slot_ptr,  # [P] i64
    node_of_rank_ptr,  # [R] i64
    rank_slot_ptr,  # [R, E] i64, under BY_RANK
    epoch_ptr,  # [1] i64
    num_selections,
    num_slots,
    num_experts,
    X,
    K: tl.constexpr,
    RULE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid: N / BLOCK."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < num_selections
    expert = tl.load(expert_ptr + n, mask=inside, other=-1)
    chosen = inside & (expert >= 0) & (expert < num_experts)
    rank = tl.load(rank_ptr + n // K, mask=inside, other=0)
    index = tl.load(index_ptr + n // K, mask=inside, other=0)
    epoch = tl.load(epoch_ptr).to(tl.uint32)
    seed = index.to(tl.uint32) * 0x9E3779B1 + rank.to(tl.uint32) * 0x85EBCA77 + epoch * 0xC2B2AE3D
    hashed = mixed(mixed(seed) + (n % K).to(tl.uint32) * 0x27D4EB2F)
    count = tl.load(count_ptr + expert, mask=chosen, other=0)
    if (RULE == LOCAL_FIRST) | (RULE == FIRST_ON_NODE):
        slot = near_slot(log2phy_ptr, rank_of_slot_ptr, node_of_rank_ptr, expert, rank, chosen, hashed, X, RULE)
    elif RULE == BY_RANK:
        slot = tl.load(rank_slot_ptr + rank * num_experts + expert, mask=chosen, other=-1)
    else:
        some = tl.maximum(count, 1)
        if RULE == EVEN:
            replica = share_of_hash(hashed, count).to(tl.int64)
        elif RULE == WEIGHTED:
            replica = count * 0
            for x in range(X):
                bound = tl.load(bound_ptr + expert * X + x, mask=chosen, other=0)
                replica += (hashed.to(tl.int64) >= bound).to(tl.int64)
        elif RULE == BY_ROW:
            replica = index % some
        elif RULE == BY_TOKEN_HASH:
            replica = (index.to(tl.uint32) * 0x9E3779B9).to(tl.int64) % some
        else:
            turn = (index * K + n % K) // TURN
            place = place_in_turn(expert_ptr, rank_ptr, index_ptr, tl.program_id(0) * BLOCK, n, expert, rank, turn,
                                  num_selections, K, BLOCK, CHUNK)  # fmt: skip
            replica = (place + turn + rank) % some
        slot = tl.load(log2phy_ptr + expert * X + replica, mask=chosen & (count > 0), other=-1)
    slot = tl.where(expert >= 0, tl.where(count > 0, slot, num_slots), -1)
    tl.store(slot_ptr + n, slot, mask=inside)
