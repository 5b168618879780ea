"""The cost model against plain loops, its file format, and what it refuses."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import eplb
from eplb.core.dispatch_rule import DispatchRule
from eplb.cost import (
    Batch,
    Phase,
    TileRegime,
    model_presets,
    model_sizes,
    named_calibration,
    predict,
    read_calibration,
    read_model_config,
    slot_counts,
    write_calibration,
)
from eplb.cost.ffn_fit import FfnMeasurement, Tile, fit_best, relative_errors
from eplb.cost.grouped_ffn import GroupedFfn
from eplb.cost.links import Link, Links, expected_copies
from eplb.errors import FormatError, InputError, UnknownNameError

SMALL_TILE = TileRegime(
    most_rows_per_slot=16, tile_rows=8, tile_columns=16, tiles_at_once=3, fixed_s=5e-5, expert_s=3e-9, tile_s=2e-9,
    row_s=1e-10, element_s=4e-10, wave_s=2e-6, depth_s=1e-8,
)  # fmt: skip
LARGE_TILE = TileRegime(
    most_rows_per_slot=math.inf, tile_rows=32, tile_columns=32, tiles_at_once=3, fixed_s=4e-5, expert_s=1e-9,
    tile_s=0.0, row_s=3e-10, element_s=9e-10, wave_s=4e-6, depth_s=2e-8,
)  # fmt: skip
FFN = GroupedFfn(kernel="test", regimes=(SMALL_TILE, LARGE_TILE))


def by_hand(slot_tokens, hidden, inner):
    """Seconds of one rank, term by term as the module's head has them."""
    rows = sum(slot_tokens)
    if rows == 0:
        return 0.0
    tile = SMALL_TILE if rows // len(slot_tokens) <= 16 else LARGE_TILE
    used = sum(1 for tokens in slot_tokens if tokens > 0)
    high = sum(math.ceil(tokens / tile.tile_rows) for tokens in slot_tokens)
    seconds = tile.fixed_s + (used * tile.expert_s + high * tile.tile_s + rows * tile.row_s) * hidden * inner
    seconds += rows * (hidden + inner) * tile.element_s
    for columns, depth in ((2 * inner, hidden), (hidden, inner)):
        waves = math.ceil(high * math.ceil(columns / tile.tile_columns) / tile.tiles_at_once)
        seconds += waves * (tile.wave_s + tile.depth_s * depth)
    return seconds


def test_the_kernel_agrees_with_the_terms_added_by_hand():
    rng = np.random.default_rng(0)
    first = np.array([0, 3, 4, 9], dtype=np.int64)
    batches = rng.integers(0, 60, (50, 9)) * (rng.random((50, 9)) < 0.7)
    found = FFN.for_expert(48, 20).seconds(batches, first)
    for batch, seconds in zip(batches.tolist(), found.tolist(), strict=True):
        assert seconds == pytest.approx([by_hand(batch[a:b], 48, 20) for a, b in ((0, 3), (3, 4), (4, 9))], rel=1e-12)
    assert FFN.for_expert(48, 20).seconds(batches[0], first).shape == (3,)


def test_the_fit_finds_the_tiles_and_constants_that_made_the_measurements():
    rng = np.random.default_rng(1)
    measured = []
    for hidden, inner in ((64, 32), (96, 24), (48, 96)):
        for _ in range(60):
            tokens = tuple((rng.integers(0, 80, 6) * (rng.random(6) < 0.8)).tolist())
            if sum(tokens):
                measured.append(FfnMeasurement(hidden, inner, tokens, by_hand(tokens, hidden, inner)))
    candidates = {
        "right": (Tile(16, 8, 16, 3), Tile(math.inf, 32, 32, 3)),
        "wrong": (Tile(math.inf, 64, 64, 1),),
    }
    name, found = fit_best("test", measured, candidates)
    assert name == "right"
    assert relative_errors(found, measured).max() < 1e-6
    assert found.fit.num_points == len(measured)
    with pytest.raises(InputError, match="expected a measurement there"):
        fit_best("test", [one for one in measured if one.rows_per_slot > 16], {"right": candidates["right"]})


def test_a_batch_keeps_every_choice_and_its_slots_keep_every_row():
    load = np.random.default_rng(2).lognormal(3, 1, (2, 16))
    placement = eplb.plan(eplb.ExpertLoad(load), eplb.Topology(2, 2, 5), "greedy").placement
    batch = Batch.sampled(load, num_ranks=4, tokens_per_rank=37, top_k=3)
    assert (batch.source_tokens.sum(axis=(1, 2)) == 4 * 37 * 3).all()
    for layer in range(2):
        counts = slot_counts(placement, layer, batch, DispatchRule.EVEN)
        row = placement.physical_to_logical_map[layer]
        assert np.bincount(row, weights=counts, minlength=16).tolist() == batch.load[layer].tolist()
        for expert in range(16):
            of_expert = counts[row == expert]
            assert of_expert.max() - of_expert.min() <= 1
    even = Batch.evenly_sent(batch.load, num_ranks=4, top_k=3)
    assert (even.load == batch.load).all()
    assert even.tokens_per_rank == 37
    with pytest.raises(InputError, match="expected \\(2, 4, 16\\)"):
        slot_counts(placement, 0, Batch.sampled(load, num_ranks=2, tokens_per_rank=4, top_k=2), DispatchRule.EVEN)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ([1.0, 2.0], r"load has shape \(2,\): expected \[layers, experts\] with tokens in every layer"),
        ([[1.0, 2.0], [0.0, 0.0]], "with tokens in every layer"),
        ([[3.0, -1.0]], "load has counts from -1.0 to 3.0: expected finite and >= 0"),
    ],
)
def test_a_load_without_shares_is_no_source_of_a_batch(load, message):
    with pytest.raises(InputError, match=message):
        Batch.sampled(load, num_ranks=2, tokens_per_rank=4, top_k=1)


def test_the_busiest_link_decides_the_exchange():
    links = Links(Link(100.0, 1e-6, "assumed"), Link(10.0, 5e-6, "assumed"))
    topology = eplb.Topology(2, 2, 1)
    copies = np.zeros((4, 4))
    copies[0, 0], copies[0, 1], copies[2, 1] = 1e9, 3e3, 2e3
    assert links.exchange_s(copies, topology, row_bytes=1e3) == pytest.approx(max(1e-6 + 3e6 / 1e11, 5e-6 + 2e6 / 1e10))
    assert links.exchange_s(np.eye(4) * 1e9, topology, row_bytes=1e3) == 0.0
    with pytest.raises(InputError, match=r"copies has shape \(2, 2\): expected \(4, 4\)"):
        links.exchange_s(copies[:2, :2], topology, row_bytes=1e3)
    reached = expected_copies(np.array([30.0, 10.0]), tokens_per_rank=8, top_k=2)
    assert reached.tolist() == [[8 * (1 - 0.25**2), 8 * (1 - 0.75**2)]] * 2


def test_a_calibration_survives_its_file_and_a_broken_file_is_named(tmp_path):
    path = tmp_path / "gpu.json"
    calibration = named_calibration("h100")
    assert calibration.title == "NVIDIA H100 SXM (formula)"
    write_calibration(calibration, path)
    assert read_calibration(path) == named_calibration(str(path)) == calibration
    good = json.loads(path.read_text())
    for change, message in (
        ({"version": 2}, "version = 2: expected 1"),
        ({"format": "plan"}, "format = 'plan'"),
        ({"gpus": 1}, "unknown key 'gpus'"),
        ({"provenance": "guess"}, "unknown provenance 'guess'"),
        ({"ffn": {"bf16": {**good["ffn"]["bf16"], "regimes": []}}}, "expected ascending numbers"),
        ({"links": {**good["links"], "intra_node": {"gbps": 0, "latency_s": 0, "source": ""}}}, "gbps = 0"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(FormatError, match=message):
            read_calibration(path)
    with pytest.raises(UnknownNameError, match="unknown GPU"):
        named_calibration("h300")


def test_a_decode_step_follows_experts_and_a_prefill_step_tokens():
    model, gpu = model_sizes("deepseek-v3"), named_calibration("h100")
    load = np.ones((1, 256))
    topology = eplb.Topology.for_experts(256, num_ranks=32, num_nodes=4)
    placement = eplb.plan(eplb.ExpertLoad(load), topology, "linear").placement

    def step(tokens):
        batch = Batch.sampled(load, num_ranks=32, tokens_per_rank=tokens, top_k=8)
        return predict(placement, batch, model, gpu)

    assert step(32).makespan_s[0] / step(8).makespan_s[0] < 1.3
    assert 3.5 < step(16384).makespan_s[0] / step(4096).makespan_s[0] < 4.5
    one = step(Phase.DECODE.tokens_per_rank)
    assert one.step_s == pytest.approx(one.makespan_s + one.dispatch_s + one.combine_s)
    assert one.waiting_s[0] == pytest.approx(one.ffn_s.max() - one.ffn_s.mean())
    with pytest.raises(UnknownNameError, match="bf16, fp8"):
        predict(placement, Batch.sampled(load, num_ranks=32, tokens_per_rank=1, top_k=8), model, gpu, dtype="mxfp4")
    for wrong in (-1.0, np.inf):
        with pytest.raises(InputError, match="expected finite and >= 0"):
            Batch.sampled([[wrong, 5.0]], num_ranks=2, tokens_per_rank=1, top_k=1)
    batch = Batch.sampled(load, num_ranks=32, tokens_per_rank=1, top_k=8)
    with pytest.raises(InputError, match="has 128 experts: expected 256"):
        predict(placement, batch, model_sizes("qwen3-235b-a22b"), gpu)
    for layer in (-1, 1):
        with pytest.raises(InputError, match=f"layer {layer}: expected 0 <= layer < 1"):
            predict(placement, batch, model, gpu, layers=(layer,))
    unequal = replace(topology, rank_speed=[1.0] * 31 + [0.5])
    with pytest.raises(InputError, match="rank_speed"):
        predict(
            eplb.Placement(placement.physical_to_logical_map, 256, unequal),
            Batch.sampled(load, num_ranks=32, tokens_per_rank=1, top_k=8),
            model,
            gpu,
        )


def test_presets_and_configurations_of_hugging_face(tmp_path):
    assert {"deepseek-v3", "qwen3-235b-a22b", "gpt-oss-120b", "moe-435m"} <= set(model_presets())
    assert model_sizes("deepseek-v3").expert_bytes("fp8") == 44_040_192
    config = {
        "model_type": "deepseek_v3", "hidden_size": 7168, "moe_intermediate_size": 2048, "intermediate_size": 18432,
        "num_hidden_layers": 61, "first_k_dense_replace": 3, "n_routed_experts": 256, "num_experts_per_tok": 8,
        "n_group": 8, "topk_group": 4, "n_shared_experts": 1, "quantization_config": {"quant_method": "fp8"},
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    expected = {**vars_of(model_sizes("deepseek-v3")), "name": "deepseek_v3"}
    assert vars_of(read_model_config(path)) == expected
    assert model_sizes(str(tmp_path)) == read_model_config(path)
    del config["n_routed_experts"]
    path.write_text(json.dumps(config))
    with pytest.raises(FormatError, match="expected a Mixture-of-Experts model"):
        read_model_config(path)
    with pytest.raises(UnknownNameError, match="unknown model"):
        model_sizes("gpt-2")


def vars_of(model):
    return {name: getattr(model, name) for name in model.__dataclass_fields__}


def test_the_shipped_h200_table_was_measured_and_lies_near_its_datasheet():
    measured, formula = named_calibration("h200"), named_calibration("h100")
    assert (str(measured.provenance), str(formula.provenance)) == ("measured", "formula")
    for dtype, bytes_per_weight, dense in (("bf16", 2, 989e12), ("fp8", 1, 1979e12)):
        ffn = measured.ffn_of(dtype)
        assert ffn.fit is not None
        assert {"7168x2048", "4096x1536", "2880x2880", "512x128"} == set(ffn.fit.shapes)
        deepseek = ffn.for_expert(7168, 2048)
        rank = np.array([0, 9], dtype=np.int64)
        weights = 9 * 3 * 7168 * 2048
        (streaming,) = deepseek.seconds((1,) * 9, rank)
        assert 1 < streaming / (weights * bytes_per_weight / 4.8e12) < 2.5
        (multiplying,) = deepseek.seconds((3641,) * 9, rank)
        assert 1 < multiplying / (2 * weights * 3641 / dense) < 2.5
