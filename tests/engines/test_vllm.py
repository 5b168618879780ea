"""vLLM's policy: its signature, live maps, and the edge cases of its own test file."""

import subprocess
import sys

import numpy as np
import pytest

import eplb
from eplb.engines.policy import PolicyInputError, PolicySettings
from eplb.engines.vllm import VllmPolicy
from eplb.errors import InputError
from eplb.formats import write_plan
from tests.engines.instances import assert_stay_in_slots, assert_whole, busiest, doubles, random_call
from tests.engines.test_deepseek import README_PHY2LOG, README_WEIGHT
from tests.oracles import published_rebalance

torch = pytest.importorskip("torch")
POLICY = VllmPolicy(settings=PolicySettings(), plan=None)
PARITY = VllmPolicy(settings=PolicySettings(strategy="deepseek"), plan=None)


def initial_map(num_layers, num_experts, num_slots):
    """vLLM's initial map: experts in order, then again from 0."""
    return (torch.arange(num_slots) % num_experts).expand(num_layers, -1)


@pytest.mark.parametrize("seed", range(25))
def test_results_are_int64_cpu_tensors_complete_and_without_duplicates(seed):
    weight, *counts = random_call(np.random.default_rng(seed))
    made = POLICY.rebalance_experts(torch.from_numpy(weight), *counts)
    assert made.dtype == torch.int64
    assert made.device.type == "cpu"
    assert made.shape == (3, counts[0])
    assert made.is_contiguous()
    assert_whole(made.numpy(), weight.shape[1])
    assert doubles(made.numpy(), counts[-1]) == 0


@pytest.mark.parametrize("seed", range(25))
def test_from_vllms_initial_map_experts_keep_their_slots_and_a_second_call_changes_nothing(seed):
    weight, num_slots, num_groups, num_nodes, num_ranks = random_call(np.random.default_rng(seed))
    load = torch.from_numpy(weight)
    live = initial_map(3, weight.shape[1], num_slots)
    first = POLICY.rebalance_experts(load, num_slots, num_groups, num_nodes, num_ranks, live)
    assert_whole(first.numpy(), weight.shape[1])
    assert doubles(first.numpy(), num_ranks) == 0
    if not doubles(live.numpy(), num_ranks):
        assert_stay_in_slots(live.numpy(), first.numpy(), num_ranks)
    again = POLICY.rebalance_experts(load, num_slots, num_groups, num_nodes, num_ranks, first)
    assert torch.equal(again, first)


@pytest.mark.parametrize("seed", range(10))
def test_with_a_live_map_the_balance_is_within_the_target_of_the_engines_own(seed):
    rng = np.random.default_rng(seed)
    weight = rng.lognormal(0, 1, (4, 64)) * 1000
    live = initial_map(4, 64, 80)
    made = POLICY.rebalance_experts(torch.from_numpy(weight), 80, 8, 2, 16, live)
    theirs, _, _ = published_rebalance(weight, 80, 1, 1, 16)
    assert (busiest(weight, made.numpy(), 16) <= busiest(weight, theirs, 16) * 1.05 * (1 + 1e-3)).all()
    moved, moved_theirs = (made != live).sum().item(), (torch.from_numpy(theirs) != live).sum().item()
    assert moved < 0.5 * moved_theirs


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.int(),
        lambda w: w.to(torch.float16),
        lambda w: w.to(torch.bfloat16),
        lambda w: w.float().t().contiguous().t(),
        lambda w: torch.stack([w, -w], dim=2)[:, :, 0],
        lambda w: w.double().requires_grad_(),
    ],
    ids=["int32", "float16", "bfloat16", "transposed", "strided", "with a gradient"],
)
def test_any_tensor_of_the_same_numbers_gives_the_same_map(change):
    # 0 to 119 are exact in every type here.
    weight = torch.from_numpy(np.random.default_rng(0).permutation(120).reshape(3, 40))
    expected = POLICY.rebalance_experts(weight, 48, 4, 2, 8)
    assert torch.equal(POLICY.rebalance_experts(change(weight), 48, 4, 2, 8), expected)


class OnDevice(torch.Tensor):
    """A replacement for a GPU tensor: conversion to an array requires cpu()."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def numpy(self):
        raise TypeError("can't convert a device tensor to numpy")


def test_tensors_of_another_device_are_moved():
    weight, live = torch.arange(1, 17).reshape(1, 16), initial_map(1, 16, 20)
    with pytest.raises(TypeError, match="device tensor"):
        weight.as_subclass(OnDevice).numpy()
    made = POLICY.rebalance_experts(weight.as_subclass(OnDevice), 20, 1, 1, 4, live.as_subclass(OnDevice))
    assert type(made) is torch.Tensor
    assert torch.equal(made, POLICY.rebalance_experts(weight, 20, 1, 1, 4, live))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_of_a_gpu_are_moved():
    weight, live = torch.arange(1, 17).reshape(1, 16), initial_map(1, 16, 20)
    made = POLICY.rebalance_experts(weight.cuda(), 20, 1, 1, 4, live.cuda())
    assert torch.equal(made, POLICY.rebalance_experts(weight, 20, 1, 1, 4, live))


def test_counts_beyond_single_precision_are_distinguished():
    # 2^24 and 2^24 + 1 are one number in single precision. One spare slot: it must go to the larger one.
    weight = torch.tensor([[2**24, 2**24 + 1, 1, 1, 1]])
    made = POLICY.rebalance_experts(weight, 6, 1, 1, 3)
    assert np.bincount(made[0].numpy()).tolist() == [1, 2, 1, 1, 1]
    single = POLICY.rebalance_experts(weight.float(), 6, 1, 1, 3)
    assert np.bincount(single[0].numpy()).tolist() == [2, 1, 1, 1, 1]


def test_the_profile_run_without_load_returns_the_live_map():
    live = initial_map(2, 16, 20)
    made = POLICY.rebalance_experts(torch.zeros(2, 16, dtype=torch.int64), 20, 4, 2, 4, live)
    assert torch.equal(made, live)


def test_scaling_down_keeps_the_experts_of_remaining_ranks():
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.lognormal(0, 1, (3, 32)) * 1000)
    live = POLICY.rebalance_experts(weight, 64, 1, 1, 8)
    made = POLICY.rebalance_experts(weight, 48, 1, 1, 6, live)
    assert made.shape == (3, 48)
    assert_whole(made.numpy(), 32)
    assert doubles(made.numpy(), 6) == 0
    assert_stay_in_slots(live[:, :48].numpy(), made.numpy(), 6)
    assert (made == live[:, :48]).float().mean() > 0.5


@pytest.mark.parametrize("padded", [True, False])
def test_scaling_up_fills_every_slot_of_new_ranks(padded):
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.lognormal(0, 1, (3, 32)) * 1000)
    live = POLICY.rebalance_experts(weight, 48, 1, 1, 6)
    known = torch.nn.functional.pad(live, (0, 16), value=-1) if padded else live
    made = POLICY.rebalance_experts(weight, 64, 1, 1, 8, known)
    assert_whole(made.numpy(), 32)
    assert doubles(made.numpy(), 8) == 0
    assert_stay_in_slots(live.numpy(), made[:, :48].numpy(), 6)
    mean = weight.sum(dim=1).numpy() / 8
    assert (busiest(weight.numpy(), made.numpy(), 8) <= 1.05 * mean * 1.05).all()


def test_the_published_example_with_strategy_deepseek():
    made = PARITY.rebalance_experts(torch.tensor(README_WEIGHT), 16, 4, 2, 8)
    assert made.tolist() == README_PHY2LOG


@pytest.mark.parametrize("policy", [POLICY, PARITY], ids=["ours", "parity"])
@pytest.mark.parametrize(
    ("weight", "counts"),
    [
        ([[10, 20, 30, 40]], (4, 1, 1, 1)),
        ([[50] * 8], (8, 2, 2, 4)),
        ([[10, 20, 30, 40, 50, 60], [60, 50, 40, 30, 20, 10], [25] * 6], (8, 2, 2, 4)),
        ([[10, 20, 30, 40]], (8, 3, 2, 4)),
        ([[100, 50, 200, 75, 150, 25, 300, 80]], (12, 4, 2, 4)),
        ([[10, 20, 30, 40, 50, 60]], (8, 3, 2, 4)),
        ([[10, 20, 30, 40]], (6, 2, 1, 2)),
        ([[50, 100, 75, 120, 90, 60, 80, 110, 40, 70, 95, 85, 65, 55, 45, 35]], (24, 8, 4, 8)),
        ([[10, 20, 30, 40, 50, 60]], (12, 1, 4, 6)),
    ],
    ids=["one rank", "equal", "layers", "global", "small", "fallback", "half spare", "four nodes", "uneven nodes"],
)
def test_calls_that_vllm_accepts_are_accepted(policy, weight, counts):
    made = policy.rebalance_experts(torch.tensor(weight), *counts)
    assert made.shape == (len(weight), counts[0])
    assert_whole(made.numpy(), len(weight[0]))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((7, 2, 2, 4), "num_replicas = 7: expected a multiple of num_ranks = 4"),
        ((4, 1, 1, 2), "num_replicas = 4: expected at least 6 experts"),
        ((8, 4, 2, 4), "6 experts: expected a multiple of num_groups = 4"),
        ((8, 1, 1, 0), "num_ranks = 0: expected >= 1"),
    ],
)
def test_where_vllm_asserts_an_assertion_error_is_raised(counts, message):
    with pytest.raises(AssertionError, match=message):
        POLICY.rebalance_experts(torch.ones(1, 6), *counts)


@pytest.mark.parametrize(
    ("weight", "live", "message"),
    [
        (torch.tensor([[1.0, float("nan")]]), None, "weight: expected finite values >= 0"),
        (torch.tensor([[1.0, -1.0]]), None, "weight: expected finite values >= 0"),
        (torch.tensor([[1e5, 1.0]]).half(), None, "weight: expected finite values >= 0"),
        (torch.ones(2), None, r"weight has shape \(2,\): expected \[layers, experts\]"),
        (torch.ones(1, 2), torch.tensor([[0, 2]]), r"live map\[layer 0, slot 1\] = 2: expected -1 or 0 <= id < 2"),
        (torch.ones(1, 2), torch.tensor([[0.0, 1.0]]), "the live map holds float64: expected integers"),
        (torch.ones(1, 2), [[0, 1], [0]], "the live map is not a rectangular array of ids"),
        (torch.ones(1, 2), torch.tensor([0, 1]), r"the live map has shape \(2,\): expected \[layers, slots\]"),
    ],
)
def test_an_invalid_load_or_live_map_is_refused(weight, live, message):
    with pytest.raises(InputError, match=message):
        POLICY.rebalance_experts(weight, 2, 1, 1, 2, live)


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        # Experts 0 and 1 stay on rank 0 and 6, 7 on rank 1; 5, 4 and 2, 3 fill the slots that are left, in order.
        ([[0, 1, 2, 3, 4, 5, 6, 7]], [[1, 5, 0, 4, 6, 2, 7, 3]], [[0, 1, 5, 4, 2, 3, 6, 7]]),
        ([[0, 1, 2, 3]], [[0, 0, 0, 3]], [[0, 0, 0, 3]]),
    ],
)
def test_slots_inside_a_rank_are_preserved_as_in_vllm(old, new, kept):
    found = VllmPolicy.preserve_intragpu_slots(np.array(new), 2, np.array(old))
    assert found.tolist() == kept
    assert found.dtype == np.int64


def test_maps_of_other_shapes_are_returned_unchanged():
    new = np.array([[0, 1, 2]])
    assert VllmPolicy.preserve_intragpu_slots(new, 2, new) is new
    assert VllmPolicy.preserve_intragpu_slots(new, 3, np.array([[0, 1, 2, 0]])) is new


def test_a_plan_file_is_returned_for_every_call(tmp_path):
    load = eplb.ExpertLoad(np.random.default_rng(0).lognormal(0, 1, (3, 32)))
    planned = eplb.plan(load, eplb.Topology(2, 4, 5), "greedy")
    write_plan(planned, tmp_path / "plan.json")
    policy = VllmPolicy(settings=PolicySettings(), plan=str(tmp_path / "plan.json"))
    made = policy.rebalance_experts(torch.ones(3, 32), 40, 4, 2, 8, initial_map(3, 32, 40))
    assert np.array_equal(made.numpy(), planned.placement.physical_to_logical_map)
    with pytest.raises(PolicyInputError, match=r"3 layers x 40 slots for 32 experts: expected 2 x 40 for 32"):
        policy.rebalance_experts(torch.ones(2, 32), 40, 4, 2, 8)
    with pytest.raises(PolicyInputError, match=r"for 32 experts: expected 3 x 40 for 24"):
        policy.rebalance_experts(torch.ones(3, 24), 40, 4, 2, 8)  # as many slots, another model
    with pytest.raises(InputError, match="is for 8 ranks: the engine runs ep_size = 4"):
        policy.rebalance_experts(torch.ones(3, 32), 40, 4, 2, 4)


def test_the_environment_names_the_plan_and_the_settings(monkeypatch):
    monkeypatch.setenv("EPLB_POLICY_PLAN", "somewhere.json")
    monkeypatch.setenv("EPLB_POLICY_TARGET", "1.1")
    assert VllmPolicy() == VllmPolicy(settings=PolicySettings(target=1.1, trigger=1.1), plan="somewhere.json")


@pytest.mark.parametrize("name", ["vllm", "sglang", "ascend", "plugins", "rank_layout", "engine_tensors"])
def test_each_imports_without_engine_and_torch(name):
    code = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}; import eplb.engines.{name}"
    check = f"{code}; print(sorted({{'torch', 'vllm', 'sglang', 'vllm_ascend', 'numba'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "[]\n"
