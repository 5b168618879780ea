"""Our maps in vLLM's own pure functions; vLLM 0.32.0.

Exercised: `compute_logical_maps`, `schedule_migration_batches`, `determine_expert_map`, `DefaultEplbPolicy` as the
algorithm to compare with, `EPLB_POLICIES`, and `load_general_plugins`, which finds our entry point. Stubbed: see
`engine_import`; nothing that these functions reach.
"""

import numpy as np
import pytest
import torch

from tests.real_engines.engine_import import ENGINES, prepare

prepare("vllm")

from vllm import plugins  # noqa: E402
from vllm.distributed.eplb import eplb_state  # noqa: E402
from vllm.distributed.eplb.eplb_state import compute_logical_maps  # noqa: E402
from vllm.distributed.eplb.migration_scheduler import schedule_migration_batches  # noqa: E402
from vllm.distributed.eplb.policy import EPLB_POLICIES, DefaultEplbPolicy  # noqa: E402
from vllm.model_executor.layers.fused_moe.expert_map_manager import determine_expert_map  # noqa: E402

import eplb  # noqa: E402
from eplb import Migration, Placement  # noqa: E402
from eplb.core.migration import Hop  # noqa: E402
from eplb.engines.policy import PolicySettings  # noqa: E402
from eplb.engines.vllm import VllmPolicy, register  # noqa: E402
from eplb.errors import FormatError  # noqa: E402
from eplb.formats.engine_check import check_file  # noqa: E402
from eplb.runtime.layer.replica_choice import VLLM_MULTIPLIER  # noqa: E402
from tests.real_engines.installed import put_on_path  # noqa: E402
from tests.real_engines.our_plans import NUM_EXPERTS, NUM_LAYERS, a_load, a_machine, a_plan, doubled  # noqa: E402


def a_map(placement):
    return torch.from_numpy(placement.physical_to_logical_map.astype(np.int64))


def test_the_hash_of_the_token_index_is_that_of_vllm():
    """The choice of a replica is a Triton kernel, which is not run here; its source is compared."""
    source = (ENGINES / "vllm/vllm/model_executor/layers/fused_moe/router/base_router.py").read_text()
    assert f"KNUTH_MULTIPLIER = {VLLM_MULTIPLIER}" in source
    assert "token_idx = (offs // num_active_experts)" in source
    assert "replica_idx = hashed % replica_count" in source


@pytest.mark.parametrize("duplicates", [False, True])
def test_vllm_derives_the_maps_that_we_have(duplicates):
    placement = a_plan(4, slots_per_rank=6).placement
    placement = doubled(placement) if duplicates else placement
    assert placement.duplicate_slots.any() == duplicates
    log2phy, logcnt = compute_logical_maps(a_map(placement), placement.num_experts)
    _, log2phy_ours, logcnt_ours = placement.maps()
    np.testing.assert_array_equal(log2phy.numpy(), log2phy_ours)
    np.testing.assert_array_equal(logcnt.numpy(), logcnt_ours)
    assert log2phy.dtype == torch.from_numpy(log2phy_ours).dtype


def test_for_engine_pads_as_eplb_state_does():
    layout = eplb.for_engine(a_plan(4, slots_per_rank=6), ep_size=4, ep_rank=1)
    found = layout.torch("vllm")
    log2phy, logcnt = compute_logical_maps(found.physical_to_logical_map, NUM_EXPERTS)
    padded = torch.zeros(NUM_LAYERS, NUM_EXPERTS, 1024, dtype=torch.int64)  # as `EplbState.add_model` allocates it
    eplb_state._pad_out_tensor(log2phy, padded)
    assert torch.equal(found.logical_to_physical_map, padded)
    assert torch.equal(found.logical_replica_count, logcnt)


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
@pytest.mark.parametrize("seed", range(4))
def test_vllm_schedules_the_copies_that_our_migration_counts(num_ranks, seed):
    slots = 2 * NUM_EXPERTS // num_ranks - 2
    before, after = (a_plan(num_ranks, slots_per_rank=slots, seed=s).placement for s in (seed, seed + 10))
    migration = Migration.between(before, after)
    for layer in range(NUM_LAYERS):
        old, new = (p.physical_to_logical_map[layer].astype(np.int64) for p in (before, after))
        batches = schedule_migration_batches(slots, old, new)
        scheduled = sorted((f.dst_rank, e) for batch in batches for f in batch for e in f.expert_ids)
        crossing = (migration.layer == layer) & (migration.hop != Hop.SAME_RANK)
        ours = sorted(zip(migration.rank[crossing].tolist(), migration.expert[crossing].tolist(), strict=True))
        assert scheduled == ours
        for batch in batches:
            ends = [rank for flow in batch for rank in (flow.src_rank, flow.dst_rank)]
            assert len(ends) == len(set(ends))
            assert all(e in old.reshape(num_ranks, -1)[f.src_rank] for f in batch for e in f.expert_ids)


@pytest.mark.parametrize("strategy", ["linear", "round_robin"])
@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_our_layouts_are_those_that_vllm_starts_with(strategy, num_ranks):
    machine = a_machine(num_ranks, slots_per_rank=NUM_EXPERTS // num_ranks)
    placement = eplb.plan(a_load(0), machine, strategy).placement
    for rank in range(num_ranks):
        count, expert_map, _ = determine_expert_map(num_ranks, rank, NUM_EXPERTS, strategy)
        assert count == NUM_EXPERTS // num_ranks
        assert expert_map.dtype == torch.int32
        for row in placement.local_expert_map(rank):
            np.testing.assert_array_equal(row, expert_map.numpy())


def test_uneven_ranks_are_those_of_vllm_too():
    # 16 experts on 3 ranks: vLLM gives the first 16 % 3 = 1 ranks one more, so 6, 5, 5.
    machine = eplb.Topology(1, 3, [6, 5, 5])
    placement = eplb.plan(a_load(0), machine, "linear").placement
    for rank in range(3):
        _, expert_map, _ = determine_expert_map(3, rank, NUM_EXPERTS)
        np.testing.assert_array_equal(placement.local_expert_map(rank)[0], expert_map.numpy())


def test_the_table_holds_our_policy_after_register():
    before = dict(EPLB_POLICIES)
    try:
        policy = register()
        assert eplb_state.EPLB_POLICIES["default"] is policy
        assert set(EPLB_POLICIES) == {"default"}
    finally:
        EPLB_POLICIES.update(before)


def busiest(phy2log, weight, num_ranks):
    """[layers] busiest rank's tokens, split evenly over copies."""
    count = torch.zeros_like(weight).scatter_add_(1, phy2log, torch.ones_like(phy2log, dtype=weight.dtype))
    slots = (weight / count).gather(1, phy2log)
    return slots.reshape(len(weight), num_ranks, -1).sum(dim=2).max(dim=1).values


@pytest.mark.parametrize("asked", ["vllm", ""])
def test_vllm_starts_our_plugin_which_does_what_it_is_asked(asked, tmp_path, monkeypatch):
    put_on_path(monkeypatch, tmp_path)
    monkeypatch.setenv("EPLB_REGISTER", asked)
    monkeypatch.setenv("VLLM_PLUGINS", "eplb")
    monkeypatch.setattr(plugins, "plugins_loaded", False)
    monkeypatch.setitem(EPLB_POLICIES, "default", DefaultEplbPolicy)
    plugins.load_general_plugins()
    assert isinstance(EPLB_POLICIES["default"], VllmPolicy) == (asked == "vllm")


@pytest.mark.parametrize(("num_groups", "num_nodes"), [(4, 2), (1, 1), (3, 2)])
def test_the_setting_deepseek_plans_as_vllm_does(num_groups, num_nodes):
    """Copies of an expert weigh the same, and vLLM's sort leaves open which of them is placed first: so counts and
    loads are compared. 3 groups do not divide by 2 nodes: both plan globally.
    """
    policy = VllmPolicy(settings=PolicySettings(strategy="deepseek"))
    for seed in range(5):
        weight = torch.from_numpy(a_load(seed).tokens[0])
        arguments = (weight, 24, num_groups, num_nodes, 4)
        theirs, found = DefaultEplbPolicy.rebalance_experts(*arguments), policy.rebalance_experts(*arguments)
        assert torch.equal(compute_logical_maps(found, NUM_EXPERTS)[1], compute_logical_maps(theirs, NUM_EXPERTS)[1])
        torch.testing.assert_close(busiest(found, weight, 4), busiest(theirs, weight, 4), rtol=1e-6, atol=0)
        assert (found.dtype, found.device) == (theirs.dtype, theirs.device)


def test_ours_is_no_worse_than_vllms_and_moves_less():
    policy = VllmPolicy(settings=PolicySettings())
    old = policy.rebalance_experts(torch.from_numpy(a_load(0).tokens[0]), 24, 4, 2, 4)
    moved_ours = moved_theirs = 0
    for seed in range(1, 6):
        drifted = torch.from_numpy((a_load(0).tokens[0] * 0.7 + a_load(seed).tokens[0] * 0.3).round())
        ours = policy.rebalance_experts(drifted, 24, 4, 2, 4, old)
        theirs = DefaultEplbPolicy.rebalance_experts(drifted, 24, 4, 2, 4, old)
        allowed = torch.maximum(busiest(theirs, drifted, 4), drifted.sum(dim=1) / 4 * policy.settings.target)
        assert (busiest(ours, drifted, 4) <= allowed * (1 + 1e-9)).all()
        moved_ours += int((ours != old).sum())
        moved_theirs += int((theirs != old).sum())
    assert moved_ours < moved_theirs


GOOD = [[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ([3, 2, 0, 0, 3, 2], "no place for"),  # expert 1 is missing
        ([3, 2, 1, 0, -1, 2], "skips the slot"),
        ([3, 2, 1, 0, 4, 2], "refuses it"),
        ([3, 2, 1, 0, 3, 3], None),  # a double of expert 3 on rank 1, which vLLM copes with
    ],
)
def test_vllm_does_what_the_check_says(row, what, tmp_path):
    """No release loads a file; the functions that a loaded map would go through are asked."""
    path = tmp_path / "plan.json"
    path.write_text(str([GOOD[0], row]))
    phy2log = torch.tensor([GOOD[0], row])
    if what is None:
        check_file(path, "vllm", 2, 4)
    else:
        with pytest.raises(FormatError, match=what):
            check_file(path, "vllm", 2, 4)
    if what == "refuses it":
        with pytest.raises(RuntimeError, match="out of bounds"):
            compute_logical_maps(phy2log, 4)
        return
    _, logcnt = compute_logical_maps(phy2log, 4)
    assert bool((logcnt == 0).any()) == (what == "no place for")
    assert bool((logcnt.sum(dim=1) < 6).any()) == (what == "skips the slot")


def test_slots_that_do_not_divide_are_noticed_when_weights_move(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(str(GOOD))
    with pytest.raises(FormatError, match="until weights move"):
        check_file(path, "vllm", 4, 4)
    compute_logical_maps(torch.tensor(GOOD), 4)
    with pytest.raises(ValueError, match="reshape"):  # 6 slots of 4 ranks: 4 % 6 slots a rank is not whole
        schedule_migration_batches(4, np.array(GOOD[0]), np.array(GOOD[1]))


def test_the_comparison_sees_a_wrong_map():
    placement = a_plan(4, slots_per_rank=6).placement
    other = Placement(placement.physical_to_logical_map[:, ::-1].copy(), NUM_EXPERTS, placement.topology)
    log2phy, _ = compute_logical_maps(a_map(other), NUM_EXPERTS)
    assert not np.array_equal(log2phy.numpy(), placement.maps().logical_to_physical_map)
