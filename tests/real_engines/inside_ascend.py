"""Our files and our policy in vllm-ascend's own EPLB; vllm-ascend 0.23.0 on vLLM 0.32.0.

Exercised: `expert_file_to_tensor`, `init_eplb_config`, `generate_log2phy_map`, `PolicyFactory`, the whole `do_update`
of `EplbWorker` with `check_expert_placement`, and `VllmEplbAdaptor._export_tensor_to_file`, which writes the file.
Stubbed besides `engine_import`: `Tensor.npu` stays on the CPU, `torch.npu.device_count` says 4, the worker asks a
namespace for its rank, and the warming up of FlashLB is left out. The Swift policy, vllm-ascend's default, is its own
code and serves as the one to compare with.
"""

import json
import logging
import types

import numpy as np
import pytest
import torch

from tests.real_engines.engine_import import prepare

prepare("ascend")

from vllm import plugins  # noqa: E402
from vllm_ascend.eplb.adaptor.vllm_adaptor import VllmEplbAdaptor  # noqa: E402
from vllm_ascend.eplb.core import eplb_utils, eplb_worker  # noqa: E402
from vllm_ascend.eplb.core.policy import policy_factory  # noqa: E402

import eplb  # noqa: E402
from eplb import Placement  # noqa: E402
from eplb.core.dispatch_rule import DispatchRule  # noqa: E402
from eplb.dispatch.engine_dispatch import engine_dispatch  # noqa: E402
from eplb.dispatch.engine_rules import rank_slot_map  # noqa: E402
from eplb.engines.ascend import AscendPolicy, register  # noqa: E402
from eplb.engines.policy import PolicySettings  # noqa: E402
from eplb.errors import FormatError, InputError  # noqa: E402
from eplb.formats.engine_check import check_file  # noqa: E402
from tests.real_engines.installed import put_on_path  # noqa: E402
from tests.real_engines.our_plans import NUM_EXPERTS, NUM_LAYERS, a_load, a_plan, doubled  # noqa: E402

NUM_RANKS = 4
SLOTS = 6
torch.Tensor.npu = lambda tensor: tensor
torch.npu = types.SimpleNamespace(device_count=lambda: NUM_RANKS)


@pytest.fixture
def plan():
    return a_plan(NUM_RANKS, slots_per_rank=SLOTS)


@pytest.fixture
def path(plan, tmp_path):
    eplb.write_placement(plan, tmp_path / "map.json", format="ascend")
    return tmp_path / "map.json"


def configure(path, layer, rank, num_experts=NUM_EXPERTS, num_ranks=NUM_RANKS):
    """What a layer of a rank gets at start: global map [R, E], local map [E], log2phy [E], redundant experts."""
    config = types.SimpleNamespace(expert_map_path=str(path), dynamic_eplb=False, num_redundant_experts=0)
    moe = types.SimpleNamespace(num_experts=num_experts, ep_size=num_ranks, ep_rank=rank)
    return eplb_utils.init_eplb_config(config, layer, moe)


# --- files ------------------------------------------------------------------------------------------------------------


def test_ascend_loads_the_devices_of_every_layer(plan, path):
    check_file(path, "ascend", NUM_RANKS, NUM_EXPERTS)
    for layer, row in enumerate(plan.placement.physical_to_logical_map):
        devices, count = eplb_utils.expert_file_to_tensor(str(path), layer)
        assert (count, devices.dtype) == (NUM_RANKS * SLOTS, torch.int32)
        np.testing.assert_array_equal(devices.reshape(-1), row)
    # The layer after the last is a draft model's: it gets the default layout with the file's redundancy.
    assert eplb_utils.expert_file_to_tensor(str(path), NUM_LAYERS) == (None, NUM_RANKS * SLOTS)
    with pytest.raises(ValueError, match="Invalid"):
        eplb_utils.expert_file_to_tensor(str(path), NUM_LAYERS + 1)


@pytest.mark.parametrize("rank", range(NUM_RANKS))
def test_every_rank_gets_the_maps_that_we_have(rank, plan, path):
    ours = eplb.for_engine(path, ep_size=NUM_RANKS, ep_rank=rank).torch("ascend")
    for layer in range(NUM_LAYERS):
        every, local, log2phy, redundant = configure(path, layer, rank)
        assert redundant == NUM_RANKS * SLOTS - NUM_EXPERTS
        np.testing.assert_array_equal(every, [plan.placement.local_expert_map(r)[layer] for r in range(NUM_RANKS)])
        assert torch.equal(ours.expert_map[layer], local)
        assert torch.equal(ours.logical_to_physical_map[layer], log2phy)
        np.testing.assert_array_equal(rank_slot_map(plan.placement, DispatchRule.ASCEND)[layer, rank], log2phy)


def test_ranks_get_the_load_that_evaluate_predicts(plan, path):
    """Each rank looks its tokens up in its own table: rank % count, so no randomness is left."""
    load = a_load(3)
    found = np.zeros((NUM_LAYERS, NUM_RANKS))
    for layer, tokens in enumerate(load.tokens[0]):
        for rank in range(NUM_RANKS):
            _, _, log2phy, _ = configure(path, layer, rank)
            np.add.at(found[layer], log2phy.numpy() // SLOTS, tokens / NUM_RANKS)
    judged = eplb.evaluate(plan.placement, load, DispatchRule.ASCEND)
    np.testing.assert_allclose(found, judged.rank_load[0], rtol=1e-12)


def test_with_tensor_parallelism_the_replica_is_another(plan):
    """The case that the table of dispatch rules refuses: rotated by TP rank, DP rank and expert."""
    maps = torch.from_numpy(np.stack([plan.placement.local_expert_map(rank)[0] for rank in range(NUM_RANKS)]))
    with_tp = [eplb_utils.generate_log2phy_map(maps, rank, tp_size=2).numpy() for rank in range(NUM_RANKS)]
    without = [eplb_utils.generate_log2phy_map(maps, rank, tp_size=1).numpy() for rank in range(NUM_RANKS)]
    np.testing.assert_array_equal(without, rank_slot_map(plan.placement, DispatchRule.ASCEND)[0])
    assert not np.array_equal(with_tp, without)
    with pytest.raises(InputError, match="rotates the replica"):
        engine_dispatch("ascend", {"tp": "2"})


def test_the_file_that_the_engine_records_is_read(plan, tmp_path):
    maps = np.stack([plan.placement.local_expert_map(rank) for rank in range(NUM_RANKS)], axis=1)
    engine = types.SimpleNamespace(rank_id=0)
    VllmEplbAdaptor._export_tensor_to_file(engine, torch.from_numpy(maps), str(tmp_path / "recorded.json"))
    assert eplb.read_placement(tmp_path / "recorded.json", format="ascend") == Placement(
        plan.placement.physical_to_logical_map, NUM_EXPERTS, eplb.Topology(1, NUM_RANKS, SLOTS)
    )


GOOD = [[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]]


def write_rows(path, rows, num_ranks=2):
    layers = []
    for i, row in enumerate(rows):
        parts = [part.tolist() for part in np.array_split(row, num_ranks)]
        devices = [{"device_id": r, "device_expert": part} for r, part in enumerate(parts)]
        layers.append({"layer_id": i, "device_count": num_ranks, "device_list": devices})
    path.write_text(json.dumps({"moe_layer_count": len(rows), "layer_list": layers}))
    return path


def refusal(path, num_ranks=2):
    try:
        check_file(path, "ascend", num_ranks, 4)
    except FormatError as error:
        return str(error)
    return None


def works(path, row, num_ranks=2):
    """Whether layer 1 is loaded as its row says: every slot is its expert's, and every expert has a place."""
    every, _, log2phy, _ = configure(path, 1, 0, num_experts=4, num_ranks=num_ranks)
    slots = np.array(row).reshape(num_ranks, -1)
    return log2phy.numel() == 4 and all(
        expert >= 0 and local[expert] == slot
        for local, experts in zip(every.tolist(), slots, strict=True)
        for slot, expert in enumerate(experts)
    )


@pytest.mark.parametrize(
    ("row", "death"),
    [
        ([3, 2, 0, 0, 3, 2], RuntimeError),  # expert 1 is missing
        ([0, 2, 1, 0, 1, 2], None),  # expert 3, the last, is missing: loaded, its tokens have no place
        ([3, 2, 1, 0, 3, 0], None),  # expert 0 twice on a device: loaded, one copy is hidden
        ([3, 2, 1, 0, -1, 2], None),  # loaded, -1 taken for the last expert
        ([3, 2, 1, 0, 4, 2], IndexError),
    ],
)
def test_what_ascend_dies_of_or_misreads_is_refused(row, death, tmp_path):
    path = write_rows(tmp_path / "map.json", [GOOD[0], row])
    assert refusal(path) is not None
    if death is None:
        assert not works(path, row)
    else:
        with pytest.raises(death):
            works(path, row)


@pytest.mark.parametrize("seed", range(40))
def test_verdicts_agree_on_random_files(seed, tmp_path):
    rng = np.random.default_rng(seed)
    row = np.array(GOOD[1])
    for _ in range(rng.integers(0, 3)):
        row[rng.integers(6)] = rng.integers(-1, 5)
    path = write_rows(tmp_path / "map.json", [GOOD[0], row])
    try:
        fine = works(path, row.tolist())
    except (IndexError, RuntimeError):
        fine = False
    assert (refusal(path) is None) == fine


def test_devices_of_unequal_size_die_in_both(tmp_path):
    path = write_rows(tmp_path / "map.json", [GOOD[0], [3, 2, 1, 0, 3]])
    with pytest.raises(ValueError, match="expected sequence of length"):
        eplb_utils.expert_file_to_tensor(str(path), 1)
    assert "ValueError" in refusal(path)


# --- the policy -------------------------------------------------------------------------------------------------------


@pytest.fixture
def factory_as_it_was():
    before = dict(vars(policy_factory))
    yield
    vars(policy_factory).update(before)


@pytest.fixture
def a_worker(monkeypatch, factory_as_it_was):
    """Makes a worker with a policy type and what the engine shares with it."""
    monkeypatch.setattr(eplb_worker, "get_ep_group", lambda: types.SimpleNamespace(rank_in_group=0))
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)

    def make(placement, policy_type=2):
        maps = np.stack([placement.local_expert_map(rank) for rank in range(NUM_RANKS)], axis=1)
        return eplb_worker.EplbWorker({"expert_maps": torch.from_numpy(maps.astype(np.int64))}, policy_type)

    return make


def slot_load(placement, tokens):
    """[L, R, S] tokens of each slot, an expert's split evenly over its copies, as vllm-ascend counts."""
    share = tokens / placement.logical_replica_count
    slots = np.take_along_axis(share, placement.physical_to_logical_map.astype(np.int64), axis=1)
    return torch.from_numpy(slots.reshape(NUM_LAYERS, NUM_RANKS, SLOTS).round().astype(np.int64))


def live_placement(worker):
    """The placement in the maps that the worker shares."""
    maps = worker.shared_dict["expert_maps"]
    table = worker.global2local(maps, int(maps.max()) + 1)
    return Placement(table.reshape(NUM_LAYERS, -1).numpy(), NUM_EXPERTS, eplb.Topology(1, NUM_RANKS, SLOTS))


@pytest.mark.parametrize("policy_type", [0, 1, 2, 3])
def test_the_factory_gives_our_policy(policy_type, factory_as_it_was):
    policy = register(policy_type=policy_type)
    if policy_type == 3:  # FlashLB is warmed up first, which compiles for seconds
        policy_factory.warm_up = lambda: None
    assert policy_factory.PolicyFactory.generate_policy(policy_type) is policy


@pytest.mark.parametrize("asked", ["ascend", ""])
def test_vllm_starts_our_plugin_for_ascend(asked, tmp_path, monkeypatch, factory_as_it_was):
    put_on_path(monkeypatch, tmp_path)
    monkeypatch.setenv("EPLB_REGISTER", asked)
    monkeypatch.setenv("VLLM_PLUGINS", "eplb")
    monkeypatch.setattr(plugins, "plugins_loaded", False)
    plugins.load_general_plugins()
    policy = policy_factory.PolicyFactory.generate_policy(2)
    assert isinstance(policy, AscendPolicy) == (asked == "ascend")


@pytest.mark.parametrize("seed", range(5))
def test_the_worker_takes_every_layer_of_ours(seed, a_worker, plan, caplog):
    """`check_expert_placement` puts a layer that breaks its rules back and logs an error."""
    register(AscendPolicy(settings=PolicySettings(target=1.02)))
    worker = a_worker(plan.placement)
    load = slot_load(plan.placement, a_load(seed + 1).tokens[0])
    worker.shared_dict["moe_load"] = load
    update = worker.do_update()
    table = torch.from_numpy(plan.placement.physical_to_logical_map.reshape(NUM_LAYERS, NUM_RANKS, SLOTS)).long()
    _, _, expected = worker.policy.rebalance_experts(table, load)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    found = live_placement(worker)
    np.testing.assert_array_equal(found.physical_to_logical_map.reshape(table.shape), expected)
    assert not np.array_equal(found.physical_to_logical_map, plan.placement.physical_to_logical_map)
    for layer, (_, receive, local, log2phy, layer_id) in enumerate(update):
        assert layer_id == layer
        np.testing.assert_array_equal(local, found.local_expert_map(0)[layer])
        np.testing.assert_array_equal(log2phy, rank_slot_map(found, DispatchRule.ASCEND)[layer, 0])
        before, after = (set(p.physical_to_logical_map[layer, :SLOTS].tolist()) for p in (plan.placement, found))
        assert {expert for _, expert in receive} == after - before


def test_the_check_is_really_there(a_worker, plan, caplog):
    """A policy that doubles an expert on a device is put back."""
    table = plan.placement.physical_to_logical_map.reshape(NUM_LAYERS, NUM_RANKS, SLOTS)
    wrong = doubled(plan.placement).physical_to_logical_map.reshape(table.shape).tolist()
    worker = a_worker(plan.placement)
    worker.policy = types.SimpleNamespace(rebalance_experts=lambda *_: (1, [0], wrong))
    worker.shared_dict["moe_load"] = slot_load(plan.placement, a_load(1).tokens[0])
    worker.do_update()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR]
    np.testing.assert_array_equal(
        live_placement(worker).physical_to_logical_map, plan.placement.physical_to_logical_map
    )


def test_ours_balances_no_worse_than_the_default_policy(a_worker, plan):
    tokens = a_load(7).tokens[0]
    busiest = {}
    for name in ("theirs", "ours"):
        if name == "ours":
            register(AscendPolicy(settings=PolicySettings(target=1.02)))
        worker = a_worker(plan.placement)
        worker.shared_dict["moe_load"] = slot_load(plan.placement, tokens)
        worker.do_update()
        busiest[name] = worker.latest_expert_hotness["update_mean"]
    assert busiest["ours"] <= busiest["theirs"]
