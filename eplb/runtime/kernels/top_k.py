"""Launches the router's choice in one kernel, for captured graphs."""

from torch import Tensor

from eplb.runtime.kernels.launch import power_of_two
from eplb.runtime.layer.gate import GroupLimit, check_groups

_BLOCK = 4
"""Tokens of a program."""


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
    top_k_kernel[(max(-(-num_tokens // _BLOCK), 1),)](
        logits_TE,
        expert_ids_TK,
        weight_TK,
        num_tokens,
        num_experts,
        K=top_k,
        KP=power_of_two(top_k),
        EP=power_of_two(num_experts),
        BT=_BLOCK,
        num_warps=4,
    )


def sigmoid_group_top_k_on_device(  # noqa: PLR0913  # those of `sigmoid_group_top_k`, and what is written
    logits_TE: Tensor, bias_E: Tensor, expert_ids_TK: Tensor, weight_TK: Tensor, *, limit: GroupLimit, scale: float
) -> None:
    """Write DeepSeek-V3's choice, as `sigmoid_group_top_k` makes it, in one kernel.

    Parameters
    ----------
    logits_TE
        [T, E] float32, contiguous.
    bias_E
        [E] float32, contiguous.
    expert_ids_TK
        [T, K] int64, written.
    weight_TK
        [T, K] float32, written.
    limit
        The groups of experts.
    scale
        Factor of the weights.

    Raises
    ------
    InputError
        If the groups do not divide the experts, or the chosen groups hold fewer than K experts.
    """
    from eplb.runtime.kernels.top_k_kernel import group_top_k_kernel

    (num_tokens, num_experts), top_k = logits_TE.shape, expert_ids_TK.shape[1]
    check_groups(num_experts, top_k, limit)
    group_top_k_kernel[(max(-(-num_tokens // _BLOCK), 1),)](
        logits_TE,
        bias_E,
        expert_ids_TK,
        weight_TK,
        num_tokens,
        scale,
        E=num_experts,
        K=top_k,
        KP=power_of_two(top_k),
        G=limit.num_groups,
        GP=power_of_two(limit.num_groups),
        EG=power_of_two(num_experts // limit.num_groups),
        TOP_G=limit.top_k_groups,
        BT=_BLOCK,
        num_warps=4,
    )
