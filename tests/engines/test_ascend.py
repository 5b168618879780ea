"""vllm-ascend's policy: its signature, and the rules by which the engine reverts layers."""

import pickle

import numpy as np
import pytest

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.engines.ascend import AscendPolicy
from eplb.engines.policy import PolicyInputError, PolicySettings
from eplb.errors import InputError
from eplb.evaluation.metrics import evaluate
from eplb_traces import ExpertLoad
from tests.engines.instances import assert_stay_in_slots, assert_whole, busiest, doubles

torch = pytest.importorskip("torch")
POLICY = AscendPolicy(settings=PolicySettings())


def random_table(rng, num_layers=3):
    """A table without duplicates, and the tokens of every slot: even shares of its expert's tokens."""
    num_devices, slots = int(rng.integers(2, 9)), int(rng.integers(2, 7))
    num_experts = int(rng.integers(slots, num_devices * slots + 1))
    rows = np.stack(
        [rng.permutation(num_experts)[np.arange(num_devices * slots) % num_experts] for _ in range(num_layers)]
    )
    tokens = np.floor(rng.lognormal(0, 1.5, (num_layers, num_experts)) * 1000)
    return rows.reshape(num_layers, num_devices, slots), tokens


def slot_load(table, tokens):
    flat = table.reshape(len(table), -1)
    count = np.stack([np.bincount(row, minlength=tokens.shape[1]) for row in flat])
    return np.take_along_axis(tokens / count, flat, axis=1).reshape(table.shape)


def rule_broken(old, new):
    """The rule by which the engine would revert a layer, or None: its three rules, device by device."""
    if len(np.unique(new)) < len(np.unique(old)):
        return "missing"
    for before, after in zip(old, new, strict=True):
        if len(set(after)) < len(after):
            return "doubled"
        stays = [expert in before for expert in after]
        if any(now != was for now, was, stay in zip(after, before, stays, strict=True) if stay):
            return "moved"
    return None


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        ([[0, 1], [2, 3]], None),
        ([[0, 2], [1, 3]], None),
        ([[0, 1], [2, 1]], "missing"),
        ([[1, 0], [2, 3]], "moved"),
    ],
)
def test_the_rules_of_this_test_can_fail(new, reason):
    assert rule_broken([[0, 1], [2, 3]], new) == reason
    assert rule_broken([[0, 1], [1, 0]], [[0, 0], [1, 0]]) == "doubled"


def busiest_under(rule, tokens, flat, num_devices):
    """[L] tokens on the busiest device, as `evaluate` judges."""
    topology = Topology(1, num_devices, flat.shape[1] // num_devices)
    placement = Placement(np.ascontiguousarray(flat, dtype=np.int32), tokens.shape[1], topology)
    return evaluate(placement, ExpertLoad(tokens), rule).rank_load[0].max(axis=1)


@pytest.mark.parametrize("rule", [DispatchRule.EVEN, DispatchRule.ASCEND])
@pytest.mark.parametrize("seed", range(40))
def test_every_layer_satisfies_the_rules_and_none_gets_worse(seed, rule):
    table, tokens = random_table(np.random.default_rng(seed))
    policy = AscendPolicy(settings=PolicySettings(dispatch=rule))
    changed, order, new = policy.rebalance_experts(torch.from_numpy(table), torch.from_numpy(slot_load(table, tokens)))
    assert sorted(order) == [0, 1, 2]
    assert changed == int(new != table.tolist())
    for before, after in zip(table.tolist(), new, strict=True):
        assert rule_broken(before, after) is None
    old_flat, new_flat = table.reshape(3, -1), np.array(new).reshape(3, -1)
    assert_whole(new_flat, tokens.shape[1])
    assert doubles(new_flat, table.shape[1]) == 0
    assert_stay_in_slots(old_flat, new_flat, table.shape[1])
    before, after = (busiest_under(rule, tokens, flat, table.shape[1]) for flat in (old_flat, new_flat))
    if rule is DispatchRule.EVEN:
        assert np.allclose(after, busiest(tokens, new_flat, table.shape[1]))
    assert (after <= before * (1 + 1e-9)).all()
    ratio = after / before
    assert (np.diff(ratio[order]) >= -1e-9).all()
    again = policy.rebalance_experts(torch.tensor(new), torch.from_numpy(slot_load(np.array(new), tokens)))
    if rule is DispatchRule.EVEN:
        assert again[0] == 0
        assert again[2] == new
    moved = (np.array(again[2]) != np.array(new)).any(axis=(1, 2))  # the search under a rule may get further
    better = busiest_under(rule, tokens, np.array(again[2]).reshape(3, -1), table.shape[1]) < after
    assert (better | ~moved).all()


def test_a_worked_case():
    # Devices hold 9 + 1 and 1 + 1 tokens; the spare copy of 1 on device 1 is better a copy of 0.
    table = torch.tensor([[[0, 1], [2, 1]]])
    load = torch.tensor([[[9.0, 1.0], [1.0, 1.0]]])
    changed, order, new = POLICY.rebalance_experts(table, load)
    assert (changed, order) == (1, [0])
    assert new == [[[0, 1], [2, 0]]]  # 4.5 + 2 and 1 + 4.5: within 1.05 of no better one


def test_stages_are_planned_together():
    table, tokens = random_table(np.random.default_rng(5))
    load = slot_load(table, tokens)
    whole = POLICY.rebalance_experts(torch.from_numpy(table), torch.from_numpy(load))
    stages = POLICY.rebalance_experts(torch.from_numpy(table), torch.from_numpy(np.stack([load * 0.25, load * 0.75])))
    assert stages == whole


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.int64])
def test_tensors_of_every_type_arrays_and_lists_are_accepted(dtype):
    table = torch.arange(8).reshape(1, 4, 2)
    load = torch.tensor([[[80, 10], [10, 10], [5, 5], [0, 0]]])
    expected = POLICY.rebalance_experts(table, load)
    assert POLICY.rebalance_experts(table.int(), load.to(dtype)) == expected
    assert POLICY.rebalance_experts(table.numpy(), load.numpy()) == expected
    assert POLICY.rebalance_experts(table.tolist(), load.tolist()) == expected


def test_layers_without_load_are_unchanged():
    table = torch.arange(8).reshape(1, 4, 2).repeat(2, 1, 1)
    changed, order, new = POLICY.rebalance_experts(table, torch.zeros(2, 4, 2))
    assert (changed, order, new) == (0, [0, 1], table.tolist())


def test_a_layer_with_empty_slots_is_unchanged_and_the_others_are_planned():
    table = torch.tensor([[[0, 1], [2, -1]], [[0, 1], [2, 1]]])
    load = torch.tensor([[[9.0, 1.0], [1.0, 0.0]], [[9.0, 1.0], [1.0, 1.0]]])
    changed, order, new = POLICY.rebalance_experts(table, load)
    assert (changed, order) == (1, [1, 0])
    assert new == [[[0, 1], [2, -1]], [[0, 1], [2, 0]]]


def test_a_layer_that_lacks_an_expert_comes_first():
    table = torch.tensor([[[0, 1], [2, 3]], [[0, 1], [2, 1]]])  # layer 1 has no expert 3
    changed, order, new = POLICY.rebalance_experts(table, torch.ones(2, 2, 2))
    assert (changed, order[0]) == (1, 1)
    assert sorted(new[1][0] + new[1][1]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("table", "load", "error", "message"),
    [
        (torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2, 2), InputError, r"expected \[layers, devices, slots\]"),
        (torch.ones(1, 2, 2), torch.ones(1, 2, 2), InputError, "current_expert_table holds float64"),
        (torch.arange(4).reshape(1, 2, 2), torch.ones(1, 2, 3), PolicyInputError, r"expected \(1, 2, 2\)"),
        (torch.arange(4).reshape(1, 2, 2), -torch.ones(1, 2, 2), InputError, "expert_workload: expected finite"),
        (torch.arange(4).reshape(1, 2, 2), torch.ones(2, 2), InputError, r"expected \[layers, devices, slots\]"),
        (
            torch.zeros(1, 2, 2, dtype=torch.int64),
            torch.ones(1, 2, 2),
            PolicyInputError,
            "expected at most 1",
        ),
        (torch.tensor([[[0, 1], [-2, 1]]]), torch.ones(1, 2, 2), InputError, "slot 2] = -2: expected -1 or 0 <= id"),
    ],
)
def test_an_invalid_table_or_workload_is_refused(table, load, error, message):
    with pytest.raises(error, match=message):
        POLICY.rebalance_experts(table, load)


def test_a_policy_can_be_pickled_to_the_planning_process():
    assert pickle.loads(pickle.dumps(POLICY)) == POLICY


def test_the_log_sets_what_the_devices_saw_beside_what_the_rule_gives(caplog):
    table = np.array([[[0, 1], [0, 2], [0, 3]]])
    tokens = np.array([[[40, 10], [0, 10], [0, 10]]])  # all tokens of expert 0 on device 0: not what the rule does
    with caplog.at_level("INFO", logger="eplb"):
        POLICY.rebalance_experts(torch.tensor(table), torch.tensor(tokens))
    assert "seen 2.143, expected under ascend dispatch 1.000, planned 1.000" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", logger="eplb"):
        POLICY.rebalance_experts(torch.tensor(table), torch.tensor(tokens * 0))
    assert "seen" not in caplog.text
