"""Each writer's file goes through a loader written here from the description of the engine's own."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from eplb.formats import write_plan
from tests.generators import formats_examples, plans

torch = pytest.importorskip("torch")
yaml = pytest.importorskip("yaml")

engine_plans = plans(layer_ids=True, equal=True, duplicates=False)
with_duplicates = plans(layer_ids=True, equal=True)


def load_as_sglang(path, num_hidden_layers, ep_size):
    """The keys are keyword arguments of a function of one; rows go by the layer's absolute index."""

    def init_by_mapping(physical_to_logical_map):
        return torch.as_tensor(physical_to_logical_map, dtype=torch.int64)

    data = torch.load(path, weights_only=True) if path.suffix == ".pt" else json.loads(path.read_text())
    rows = init_by_mapping(**data)
    assert rows.shape[0] == num_hidden_layers
    assert rows.shape[1] % ep_size == 0
    num_experts = int(rows.max()) + 1
    for row in rows:  # a layer in which an expert has no slot is a division by zero
        assert torch.bincount(row, minlength=num_experts).min() > 0
    return rows.numpy()


def load_as_ascend(path):
    """Lists go by their order; the per-rank map has one place for an expert; redundancy comes from any layer."""
    assert path.suffix == ".json"
    data = json.loads(path.read_text())
    layers = data["layer_list"][: data["moe_layer_count"]]
    tensor = torch.tensor([[device["device_expert"] for device in layer["device_list"]] for layer in layers])
    local_maps = torch.full((*tensor.shape[:2], int(tensor.max()) + 1), -1)
    for layer, devices in enumerate(tensor):
        for device, experts in enumerate(devices):
            local_maps[layer, device, experts] = torch.arange(len(experts))
    assert ((local_maps >= 0).sum(dim=2) == tensor.shape[2]).all(), "an expert was hidden"
    return tensor.numpy()


def load_as_trtllm(path, moe_layer_ids, num_experts, ep_size):
    """A model of three fields that forbids others; each MoE layer looks its list up by its index."""
    data = yaml.safe_load(path.read_text())
    assert set(data) <= {"num_slots", "initial_global_assignments", "layer_updates_per_iter"}
    assert isinstance(data["layer_updates_per_iter"], int)
    assert data["num_slots"] % ep_size == 0
    assert data["num_slots"] >= num_experts
    assert all(type(key) is int for key in data["initial_global_assignments"])
    rows = [data["initial_global_assignments"][layer] for layer in moe_layer_ids]
    assert all(len(row) == data["num_slots"] and set(row) == set(range(num_experts)) for row in rows)
    return np.array(rows)


def load_as_vllm(path, num_layers):
    if path.suffix == ".jsonl":
        record = json.loads(path.read_text().splitlines()[0])
        assert (record["record_type"], record["version"]) == ("eplb_initial_mapping", 1)
        rows = [record["initial_global_assignments"][str(layer)] for layer in range(num_layers)]
        assert all(len(row) == record["num_slots"] for row in rows)
        assert record["num_slots"] - record["num_redundant_experts"] == len(set(rows[0]))
        return np.array(rows)
    rows = json.loads(path.read_text())
    return np.array(rows if isinstance(rows[0], list) else [rows] * num_layers)


def load_as_omni(path, world_size, num_layers, num_experts):
    """[R][L] lists of experts by local position, the number of lower ids on the rank."""
    pattern = np.load(path).astype(np.int32)
    assert pattern.shape == (world_size, num_layers, num_experts)
    held = pattern.sum(axis=2)
    assert (held.max() * world_size) == held.sum(axis=0).max(), "a rank is fuller than its layer's mean"
    positions = [[{e: int(row[:e].sum()) for e in np.flatnonzero(row)} for row in rank] for rank in pattern]
    return [[sorted(layer, key=layer.__getitem__) for layer in rank] for rank in positions]


@pytest.mark.parametrize("suffix", [".json", ".pt"])
@given(plan=with_duplicates)
@formats_examples
def test_sglang_loads_every_moe_layer(suffix, plan):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"plan{suffix}"
        write_plan(plan, path, "sglang")
        rows = load_as_sglang(path, plan.shape.num_hidden_layers, plan.placement.topology.num_ranks)
    np.testing.assert_array_equal(rows[list(plan.shape.moe_layer_ids)], plan.placement.physical_to_logical_map)


@given(plan=engine_plans)
@formats_examples
def test_ascend_loads_every_device(plan):
    with tempfile.TemporaryDirectory() as folder:
        write_plan(plan, Path(folder) / "plan.json", "ascend")
        devices = load_as_ascend(Path(folder) / "plan.json")
    assert devices.shape[1] == plan.placement.topology.num_ranks
    np.testing.assert_array_equal(devices.reshape(len(devices), -1), plan.placement.physical_to_logical_map)


@given(plan=with_duplicates)
@formats_examples
def test_trtllm_loads_every_layer_by_its_id(plan):
    placement = plan.placement
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.yaml"
        write_plan(plan, path, "trtllm")
        rows = load_as_trtllm(path, plan.shape.moe_layer_ids, placement.num_experts, placement.topology.num_ranks)
    np.testing.assert_array_equal(rows, placement.physical_to_logical_map)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@given(plan=with_duplicates)
@formats_examples
def test_vllm_proposals_load_every_layer(suffix, plan):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"plan{suffix}"
        write_plan(plan, path, "vllm")
        rows = load_as_vllm(path, plan.placement.num_layers)
    np.testing.assert_array_equal(rows, plan.placement.physical_to_logical_map)


@given(plan=engine_plans)
@formats_examples
def test_omni_loads_every_rank_in_ascending_order(plan):
    placement = plan.placement
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.npy"
        write_plan(plan, path, "omni")
        held = load_as_omni(path, placement.topology.num_ranks, placement.num_layers, placement.num_experts)
    slots = placement.topology.num_slots // placement.topology.num_ranks
    expected = np.sort(placement.physical_to_logical_map.reshape(placement.num_layers, -1, slots), axis=2)
    np.testing.assert_array_equal(np.array(held), expected.transpose(1, 0, 2))


@given(plan=with_duplicates)
@formats_examples
def test_deepseek_arrays_are_what_the_function_returns(plan):
    placement = plan.placement
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.npz"
        write_plan(plan, path, "deepseek")
        with np.load(path) as arrays:
            phy2log, log2phy, logcnt = arrays["phy2log"], arrays["log2phy"], arrays["logcnt"]
            assert int(arrays["num_gpus"]) == placement.topology.num_ranks
    assert {a.dtype for a in (phy2log, log2phy, logcnt)} == {np.dtype(np.int64)}
    assert log2phy.shape[2] == logcnt.max()
    for layer, row in enumerate(phy2log):
        for expert in range(placement.num_experts):
            slots = np.flatnonzero(row == expert).tolist()
            padding = [-1] * (log2phy.shape[2] - len(slots))
            assert log2phy[layer, expert].tolist() == slots + padding
            assert logcnt[layer, expert] == len(slots)
