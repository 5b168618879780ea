"""SGLang plans with our algorithm, moves real weights between our plans, and its recordings are read; SGLang 0.5.23.

Exercised: `load_plugins`, which finds our entry point, `init_by_eplb` and `rebalance_experts` of `eplb_algorithms`
after `register`, SGLang's "deepseek" algorithms as those to compare with, `ExpertLocationUpdater` over 2 and 4 gloo
processes with SGLang's own canary switched on, and `_ExpertDistributionRecorderReal` in the modes stat, per_pass and
per_token up to the files that it writes. Stubbed besides `engine_import` and `sglang_server`: `torch.cpu.empty_cache`,
which only accelerators have; `get_device`, which looks for one; the batch of a forward pass, of which the recorder
reads five fields, is a namespace.
"""

import os
import types

import numpy as np
import pytest
import torch

from tests.real_engines.engine_import import prepare

prepare("sglang")

from sglang.srt import plugins  # noqa: E402
from sglang.srt.eplb import eplb_algorithms, expert_distribution, expert_location  # noqa: E402
from sglang.srt.eplb.eplb_algorithms import EplbAlgorithm  # noqa: E402
from sglang.srt.eplb.eplb_simulator import reader  # noqa: E402
from sglang.srt.eplb.expert_location_updater import ExpertLocationUpdater  # noqa: E402
from sglang.srt.model_executor.forward_batch_info import ForwardMode  # noqa: E402

import eplb  # noqa: E402
from eplb.engines.policy import PolicySettings  # noqa: E402
from eplb.engines.sglang import SglangAlgorithm, register  # noqa: E402
from tests.real_engines.installed import put_on_path  # noqa: E402
from tests.real_engines.our_plans import DENSE_LAYERS, NUM_EXPERTS, NUM_LAYERS, SHAPE, a_load, a_plan  # noqa: E402
from tests.real_engines.processes import run_ranks  # noqa: E402
from tests.real_engines.sglang_server import forget_live_map, put_model_in, serve  # noqa: E402

NUM_HIDDEN = DENSE_LAYERS + NUM_LAYERS
REDUNDANT = 8
torch.cpu.empty_cache = lambda: None
expert_distribution.get_device = lambda: "cpu"


@pytest.fixture(autouse=True)
def before_the_start():
    forget_live_map()


def counts(seed):
    """[layers of the model, E] of SGLang: no tokens in dense layers."""
    rows = torch.zeros(NUM_HIDDEN, NUM_EXPERTS, dtype=torch.int64)
    rows[DENSE_LAYERS:] = torch.from_numpy(a_load(seed).tokens[0]).long()
    return rows


@pytest.fixture
def registered():
    before = eplb_algorithms.rebalance_experts
    yield register(PolicySettings(target=1.02))
    eplb_algorithms.rebalance_experts = before


# --- the algorithm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["deepseek", "deepseek_hierarchical"])
def test_the_setting_deepseek_plans_as_sglang_does(name, seed):
    settings = PolicySettings(strategy="deepseek")
    hierarchical = name == "deepseek_hierarchical"
    arguments = (counts(seed)[None, DENSE_LAYERS:], NUM_EXPERTS + REDUNDANT, 6, 4 if hierarchical else None, 2)
    theirs = eplb_algorithms.rebalance_experts(*arguments, EplbAlgorithm[name])
    ours = SglangAlgorithm(settings=settings).rebalance_experts(*arguments, EplbAlgorithm[name])
    assert [t.dtype for t in ours] == [t.dtype for t in theirs]
    assert torch.equal(ours[2], theirs[2])  # copies weigh the same: which of them is placed first is left open
    assert ours[1].shape == theirs[1].shape


def test_sglang_starts_with_our_algorithm(registered):
    model = put_model_in(num_groups=4)
    with serve(4, redundant=REDUNDANT, ep_dispatch_algorithm="dynamic"):
        found = expert_location.ExpertLocationMetadata.init_by_eplb(model, counts(0))
    expected, _, logcnt = SglangAlgorithm(settings=registered.settings).rebalance_experts(
        counts(0)[None], NUM_EXPERTS + REDUNDANT, 6, 4, 1, EplbAlgorithm.deepseek
    )
    assert torch.equal(found.physical_to_logical_map, expected)
    assert torch.equal(found.logical_to_all_physical_map_num_valid, logcnt)


@pytest.mark.parametrize("asked", ["sglang", ""])
def test_sglang_starts_our_plugin_which_does_what_it_is_asked(asked, tmp_path, monkeypatch):
    put_on_path(monkeypatch, tmp_path)
    monkeypatch.setenv("EPLB_REGISTER", asked)
    monkeypatch.setattr(plugins, "_plugins_loaded", False)
    monkeypatch.setattr(eplb_algorithms, "rebalance_experts", eplb_algorithms.rebalance_experts)
    before = eplb_algorithms.rebalance_experts
    plugins.load_plugins()
    assert (eplb_algorithms.rebalance_experts is not before) == (asked == "sglang")


def test_a_rebalance_starts_from_the_live_map(registered):
    """Twice the same counts: SGLang's own algorithm is never told the live map, ours finds it and moves nothing."""
    model = put_model_in(num_groups=4)
    with serve(4, redundant=REDUNDANT, ep_dispatch_algorithm="dynamic"):
        live = expert_location.ExpertLocationMetadata.init_by_mapping(
            model, sglang_rows(a_plan(4, slots_per_rank=6)), 0
        )
        expert_location.set_global_expert_location_metadata(live, allow_overwrite=True)
        same = expert_location.ExpertLocationMetadata.init_by_eplb(model, counts(0))
        other = expert_location.ExpertLocationMetadata.init_by_eplb(model, counts(3))
    assert torch.equal(same.physical_to_logical_map, live.physical_to_logical_map)
    moved = other.physical_to_logical_map != live.physical_to_logical_map
    assert 0 < moved[DENSE_LAYERS:].float().mean() < 0.5


# --- moving weights ---------------------------------------------------------------------------------------------------


def sglang_rows(plan):
    """The map with a row for every layer of the model, as in our files."""
    phy2log = plan.placement.physical_to_logical_map.astype(np.int64)
    return torch.from_numpy(np.concatenate([phy2log[[0] * DENSE_LAYERS], phy2log]))


def weights_of(rows, rank, num_ranks):
    """{layer: weights of the rank's slots}: made of layer and expert, so that it shows whose they are."""
    local = rows.reshape(NUM_HIDDEN, num_ranks, -1)[:, rank].double()
    return {
        layer: [(100 * layer + local[layer])[:, None].repeat(1, 7), (local[layer] / 7 + layer).float()[:, None]]
        for layer in range(DENSE_LAYERS, NUM_HIDDEN)
    }


def update(rank, num_ranks, file, before, after, num_nodes):
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=num_ranks)
    os.environ["SGLANG_EXPERT_LOCATION_UPDATER_CANARY"] = "1"
    model = put_model_in()
    redundant = before.shape[1] - NUM_EXPERTS
    with serve(num_ranks, redundant=redundant, nnodes=num_nodes, ep_dispatch_algorithm="dynamic"):
        old, new = (
            expert_location.ExpertLocationMetadata.init_by_mapping(model, rows, rank) for rows in (before, after)
        )
        expert_location.set_global_expert_location_metadata(old, allow_overwrite=True)
        weights, stale = (weights_of(before, rank, num_ranks) for _ in range(2))
        lost = ExpertLocationUpdater().update(weights, new, sorted(weights), num_nodes, rank)
        live = expert_location.get_global_expert_location_metadata().physical_to_logical_map
    right = weights_of(after, rank, num_ranks)
    equal = all(torch.equal(a, b) for layer in weights for a, b in zip(weights[layer], right[layer], strict=True))
    moved = any(not torch.equal(weights[layer][0], stale[layer][0]) for layer in weights)
    return equal, moved, lost, live.numpy()


@pytest.mark.parametrize(("num_ranks", "num_nodes"), [(2, 1), (4, 2)])
def test_sglang_moves_weights_from_one_plan_to_another(num_ranks, num_nodes):
    slots = 24 // num_ranks
    before, after = (sglang_rows(a_plan(num_ranks, slots_per_rank=slots, num_nodes=num_nodes, seed=s)) for s in (1, 2))
    for equal, moved, lost, live in run_ranks(update, num_ranks, before, after, num_nodes):
        assert equal
        assert moved
        assert lost == {}
        np.testing.assert_array_equal(live[DENSE_LAYERS:], after[DENSE_LAYERS:])


# --- recordings -------------------------------------------------------------------------------------------------------

PASSES = 3
TOKENS = 40


def routing(num_passes=PASSES):
    """[passes, layers, tokens, 4] logical experts, different within a token."""
    rng = np.random.default_rng(0)
    return rng.permuted(np.tile(np.arange(NUM_EXPERTS), (num_passes, NUM_LAYERS, TOKENS, 1)), axis=3)[..., :4]


def counted(experts):
    """[passes, L, E] of logical experts [passes, L, tokens, K]."""
    return np.stack([[np.bincount(layer.ravel(), minlength=NUM_EXPERTS) for layer in one] for one in experts])


def record(rank, num_ranks, file, mode, folder, experts):
    """Let the recorder see passes with these experts, and dump."""
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=num_ranks)
    os.environ["SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR"] = folder
    model, rows = put_model_in(), sglang_rows(a_plan(num_ranks, slots_per_rank=24 // num_ranks))
    fields = {"expert_distribution_recorder_mode": mode, "expert_distribution_recorder_buffer_size": 8}
    server = serve(num_ranks, redundant=REDUNDANT, deepep_mode="normal", chunked_prefill_size=64, **fields)
    with server:
        metadata = expert_location.ExpertLocationMetadata.init_by_mapping(model, rows, rank)
        recorder = expert_distribution.ExpertDistributionRecorder.init_new(metadata, rank)
        recorder.start_record()
        own = np.array_split(np.arange(TOKENS), num_ranks)[rank]
        for number, one in enumerate(experts):
            batch = types.SimpleNamespace(
                input_ids=torch.arange(own.size), positions=torch.arange(own.size), extend_seq_lens_cpu=[own.size],
                forward_mode=ForwardMode.EXTEND, extend_num_tokens=own.size,
            )  # fmt: skip
            with recorder.with_forward_pass(number, batch):
                for layer in range(NUM_LAYERS):
                    chosen = torch.from_numpy(one[layer][own])
                    slots = metadata.logical_to_all_physical_map[layer + DENSE_LAYERS, chosen, 0]
                    with recorder.with_current_layer(layer + DENSE_LAYERS):
                        recorder.on_select_experts(slots)
        recorder.stop_record()
        recorder.dump_record()


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_our_reader_counts_what_the_recorder_saw(num_ranks, tmp_path):
    experts = routing()
    run_ranks(record, num_ranks, "stat", str(tmp_path), experts)
    (path,) = tmp_path.glob("*.pt")
    load = eplb.read_load(path)
    np.testing.assert_array_equal(load.tokens, counted(experts))
    assert load.shape.moe_layer_ids == SHAPE.moe_layer_ids
    assert load.shape.num_hidden_layers == NUM_HIDDEN


@pytest.mark.parametrize("mode", ["per_pass", "per_token"])
def test_our_reader_counts_passes_as_sglangs_reader_does(mode, tmp_path):
    experts = routing()
    run_ranks(record, 2, mode, str(tmp_path), experts)
    load = eplb.read_load(tmp_path)
    np.testing.assert_array_equal(load.tokens, counted(experts))
    theirs = reader.read_mode_per_pass(tmp_path)
    counts_of_slots = theirs["global_physical_count_of_forward_pass"]
    rows = theirs["last_physical_to_logical_map"]
    logical = reader.convert_global_physical_count_to_logical_count(counts_of_slots, NUM_HIDDEN, NUM_EXPERTS, rows)
    np.testing.assert_array_equal(load.tokens, logical[:, DENSE_LAYERS:])


def test_our_trace_reader_finds_every_token(tmp_path):
    experts = routing()
    run_ranks(record, 2, "per_token", str(tmp_path), experts)
    trace = eplb.read_trace(tmp_path, num_experts=NUM_EXPERTS)
    found = np.concatenate([batch.expert_ids for batch in trace.batches()])
    assert sorted(map(repr, np.sort(found, axis=2).tolist())) == sorted(
        map(repr, np.sort(experts.transpose(0, 2, 1, 3).reshape(-1, NUM_LAYERS, 4), axis=2).tolist())
    )


def test_the_comparison_sees_a_pass_that_is_missing(tmp_path):
    run_ranks(record, 2, "stat", str(tmp_path), routing(2))
    (path,) = tmp_path.glob("*.pt")
    assert not np.array_equal(eplb.read_load(path).tokens, counted(routing(3)))
