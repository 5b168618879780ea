"""Records which experts a small random Hugging Face model chooses, and shows how uneven the load is.

Needs the extra `record`. Run it anywhere: python examples/record_and_look.py [TRACE.parquet]
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

import eplb
from eplb_traces.coactivation import generalising_pairs
from eplb_traces.recorder import record


def small_model() -> transformers.PreTrainedModel:
    """A random MoE model of 2 layers with 16 experts, top-4."""
    torch.manual_seed(0)
    config = transformers.OlmoeConfig(
        vocab_size=256, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_experts=16, num_experts_per_tok=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def main(out: Path) -> None:
    """Record prompts, prefill and decode, then plan for what was recorded."""
    model, prompts = small_model(), torch.randint(3, 256, (8, 24), generator=torch.Generator().manual_seed(1))
    with record(model, out), torch.no_grad():
        model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=16, do_sample=False)

    trace = eplb.read_trace(out)
    load = trace.load()
    print(f"{trace.num_tokens} tokens, {load.num_layers} layers of {load.num_experts} experts")
    for layer, tokens in enumerate(load.total):
        hottest = np.argsort(-tokens)[:3]
        print(
            f"layer {layer}: the hottest experts are {hottest.tolist()}, {tokens.max() / tokens.mean():.1f} x the mean"
        )
    for pair in generalising_pairs(trace, layer=0, count=2):
        print(f"experts {pair.expert} and {pair.other}: lift {pair.lift:.1f}, later {pair.held_out_lift:.1f}")

    plan = eplb.plan(load, eplb.Topology.for_experts(16, num_ranks=4, num_nodes=1, num_redundant=4))
    print(f"{plan.strategy} on 4 ranks: {eplb.evaluate(plan.placement, load).max_over_mean.max():.3f} x the mean")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "trace.parquet"))
