"""Executed on each process by `test_parallelize.py`: tiny random models, whole and with placed experts."""

import torch

from eplb.core.problem import Plan
from eplb.runtime import RankGroup
from eplb.runtime.agreement import summed_counts
from eplb.runtime.model.moe_blocks import moe_blocks
from eplb.runtime.model.parallelize import parallelize
from eplb_traces import ModelShape
from tests.runtime.model.placements import placements
from tests.traces.recorder import models

FAMILIES = ("mixtral", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3")
NEW_TOKENS = 6


def generated(model, prompts):
    with torch.no_grad():
        return model.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS, do_sample=False,
        )  # fmt: skip


def run_family(member, family):
    """What differs between the model and the model with placed experts, before and after a migration."""
    model = models.build(family)
    blocks = moe_blocks(model)
    before, after = placements(len(blocks), blocks[0].num_experts)
    prompts = torch.randint(3, 64, (2 + member.process, 5), generator=torch.Generator().manual_seed(member.process))
    expected_tokens = generated(model, prompts)
    expected_logits = model(prompts).logits.detach()
    group = RankGroup.of(before.topology, member.process_group)
    plan = Plan(before, ModelShape(len(blocks), blocks[0].num_experts, blocks[0].top_k), "given")
    differences = []
    parallel = parallelize(model, plan, group)
    for state in ("placed", "migrated"):
        if state == "migrated":
            parallel.migrate(after)
        if not torch.equal(generated(model, prompts), expected_tokens):
            differences.append(f"{family} {state}: other tokens")
        if not torch.allclose(model(prompts).logits.detach(), expected_logits, atol=1e-4):
            differences.append(f"{family} {state}: other logits")
    # Each of two states generates 5 + 5 positions and runs a forward pass over 5, for 2 + 3 prompts.
    positions = 2 * (5 + NEW_TOKENS - 1 + 5) * (2 + 3)
    if not summed_counts(parallel.counts_LE, group).sum(dim=1).eq(positions * blocks[0].top_k).all():
        differences.append(f"{family}: counts {summed_counts(parallel.counts_LE, group).sum(dim=1).tolist()}")
    parallel.weights.layer_parts(0)["down.weight"].zero_()
    if torch.allclose(model(prompts).logits.detach(), expected_logits, atol=1e-4):
        differences.append(f"{family}: erased experts changed nothing")
    return differences


def run_families(member, _):
    return [difference for family in FAMILIES for difference in run_family(member, family)]
