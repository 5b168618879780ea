"""Launches the router's choice: one kernel instead of softmax, top-k and division, for captured graphs."""

from torch import Tensor

from eplb.runtime.kernels.launch import power_of_two


def softmax_top_k_on_device(logits_TE: Tensor, expert_ids_TK: Tensor, weight_TK: Tensor) -> None:
    """Write the K most probable experts and their normalised probabilities.

    Parameters
    ----------
    logits_TE
        [T, E] float32, contiguous.
    expert_ids_TK
        [T, K] int64, written.
    weight_TK
        [T, K] float32, written.
    """
    from eplb.runtime.kernels.top_k_kernel import top_k_kernel

    (num_tokens, num_experts), top_k = logits_TE.shape, expert_ids_TK.shape[1]
    block = 4
    top_k_kernel[(max(-(-num_tokens // block), 1),)](
        logits_TE,
        expert_ids_TK,
        weight_TK,
        num_tokens,
        num_experts,
        K=top_k,
        KP=power_of_two(top_k),
        EP=power_of_two(num_experts),
        BT=block,
        num_warps=4,
    )
