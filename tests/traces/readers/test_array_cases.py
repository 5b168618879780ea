"""The public file shapes that hold arrays and JSON are read as their truth, or refused with the sentence that helps."""

from pathlib import Path

import numpy as np
import pytest

from eplb_traces import InputError, read_load, read_trace
from eplb_traces.readers import ReadOptions, read
from tests.traces.examples import joined

CASES = Path(__file__).resolve().parents[1] / "cases"
TRUTH = np.loadtxt(CASES / "TRUTH-4x16.txt")
IDS_TLK = CASES / "06a-ids-TLK-under-another-name.npz"
LOGITS = CASES / "06c-tokens-are-token-ids-beside-logits.npz"
ROUTES = CASES / "07a-vllm-logger-moe_routes.jsonl"
LISTS = CASES / "08-vllm-prime-rl-routed_experts-nested-lists.jsonl"
OMNI = CASES / "09-omni-dump-with-redundancy"


@pytest.mark.parametrize(
    "name", ["11a-lmdeploy-rank0_step9_experts_counts.json", "11e-vllm-ascend-expert_load_view-bare-tensor.pt"]
)
def test_bare_counts_are_a_load(name):
    if name.endswith(".pt"):
        pytest.importorskip("torch")
    reading = read(CASES / name)
    np.testing.assert_array_equal(reading.load().tokens, [TRUTH])
    assert reading.form == "counts [layers, experts]"
    assert reading.content.shape.moe_layer_ids is None


@pytest.mark.parametrize("name", ["06a-ids-TLK-under-another-name.npz", "06b-ids-TK-one-layer.npy"])
def test_ids_need_the_number_of_experts(name):
    with pytest.raises(InputError, match=r"looks like expert ids .* give num_experts \(--num-experts\)"):
        read_load(CASES / name)
    trace = read_trace(CASES / name, 16)
    load = read_load(CASES / name, num_experts=16)
    assert trace.num_tokens == 40
    assert load.tokens.sum() == 40 * 2 * trace.shape.num_layers


def test_ids_under_another_name_are_counted_as_they_are():
    ids = np.load(IDS_TLK)["selected_experts"]
    counts = [np.bincount(ids[:, layer].ravel(), minlength=16) for layer in range(4)]
    np.testing.assert_array_equal(read_load(IDS_TLK, num_experts=16).total, counts)


def test_logits_beside_token_ids_are_choices():
    with pytest.raises(InputError, match=r"router_logits.* give top_k \(--top-k\)"):
        read_load(LOGITS)
    with pytest.raises(InputError, match=r"\[tokens, layers, experts\] or \[layers, tokens, experts\].*--moe-layers"):
        read_load(LOGITS, top_k=2)
    reading = read(LOGITS, ReadOptions(top_k=2, moe_layer_ids=(3, 4, 5, 6)))
    logits = np.load(LOGITS)["router_logits"].astype(float)
    largest = np.sort(logits, axis=2)[:, :, -2:].sum()
    ids = joined(reading.content)["expert_ids"]
    assert np.take_along_axis(logits.swapaxes(0, 1), ids.astype(int), axis=2).sum() == pytest.approx(largest)
    assert reading.content.shape.moe_layer_ids == (3, 4, 5, 6)
    assert "arrays tokens left out" in reading.notes


def test_records_of_a_logger_are_a_trace():
    import json

    lines = [json.loads(line) for line in ROUTES.read_text().splitlines()]
    counts = np.zeros((2, 16))
    for record in lines[1:]:
        counts[record["layer"], record["topk_ids"]] += 1
    trace = read_trace(ROUTES)
    np.testing.assert_array_equal(trace.load().total, counts)
    assert (trace.shape.num_experts, trace.shape.top_k, trace.shape.moe_layer_ids) == (16, 2, (0, 1))
    with pytest.raises(InputError, match="num_experts = 8: the file says 16"):
        read_trace(ROUTES, 8)


def test_nested_lists_are_a_trace():
    import json

    record = json.loads(LISTS.read_text().splitlines()[0])
    ids = np.array(record["choices"][0]["routed_experts"])
    with pytest.raises(InputError, match="give num_experts"):
        read_trace(LISTS)
    np.testing.assert_array_equal(joined(read_trace(LISTS, 16))["expert_ids"][: len(ids)], ids)


def test_counts_of_redundant_slots_need_the_pattern():
    with pytest.raises(InputError, match=r"20 slots and the model 16 experts.*--recorded-under"):
        read_load(OMNI, num_experts=16)
    with pytest.raises(InputError, match=r"20 slots .*--recorded-under"):
        read_load(OMNI)
    pattern = np.tile(np.arange(20) % 16, (4, 1))
    load = read_load(OMNI, recorded_under=pattern)
    files = sorted(OMNI.iterdir())
    slots = np.concatenate([np.loadtxt(file) for file in files], axis=1)
    expected = slots[:, :16].copy()
    expected[:, :4] += slots[:, 16:]
    np.testing.assert_array_equal(load.total, expected)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "npy", "parquet", "pt"])
def test_a_git_lfs_pointer_is_named(suffix):
    with pytest.raises(InputError, match=r"Git LFS pointer.*git lfs pull"):
        read_load(CASES / f"10-git-lfs-pointer.{suffix}")


@pytest.mark.parametrize("num_experts", [None, 4])
def test_a_placement_pattern_is_no_load(num_experts):
    with pytest.raises(InputError, match="only 0 and 1: a placement pattern or a mask, not counts"):
        read_load(CASES / "15-omni-layers-with-unlike-redundancy.npy", num_experts=num_experts)
