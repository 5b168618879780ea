"""Generates with a Hugging Face model whose experts are placed by several plans in turn; prints tokens/s of each.

Needs the extra `record`. In one process: python examples/generate_with_plan.py
In two, over NCCL in bf16 where each has a GPU: torchrun --nproc-per-node 2 examples/generate_with_plan.py
--hidden 2048 --layers 16 --experts 64: larger random weights. --model FOLDER: a saved model (safetensors). --plan FILE:
also generate under a plan of `eplb plan`. --online: the experts move to the next plan while the model generates.
"""

import argparse
import os
import time

import torch
import torch.distributed as dist
import transformers

import eplb
from eplb import runtime
from eplb_traces import ExpertLoad


def make_model(words: argparse.Namespace, device: torch.device) -> torch.nn.Module:
    """The saved model, or a random one, the same on all processes."""
    torch.manual_seed(0)
    dtype, auto = torch.bfloat16 if device.type == "cuda" else torch.float32, transformers.AutoModelForCausalLM
    if words.model:
        return auto.from_pretrained(words.model, dtype=dtype).eval().to(device)
    config = transformers.OlmoeConfig(
        vocab_size=1024, hidden_size=words.hidden, intermediate_size=words.hidden // 2, num_hidden_layers=words.layers,
        num_attention_heads=words.hidden // 32, num_key_value_heads=words.hidden // 32, num_experts=words.experts,
        num_experts_per_tok=min(8, words.experts // 4), pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    with device:
        return auto.from_config(config, dtype=dtype).eval()


@torch.no_grad()
def main(words: argparse.Namespace) -> None:
    """Generate under each plan; compare the tokens and the logits with those of the whole model."""
    processes, process = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = torch.device("cuda", process) if torch.cuda.device_count() >= processes else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.is_torchelastic_launched():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    model = make_model(words, device)
    shape, ranks = runtime.model_shape(model), max(2, processes)
    topology = eplb.Topology.for_experts(shape.num_experts, num_ranks=ranks, num_redundant=2 * ranks)
    given = {words.plan: eplb.read_placement(words.plan, shape=shape)} if words.plan else {}
    topology = given[words.plan].topology if given else topology
    group = runtime.RankGroup(topology, processes, process, dist.group.WORLD if dist.is_initialized() else None)
    generator, vocabulary = torch.Generator().manual_seed(process), model.config.vocab_size
    prompts = torch.randint(3, vocabulary, (words.prompts, 16), generator=generator).to(device)
    options = {"attention_mask": torch.ones_like(prompts), "do_sample": False}
    options |= dict.fromkeys(("min_new_tokens", "max_new_tokens"), words.tokens)
    whole, logits = model.generate(prompts, **options), model(prompts).logits
    even = eplb.plan(ExpertLoad(torch.ones(shape.num_layers, shape.num_experts).numpy(), shape=shape), topology)
    source = runtime.SafetensorsCheckpoint(words.model) if words.model else None
    parallel = runtime.parallelize(model, even, group, source=source, most_tokens=prompts.numel())
    model.generate(prompts, **options)  # measures the load and, on a GPU, times the kernels
    load = ExpertLoad(runtime.summed_counts(parallel.counts_LE, group).numpy() + 1.0, shape=shape)
    plans = {name: eplb.plan(load, topology, strategy=name).placement for name in ("linear", "deepseek", "greedy")}
    same, worst = 1.0, 0.0
    for name, placement in (plans | given).items():
        moves = [lambda ids, scores, to=placement: parallel.migrate(to) or scores] if words.online else []
        if not words.online:
            parallel.migrate(placement)
        start = time.perf_counter()
        tokens = model.generate(prompts, **options, logits_processor=moves).cpu()
        speed = processes * words.prompts * words.tokens / (time.perf_counter() - start)
        same = min(same, float((tokens == whole.cpu()).float().mean()))
        worst = max(worst, float((model(prompts).logits - logits).norm() / logits.norm()))
        balance = eplb.evaluate(placement, load).max_over_mean.max()
        if process == 0:
            print(f"{name}: {speed:.0f} tokens/s, busiest rank {balance:.3f} x the mean")
    is_right = worst < (5e-2 if device.type == "cuda" else 1e-4) and (device.type == "cuda" or same == 1)
    if process == 0:
        print(f"{parallel}\nlogits differ by {worst:.1e} of their norm, same tokens: {'yes' if same == 1 else same}")
    if dist.is_initialized():
        dist.destroy_process_group()
    if not is_right:
        raise SystemExit("the model with placed experts computes something else")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in {"hidden": 64, "layers": 2, "experts": 16, "prompts": 4, "tokens": 8}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--model", metavar="FOLDER")
    parser.add_argument("--plan", metavar="FILE")
    parser.add_argument("--online", action="store_true")
    main(parser.parse_args())
