"""Tiny random models of the families that the recorder must know, their routers recomputed, and a plain model.

The oracle takes the hidden states that reach the MoE block and the router's weights, and nothing of what transformers
computes from them: it calls this project's own gates, or spells the choice out.
"""

import torch
from torch import Tensor

from eplb.runtime.layer.gate import GroupLimit, sigmoid_group_top_k
from eplb_traces import ModelShape

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MLA = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}


def build(family: str):
    """A model of the family in eval mode, its weights larger than usual so that choices are far from ties."""
    import transformers as hf

    qwen = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 8}
    configs = {
        "mixtral": lambda: hf.MixtralConfig(**SIZES, num_local_experts=6, num_experts_per_tok=2),
        "qwen2_moe": lambda: hf.Qwen2MoeConfig(
            **SIZES, **qwen, shared_expert_intermediate_size=8, mlp_only_layers=[1]
        ),
        "qwen3_moe": lambda: hf.Qwen3MoeConfig(**SIZES, **qwen, head_dim=8),
        "olmoe": lambda: hf.OlmoeConfig(**SIZES, num_experts=8, num_experts_per_tok=4),
        "gpt_oss": lambda: hf.GptOssConfig(
            **SIZES, num_local_experts=8, num_experts_per_tok=2, head_dim=8, layer_types=["full_attention"] * 3
        ),
        "deepseek_v2": lambda: hf.DeepseekV2Config(
            **SIZES, **MLA, n_routed_experts=8, num_experts_per_tok=2, n_group=4, topk_group=2, n_shared_experts=1,
            topk_method="group_limited_greedy", first_k_dense_replace=1, moe_intermediate_size=8,
        ),
        "deepseek_v3": lambda: hf.DeepseekV3Config(
            **SIZES, **MLA, n_routed_experts=16, num_experts_per_tok=4, n_group=4, topk_group=2, n_shared_experts=1,
            first_k_dense_replace=1, moe_intermediate_size=8,
        ),
    }  # fmt: skip
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(configs[family]()).eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(("gate.weight", "router.weight", "router.bias", "e_score_correction_bias")):
                tensor.normal_(std=0.5)
    return model


FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v2", "deepseek_v3")


def recomputed(family: str, router, hidden: Tensor, top_k: int) -> Tensor:
    """[T, K] sorted ids, chosen anew from the hidden states [.., H] that reached the block."""
    x = hidden.reshape(-1, hidden.shape[-1]).double()
    logits = x @ router.weight.double().T
    if family == "gpt_oss":
        logits = logits + router.bias.double()
    if family == "deepseek_v3":
        limit = GroupLimit(num_groups=4, top_k_groups=2)
        bias = router.e_score_correction_bias
        return sigmoid_group_top_k(logits, bias, top_k, limit).expert_ids_TK.sort(dim=1).values
    if family == "deepseek_v2":  # the two of four groups with the highest single score stay open
        best_of_group = logits.reshape(-1, 4, 2).amax(dim=2)
        worst_open = best_of_group.sort(dim=1, descending=True).values[:, 1:2]
        is_open = (best_of_group >= worst_open).repeat_interleave(2, dim=1)
        logits = logits.masked_fill(~is_open, -torch.inf)
    return logits.argsort(dim=1, descending=True)[:, :top_k].sort(dim=1).values


class PlainRouter(torch.nn.Module):
    """Logits, as routers before transformers 5 gave them; or what `output` makes of them."""

    def __init__(self, output):
        super().__init__()
        self.linear = torch.nn.Linear(6, 5, bias=False)
        self.output = output

    def forward(self, x):
        return self.output(self.linear(x))


class PlainModel(torch.nn.Module):
    """Two layers whose routers the recorder would not find."""

    def __init__(self, output=lambda logits: logits):
        super().__init__()
        self.routers = torch.nn.ModuleList([PlainRouter(output) for _ in range(2)])

    def forward(self, hidden, attention_mask=None, skip=(), past_key_values=None):
        for index, router in enumerate(self.routers):
            if index not in skip:
                router(hidden)
        return hidden


NAMES = {3: "routers.0", 7: "routers.1"}
SHAPE = ModelShape(2, 5, 2)
