"""Kernel of the router's choice: softmax over the K largest logits of a token.

T tokens   E experts   K choices; EP, KP: E and K rounded up to powers of two   BT tokens of a program
"""

import triton
import triton.language as tl


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
    left = tl.load(logits_ptr + t[:, None] * num_experts + e[None, :], mask=inside, other=float("-inf"))
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
