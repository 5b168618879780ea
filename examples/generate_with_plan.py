"""Generates with a small random Hugging Face model whose experts are placed by three plans in turn.

Needs the extra `record`. One process executes all ranks: python examples/generate_with_plan.py
Two processes: torchrun --nproc-per-node 2 examples/generate_with_plan.py --online
With --online the experts move to the next plan while the model generates.
"""

import sys
import time

import torch
import torch.distributed as dist
import transformers

import eplb
from eplb import runtime
from eplb_traces import ExpertLoad, ModelShape

EXPERTS, LAYERS, TOP_K, NEW_TOKENS = 16, 2, 4, 8
CONFIG = transformers.OlmoeConfig(
    vocab_size=256, hidden_size=64, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=2,
    num_key_value_heads=2, num_experts=EXPERTS, num_experts_per_tok=TOP_K, pad_token_id=0, eos_token_id=None,
)  # fmt: skip


def main(*, online: bool) -> None:
    """Generate under each plan and compare the tokens with those of the whole model."""
    topology = eplb.Topology.for_experts(EXPERTS, num_ranks=4, num_redundant=4)
    group = runtime.RankGroup(topology)
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
        group = runtime.RankGroup.of(topology, dist.group.WORLD)
    generator = torch.Generator().manual_seed(group.process)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIG).eval()
    prompts = torch.randint(3, 256, (4, 16), generator=generator)
    options = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": NEW_TOKENS, "do_sample": False}
    whole, same = model.generate(prompts, **options), True
    flat = ExpertLoad(torch.ones(LAYERS, EXPERTS).numpy(), shape=ModelShape(LAYERS, EXPERTS, TOP_K))
    parallel = runtime.parallelize(model, eplb.plan(flat, topology, strategy="linear"), group)
    for strategy in ("linear", "deepseek", "greedy"):
        load = ExpertLoad(runtime.summed_counts(parallel.counts_LE, group).numpy() + 1.0, shape=flat.shape)
        plan = eplb.plan(load, topology, strategy=strategy)
        moves = [lambda ids, scores, to=plan.placement: parallel.migrate(to) or scores] if online else []
        if not online:
            parallel.migrate(plan.placement)
        start = time.perf_counter()
        same = torch.equal(model.generate(prompts, **options, logits_processor=moves), whole) and same
        speed = len(prompts) * NEW_TOKENS / (time.perf_counter() - start)
        worst = eplb.evaluate(plan.placement, load).max_over_mean.max()
        if group.process == 0:
            print(f"{strategy}: {speed:.0f} tokens/s a process, busiest rank {worst:.3f} x the mean")
    if group.process == 0:
        print(f"same tokens: {'yes' if same else 'no'}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(online="--online" in sys.argv[1:])
