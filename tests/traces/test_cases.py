"""Every file of `cases` is read as the load or the choices that it holds, or refused with the sentence that helps."""

import json
from pathlib import Path

import numpy as np
import pytest

from eplb.formats import ReadHints, read_plan
from eplb_traces import InputError
from eplb_traces.readers import ReadOptions, read
from tests.traces.examples import joined

CASES = Path(__file__).resolve().parent / "cases"
TRUTH = np.loadtxt(CASES / "TRUTH-4x16.txt")
TRUTH_12x8 = np.loadtxt(CASES / "TRUTH-12x8.txt")
NO_DATA = {"README.md", "TRUTH-4x16.txt", "TRUTH-12x8.txt"}
LAYERS = (3, 4, 5, 6)

IDS = "06a-ids-TLK-under-another-name.npz"
IDS_TK = "06b-ids-TK-one-layer.npy"
LOGITS = "06c-tokens-are-token-ids-beside-logits.npz"
ROUTES = "07a-vllm-logger-moe_routes.jsonl"
LISTS = "08-vllm-prime-rl-routed_experts-nested-lists.jsonl"
OMNI = "09-omni-dump-with-redundancy"
COUNTS = ("11a-lmdeploy-rank0_step9_experts_counts.json", "11e-vllm-ascend-expert_load_view-bare-tensor.pt")
COLD = "04a-sparse-last-two-experts-cold.csv"
YAML = "13a-trtllm-yaml-document-marker.yaml"
PATTERN = "15-omni-layers-with-unlike-redundancy.npy"


def cold_truth():
    cold = TRUTH.copy()
    cold[:, 14:] = 0
    return cold


def omni_truth():
    """Counts of 20 slots, of which the last four hold experts 0 to 3 once more."""
    slots = np.concatenate([np.loadtxt(file) for file in sorted((CASES / OMNI).iterdir())], axis=1)
    return slots[:, :16] + np.pad(slots[:, 16:], ((0, 0), (0, 12)))


def ids_of_records():
    """[tokens, layers, top-k] of the logger's lines, requests in order of appearance."""
    found = {}
    for record in map(json.loads, (CASES / ROUTES).read_text().splitlines()):
        if "layer" in record:
            found.setdefault((record["req_id"], record["token_idx"]), {})[record["layer"]] = record["topk_ids"]
    return np.array([[of_token[layer] for layer in sorted(of_token)] for of_token in found.values()])


def ids_of_logits():
    """[tokens, layers, 2] largest of the router logits [layers, tokens, experts]."""
    logits = np.load(CASES / LOGITS)["router_logits"].astype(float).swapaxes(0, 1)
    return np.argsort(-logits, axis=2, kind="stable")[:, :, :2]


def ids_of_lists():
    record = json.loads((CASES / LISTS).read_text())
    return np.array(record["choices"][0]["routed_experts"])


# (file, options, truth, layer ids): the truth is a load [layers, experts], or ids [tokens, layers, top-k] of a trace.
LOADS = [
    ("01a-sglang-0.4.5-layer_id-expert_id-count.csv", {}, TRUTH, (0, 1, 2, 3)),
    ("01b-llamacpp-layer-expert-count.csv", {}, TRUTH, (0, 1, 2, 3)),
    ("02a-wide-layer_id-first-column.csv", {}, TRUTH, (0, 1, 2, 3)),
    ("02c-pandas-index-false-numeric-header.csv", {}, TRUTH, None),
    ("02c-pandas-index-false-numeric-header.csv", {"moe_layer_ids": LAYERS}, TRUTH, LAYERS),
    ("03a-long-form-layers-3-to-6.csv", {}, TRUTH, LAYERS),
    ("03a-long-form-layers-3-to-6.csv", {"num_hidden_layers": 7, "moe_layer_ids": LAYERS}, TRUTH, LAYERS),
    ("03b-long-form-every-second-layer.csv", {}, TRUTH, (0, 2, 4, 6)),
    (COLD, {"num_experts": 16}, cold_truth(), (0, 1, 2, 3)),
    ("05a-wide-layers-string-sorted.csv", {}, TRUTH_12x8, tuple(range(12))),
    *((name, {}, TRUTH, None) for name in COUNTS),
    *((name, {"num_experts": 16, "moe_layer_ids": LAYERS}, TRUTH, LAYERS) for name in COUNTS),
    (OMNI, {"recorded_under": np.tile(np.arange(20) % 16, (4, 1))}, omni_truth(), None),
]
TRACES = [
    (IDS, {"num_experts": 16, "moe_layer_ids": LAYERS}, np.load(CASES / IDS)["selected_experts"], LAYERS),
    (IDS_TK, {"num_experts": 16}, np.load(CASES / IDS_TK)[:, None], None),
    (LOGITS, {"top_k": 2, "moe_layer_ids": LAYERS}, ids_of_logits(), LAYERS),
    (ROUTES, {}, ids_of_records(), (0, 1)),
    (LISTS, {"num_experts": 16}, ids_of_lists(), (0, 1, 2, 3)),
]
REFUSED = [
    ("01a-sglang-0.4.5-layer_id-expert_id-count.csv", {"num_experts": 8}, "an expert 15: num_experts = 8"),
    ("02a-wide-layer_id-first-column.csv", {"num_experts": 17}, "num_experts = 17: the file has 16"),
    ("03a-long-form-layers-3-to-6.csv", {"num_hidden_layers": 6}, "num_hidden_layers = 6: the file has a layer 6"),
    ("03b-long-form-every-second-layer.csv", {"moe_layer_ids": (0, 1, 2, 3)}, "the file has no layer 1, it has 0, 2"),
    (COLD, {}, r"largest expert id is 13 .* may have more than 14 experts: give num_experts \(--num-experts\)"),
    (COLD, {"num_experts": 12}, "the file has an expert 13: num_experts = 12"),
    (IDS, {}, r"selected_experts, .*looks like expert ids .* give num_experts \(--num-experts\)"),
    (IDS, {"num_experts": 16}, r"\[tokens, layers, top-k\] or \[layers, tokens, top-k\]: give .*--moe-layers"),
    (IDS_TK, {}, r"looks like expert ids .* give num_experts \(--num-experts\)"),
    (LOGITS, {}, r"router_logits.* give top_k \(--top-k\)"),
    (LOGITS, {"top_k": 2}, r"\[tokens, layers, experts\] or \[layers, tokens, experts\].*--moe-layers"),
    (ROUTES, {"num_experts": 8}, "num_experts = 8: the file says 16"),
    (LISTS, {}, r"does not say how many experts there are: give num_experts \(--num-experts\)"),
    (OMNI, {}, r"20 slots and num_experts is not given.*--recorded-under"),
    (OMNI, {"num_experts": 16}, r"20 slots and the model 16 experts.*--recorded-under"),
    *(
        (name, {"top_k": 2, "num_experts": 8}, "16 columns and the model 8 experts.*--recorded-under")
        for name in COUNTS
    ),
    *(
        (f"10-git-lfs-pointer.{suffix}", {}, "Git LFS pointer, not the data: run `git lfs pull`")
        for suffix in ("csv", "jsonl", "npy", "parquet", "pt")
    ),
    (YAML, {}, "neither suffix nor content is of a known format"),
    *((PATTERN, {"num_experts": e}, "only 0 and 1: a placement pattern or a mask, not counts") for e in (None, 4)),
]


def test_no_case_is_left_out():
    named = {name for name, *_ in (*LOADS, *TRACES, *REFUSED)}
    assert named == {path.name for path in CASES.iterdir()} - NO_DATA


@pytest.mark.parametrize(("name", "options", "truth", "ids"), LOADS)
def test_loads(name, options, truth, ids):
    content = read(CASES / name, ReadOptions(**options)).content
    np.testing.assert_array_equal(content.tokens, truth[None])
    assert content.shape.moe_layer_ids == ids
    assert content.shape.num_hidden_layers == options.get("num_hidden_layers")


@pytest.mark.parametrize(("name", "options", "truth", "ids"), TRACES)
def test_traces(name, options, truth, ids):
    reading = read(CASES / name, ReadOptions(**options))
    np.testing.assert_array_equal(joined(reading.content)["expert_ids"], truth)
    assert reading.content.shape.moe_layer_ids == ids
    assert (reading.content.shape.num_experts, reading.content.shape.top_k) == (16, truth.shape[2])
    counts = [np.bincount(truth[:, layer].ravel(), minlength=16) for layer in range(truth.shape[1])]
    np.testing.assert_array_equal(reading.load().total, counts)


@pytest.mark.parametrize(("name", "options", "sentence"), REFUSED)
def test_refusals(name, options, sentence):
    with pytest.raises(InputError, match=sentence):
        read(CASES / name, ReadOptions(**options))


def test_bare_counts_and_arrays_left_out_are_named():
    assert [read(CASES / name).form for name in COUNTS] == ["counts [layers, experts]"] * 2
    assert "arrays tokens left out" in read(CASES / LOGITS, ReadOptions(top_k=2, moe_layer_ids=LAYERS)).notes


def test_the_document_marker_of_yaml_is_read_as_a_placement():
    plan = read_plan(CASES / YAML, hints=ReadHints(num_ranks=2))
    assert plan.placement.physical_to_logical_map.tolist() == [[0, 1, 2, 3]]
    assert plan.shape.moe_layer_ids == (3,)


def test_a_case_that_is_misread_is_seen(tmp_path):
    text = (CASES / "03a-long-form-layers-3-to-6.csv").read_text()
    (tmp_path / "a.csv").write_text(text.replace(",45", ",46", 1))
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(read(tmp_path / "a.csv").content.tokens, TRUTH[None])
