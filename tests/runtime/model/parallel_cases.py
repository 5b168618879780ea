"""Executed on each process by `test_parallelize.py`: tiny random models, whole and with placed experts."""

from unittest.mock import patch

import numpy as np
import torch

from eplb.core.problem import Plan
from eplb.runtime import LiveMigration, MigrationError, RankGroup
from eplb.runtime.agreement import summed_counts
from eplb.runtime.live_migration import MigrationPoint
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


def _placed(member):
    """A model with placed experts, prompts, its logits, and the placement it may move to."""
    model = models.build("qwen3_moe")
    blocks = moe_blocks(model)
    before, after = placements(len(blocks), blocks[0].num_experts)
    prompts = torch.randint(3, 64, (2, 5), generator=torch.Generator().manual_seed(member.process))
    logits = model(prompts).logits.detach()
    plan = Plan(before, ModelShape(len(blocks), blocks[0].num_experts, blocks[0].top_k), "given")
    parallel = parallelize(model, plan, RankGroup.of(before.topology, member.process_group), exchange="alltoall")
    return model, parallel, (prompts, logits), after


def stop_and_repeat(member, _):
    """Fail on process 1 while layer 1 is checked, then move again and back; the error and what moved before it."""
    model, parallel, (prompts, logits), after = _placed(member)
    before, observe = parallel.placement, LiveMigration._observe

    def failing(self, point, layer):
        if member.process == 1 and layer == 1 and point is MigrationPoint.STAGED:
            raise OSError("no space left")
        observe(self, point, layer)

    seen = []
    with patch.object(LiveMigration, "_observe", failing):
        try:
            parallel.migrate(after)
        except MigrationError as error:
            seen.append(str(error).rsplit(":", 1)[0])
    has_moved = (parallel.placement.physical_to_logical_map == after.physical_to_logical_map).all(axis=1)
    seen.append(f"layers of the new placement: {has_moved.tolist()}")
    for placement in (after, before):
        parallel.migrate(placement)
        if not np.array_equal(parallel.tables.phy2log_LP.numpy(), placement.physical_to_logical_map):
            seen.append("other maps than those asked for")
        if not torch.allclose(model(prompts).logits.detach(), logits, atol=1e-5):
            seen.append("other logits")
    return seen


def migrate_apart(member, _):
    """Process 0 stays where it is, process 1 asks for another placement."""
    _, parallel, _, after = _placed(member)
    try:
        parallel.migrate(parallel.placement if member.process == 0 else after)
    except MigrationError as error:
        return str(error)
    return "nothing"
