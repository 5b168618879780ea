"""Kernels of the router's choice: softmax over the K largest logits of a token; sigmoid scores with a group limit.

T tokens   E experts   G groups of experts   K choices   BT tokens of a program
EP, GP, KP: E, G and K rounded up to powers of two
"""

import triton
import triton.language as tl


@triton.jit
def ordered(logits):
    """Logits that can be compared: a NaN becomes the least number, so that a token of NaN still chooses K experts."""
    return tl.where(logits == logits, logits, -3.4e38)


@triton.jit
def top_k_kernel(
    logits_ptr,  # [T, E] f32
    expert_ptr,  # [T, K] i64, out, by descending logit; of equal logits the lower expert first
    weight_ptr,  # [T, K] f32, out, sums to 1
    num_tokens,
    num_experts,
    K: tl.constexpr,
    KP: tl.constexpr,
    EP: tl.constexpr,
    BT: tl.constexpr,
):
    """Grid: T / BT."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    e, column = tl.arange(0, EP), tl.arange(0, KP)
    inside = (t < num_tokens)[:, None] & (e < num_experts)[None, :]
    left = ordered(tl.load(logits_ptr + t[:, None] * num_experts + e[None, :], mask=inside, other=float("-inf")))
    largest = tl.max(left, axis=1)
    weight = tl.zeros([BT, KP], dtype=tl.float32)
    for k in tl.static_range(K):
        best = tl.max(left, axis=1)
        expert = tl.min(tl.where(left == best[:, None], e[None, :], EP), axis=1)
        tl.store(expert_ptr + t * K + k, expert.to(tl.int64), mask=t < num_tokens)
        weight = tl.where(column[None, :] == k, tl.exp(best - largest)[:, None], weight)
        left = tl.where(e[None, :] == expert[:, None], float("-inf"), left)
    weight = weight / tl.sum(weight, axis=1)[:, None]
    at = t[:, None] * K + column[None, :]
    tl.store(weight_ptr + at, weight, mask=(t < num_tokens)[:, None] & (column < K)[None, :])


@triton.jit
def best_groups(scores, G: tl.constexpr, GP: tl.constexpr, EG: tl.constexpr, TOP_G: tl.constexpr):
    """[BT, GP] whether a group is one of the TOP_G with the largest sums of two scores [BT, GP, EG]; ties to the first.

    A group of one expert has the score of that expert.
    """
    i = tl.arange(0, EG)[None, None, :]
    first = tl.max(scores, axis=2)
    where_first = tl.min(tl.where(scores == first[:, :, None], i, EG), axis=2)
    second = tl.max(tl.where(i == where_first[:, :, None], float("-inf"), scores), axis=2)
    g = tl.arange(0, GP)
    left = tl.where(g[None, :] < G, first + tl.where(second > float("-inf"), second, 0.0), float("-inf"))
    is_open = tl.zeros(left.shape, dtype=tl.int32)
    for _ in tl.static_range(TOP_G):
        best = tl.max(left, axis=1)
        group = tl.min(tl.where(left == best[:, None], g[None, :], GP), axis=1)
        is_open = tl.where(g[None, :] == group[:, None], 1, is_open)
        left = tl.where(g[None, :] == group[:, None], float("-inf"), left)
    return is_open > 0


@triton.jit
def group_top_k_kernel(
    logits_ptr,  # [T, E] f32
    bias_ptr,  # [E] f32, added to the scores for the choice alone
    expert_ptr,  # [T, K] i64, out, by descending biased score; of equal scores the lower expert first
    weight_ptr,  # [T, K] f32, out: unbiased scores over their sum, times `scale`
    num_tokens,
    scale,
    E: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    G: tl.constexpr,
    GP: tl.constexpr,
    EG: tl.constexpr,
    TOP_G: tl.constexpr,
    BT: tl.constexpr,
):
    """Sigmoid scores, group limit, top-k. EG: experts of a group, rounded up to a power of two. Grid: T / BT."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    column = tl.arange(0, KP)
    g, i = tl.arange(0, GP)[None, :, None], tl.arange(0, EG)[None, None, :]
    e = g * (E // G) + i
    exists = (g < G) & (i < E // G)
    logits = tl.load(logits_ptr + t[:, None, None] * E + e, mask=(t < num_tokens)[:, None, None] & exists, other=0.0)
    score = 1.0 / (1.0 + tl.exp(-ordered(logits)))
    biased = tl.where(exists, score + tl.load(bias_ptr + e, mask=exists, other=0.0), float("-inf"))
    is_open = best_groups(biased, G, GP, EG, TOP_G)
    left = tl.reshape(tl.where(is_open[:, :, None], biased, float("-inf")), [BT, GP * EG])
    flat_score = tl.reshape(score, [BT, GP * EG])
    flat_e = tl.reshape(e + t[:, None, None] * 0, [BT, GP * EG])
    weight = tl.zeros([BT, KP], dtype=tl.float32)
    for k in tl.static_range(K):
        best = tl.max(left, axis=1)
        expert = tl.min(tl.where((left == best[:, None]) & (left > float("-inf")), flat_e, E), axis=1)
        is_chosen = (flat_e == expert[:, None]) & (left > float("-inf"))
        tl.store(expert_ptr + t * K + k, expert.to(tl.int64), mask=t < num_tokens)
        chosen = tl.sum(tl.where(is_chosen, flat_score, 0.0), axis=1)
        weight = tl.where(column[None, :] == k, chosen[:, None], weight)
        left = tl.where(is_chosen, float("-inf"), left)
    weight = weight / tl.maximum(tl.sum(weight, axis=1), 1.17549435e-38)[:, None] * scale
    at = t[:, None] * K + column[None, :]
    tl.store(weight_ptr + at, weight, mask=(t < num_tokens)[:, None] & (column < K)[None, :])
