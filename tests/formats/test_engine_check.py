"""`check_file`: every defect on which an engine crashes, or which it misreads, is named with its place."""

import json

import numpy as np
import pytest

from eplb.core.placement import Placement
from eplb.core.problem import Plan
from eplb.core.topology import Topology
from eplb.errors import FormatError, UnknownNameError
from eplb.formats import FORMATS, read_plan, write_plan
from eplb.formats.engine_check import ENGINES, check_file
from eplb.formats.vllm import NO_RELEASE
from eplb_traces import ModelShape

# Two MoE layers, 1 and 2 of a model of 3; 4 experts in 6 slots on 2 ranks.
SHAPE = ModelShape(2, 4, moe_layer_ids=(1, 2), num_hidden_layers=3)
GOOD = [[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]]
LIST_ENGINES = ["sglang", "vllm", "ascend", "trtllm"]


def write_raw(path, engine, rows, num_ranks=2):
    """A file of the engine's form with any rows in it, right or wrong."""
    if engine == "sglang":
        path.write_text(json.dumps({"physical_to_logical_map": [GOOD[0], *rows]}))
    elif engine == "vllm":
        path.write_text(json.dumps(rows))
    elif engine == "trtllm":
        lines = "".join(f"  {layer}: {row}\n" for layer, row in enumerate(rows, start=1))
        path.write_text(f"num_slots: {len(rows[0])}\ninitial_global_assignments:\n{lines}")
    else:
        path.write_text(json.dumps(ascend_fields(rows, num_ranks)))
    return path


def ascend_fields(rows, num_ranks):
    layers = []
    for i, row in enumerate(rows):
        parts = np.array_split(row, num_ranks)
        devices = [{"device_id": r, "device_expert": part.tolist()} for r, part in enumerate(parts)]
        layers.append({"layer_id": i, "device_count": num_ranks, "device_list": devices})
    return {"moe_layer_count": len(rows), "layer_list": layers}


def raw_path(tmp_path, engine):
    return tmp_path / ("plan.yaml" if engine == "trtllm" else "plan.json")


def layer_name(engine, layer):
    """How the file names MoE layer `layer`: SGLang and TensorRT-LLM count the dense layer before it."""
    return f"layer {layer + 1}" if engine in ("sglang", "trtllm") else f"layer {layer}"


def refuse(path, engine, *parts, num_ranks=2, num_experts=4, shape=None):
    with pytest.raises(FormatError) as caught:
        check_file(path, engine, num_ranks, num_experts, shape)
    sentence = str(caught.value)
    for part in (path.name, "expected", *parts):
        assert part in sentence, sentence


@pytest.mark.parametrize("engine", ENGINES)
def test_good_files_pass(engine, tmp_path):
    path = tmp_path / f"plan{FORMATS[engine].suffixes[0]}"
    write_plan(Plan(Placement(GOOD, 4, Topology(1, 2, 3)), SHAPE, "greedy"), path, engine)
    report = check_file(path, engine, 2, 4, SHAPE)
    assert (report.num_experts, report.num_slots, report.num_ranks, report.num_redundant) == (4, 6, 2, 2)
    assert report.num_layers == (3 if engine == "sglang" else 2)
    assert report.num_duplicates == 0
    assert report.notes == ((NO_RELEASE,) if engine == "vllm" else ())
    assert f"{engine} would load it" in str(report)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_not_checked_is_noted(engine, tmp_path):
    path = tmp_path / f"plan{FORMATS[engine].suffixes[0]}"
    write_plan(Plan(Placement(GOOD, 4, Topology(1, 2, 3)), SHAPE, "greedy"), path, engine)
    notes = " ".join(check_file(path, engine, 2).notes)
    assert "layer" in notes
    assert ("4 experts by the largest id" in notes) == (engine != "omni")


@pytest.mark.parametrize(
    ("engine", "effect"),
    [
        ("sglang", "ZeroDivisionError"),
        ("vllm", "no place for"),
        ("ascend", "crashes with a RuntimeError"),
        ("trtllm", "configuration accepts it"),
    ],
)
def test_missing_expert(engine, effect, tmp_path):
    path = write_raw(raw_path(tmp_path, engine), engine, [GOOD[0], [3, 2, 0, 0, 3, 2]])
    refuse(path, engine, layer_name(engine, 1), "expert 1 has no slot", effect)


@pytest.mark.parametrize("engine", LIST_ENGINES)
def test_last_expert_is_missed_only_if_experts_are_given(engine, tmp_path):
    rows = [[0, 1, 2, 1, 2, 0], [0, 1, 2, 1, 2, 0]]
    path = raw_path(tmp_path, engine)
    if engine == "sglang":
        path.write_text(json.dumps({"physical_to_logical_map": rows}))
    else:
        write_raw(path, engine, rows)
    assert check_file(path, engine, 2).num_experts == 3
    refuse(path, engine, "expert 3 has no slot")


@pytest.mark.parametrize(
    ("engine", "effect"),
    [("sglang", "IndexError"), ("vllm", "refuses"), ("ascend", "IndexError"), ("trtllm", "configuration accepts it")],
)
def test_id_too_large(engine, effect, tmp_path):
    path = write_raw(raw_path(tmp_path, engine), engine, [GOOD[0], [3, 2, 1, 0, 4, 2]])
    refuse(path, engine, layer_name(engine, 1), "slot 4 = 4 is no expert", effect, "0 <= id < 4")


@pytest.mark.parametrize(
    ("engine", "effect"),
    [("sglang", "last expert"), ("vllm", "skips the slot"), ("ascend", "last expert"), ("trtllm", "accepts -1")],
)
def test_empty_slot(engine, effect, tmp_path):
    path = write_raw(raw_path(tmp_path, engine), engine, [GOOD[0], [3, 2, 1, 0, -1, 2]])
    refuse(path, engine, layer_name(engine, 1), "slot 4 = -1 is an empty slot", effect)


@pytest.mark.parametrize(
    ("engine", "effect"), [("sglang", "AssertionError"), ("vllm", "until weights move"), ("trtllm", "ValueError")]
)
def test_slots_not_divisible_by_ranks(engine, effect, tmp_path):
    path = write_raw(raw_path(tmp_path, engine), engine, GOOD)
    refuse(path, engine, "6 slots a layer on 4 ranks", effect, num_ranks=4)


def test_duplicate_on_an_ascend_rank_is_refused(tmp_path):
    path = write_raw(tmp_path / "plan.json", "ascend", [GOOD[0], [3, 2, 1, 0, 3, 0]])
    refuse(path, "ascend", "layer 1, rank 1 holds expert 0 in slots [3, 5]", "hides the other")


@pytest.mark.parametrize("engine", ["sglang", "vllm", "trtllm"])
def test_duplicate_on_a_rank_is_counted_where_it_is_loaded(engine, tmp_path):
    path = write_raw(raw_path(tmp_path, engine), engine, [GOOD[0], [3, 2, 1, 0, 3, 0]])
    assert check_file(path, engine, 2, 4).num_duplicates == 1


def test_ascend_ranks_of_unequal_size(tmp_path):
    fields = ascend_fields(GOOD, 2)
    fields["layer_list"][1]["device_list"][1]["device_expert"].append(1)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(fields))
    refuse(path, "ascend", "layer_list[1].device_list[1].device_expert has 4 entries", "ValueError")


@pytest.mark.parametrize("engine", ["ascend", "omni"])
def test_other_number_of_ranks(engine, tmp_path):
    path = tmp_path / f"plan{FORMATS[engine].suffixes[0]}"
    write_plan(Plan(Placement(GOOD, 4, Topology(1, 2, 3)), SHAPE, "greedy"), path, engine)
    refuse(path, engine, "has 2 ranks: expected 3", num_ranks=3)


@pytest.mark.parametrize("engine", ["sglang", "vllm", "trtllm"])
def test_rows_of_unequal_length(engine, tmp_path):
    path = write_raw(raw_path(tmp_path, engine), engine, [GOOD[0], GOOD[1][:4]])
    refuse(path, engine, "has 4")


@pytest.mark.parametrize("engine", ENGINES)
def test_missing_layer(engine, tmp_path):
    path = tmp_path / f"plan{FORMATS[engine].suffixes[0]}"
    write_plan(Plan(Placement(GOOD, 4, Topology(1, 2, 3)), SHAPE, "greedy"), path, engine)
    model = ModelShape(3, 4, moe_layer_ids=(1, 2, 3), num_hidden_layers=4)
    part = {"sglang": "3 rows", "trtllm": "layer 3 has no list: TensorRT-LLM crashes with a KeyError"}
    refuse(path, engine, part.get(engine, "2 layers: expected 3"), shape=model)


@pytest.mark.parametrize("engine", ENGINES)
def test_layer_too_many(engine, tmp_path):
    path = tmp_path / f"plan{FORMATS[engine].suffixes[0]}"
    write_plan(Plan(Placement(GOOD, 4, Topology(1, 2, 3)), SHAPE, "greedy"), path, engine)
    part = {"sglang": "3 rows", "trtllm": "layer 2 is no MoE layer"}
    model = ModelShape(1, 4, moe_layer_ids=(1,), num_hidden_layers=2)
    refuse(path, engine, part.get(engine, "2 layers: expected 1"), shape=model)


def test_trtllm_list_of_a_dense_layer(tmp_path):
    path = write_raw(tmp_path / "plan.yaml", "trtllm", GOOD)
    refuse(path, "trtllm", "layer 1 is no MoE layer", shape=ModelShape(1, 4, moe_layer_ids=(2,)))


def test_dense_rows_of_sglang_have_to_be_valid_too(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"physical_to_logical_map": [[0] * 6, *GOOD]}))
    refuse(path, "sglang", "layer 0: expert 1 has no slot", "ZeroDivisionError", shape=SHAPE)


@pytest.mark.parametrize(
    ("engine", "content", "parts"),
    [
        ("sglang", '{"physical_to_logical_map": [[0]], "v": 1}', ["extra key 'v'", "TypeError"]),
        ("trtllm", "version: 1\nnum_slots: 1\n", ["$: key 'version'", "refuses keys"]),
        ("vllm", '{"record_type": "eplb_initial_mapping"}', []),
        ("ascend", '{"moe_layer_count": 1}', []),
    ],
)
def test_wrong_keys(engine, content, parts, tmp_path):
    path = raw_path(tmp_path, engine)
    path.write_text(content)
    with pytest.raises(FormatError) as caught:
        check_file(path, engine, 1)
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize("engine", ["ascend", "sglang"])
def test_engines_that_go_by_the_suffix(engine, tmp_path):
    refuse(write_raw(tmp_path / "plan.map", engine, GOOD), engine, ".json")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ((0, 0, 0, 2), ["rank 0, layer 0, expert 0", "= 2"]),
        ((0, 1, 1, 0), ["layer 1: rank 1 holds 3 experts and rank 0 holds 2", "overflows"]),
    ],
)
def test_omni_pattern_defects(change, parts, tmp_path):
    path = tmp_path / "plan.npy"
    write_plan(Plan(Placement(GOOD, 4, Topology(1, 2, 3)), SHAPE, "greedy"), path, "omni")
    pattern = np.load(path)
    rank, layer, expert, value = change
    assert pattern[rank, layer, expert] != value
    pattern[rank, layer, expert] = value
    np.save(path, pattern)
    refuse(path, "omni", *parts)


def test_ascend_maps_that_count_from_1_or_lack_the_device(tmp_path):
    fields = ascend_fields(GOOD, 2)
    for layer in fields["layer_list"]:
        layer["layer_id"] += 1
        for device in layer["device_list"]:
            del device["device_id"]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(fields))
    notes = check_file(path, "ascend", 2, 4, SHAPE).notes
    assert notes == ("layer_id counts from 1: taken by position", "no device_id: devices by their position")
    plan = read_plan(path)
    np.testing.assert_array_equal(plan.placement.physical_to_logical_map, GOOD)
    assert plan.notes[-2:] == notes
    path.write_text(json.dumps(ascend_fields((np.array(GOOD) + 1).tolist(), 2)))
    refuse(path, "ascend", "expert ids are 1 to 4 and never 0", "vllm-ascend counts experts from 0", num_experts=4)
    plan = read_plan(path)
    np.testing.assert_array_equal(plan.placement.physical_to_logical_map, GOOD)
    assert plan.placement.num_experts == 4
    assert "expert ids are 1 to 4 and never 0: read as 0 to 3" in plan.notes


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 2, 3, 4], [1, 2, 3, 3]], "expert 0 has no slot"),  # one layer lacks the last expert
        ([[1, 2, 3, 4], [1, 2, 3, 0]], r"expert 0 has no slot"),
        ([[2, 3, 4, 5], [2, 3, 4, 5]], "expert 0 has no slot"),
    ],
)
def test_ascend_ids_that_are_not_1_to_the_last_expert_stay_what_they_are(rows, message, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(ascend_fields(rows, 2)))
    with pytest.raises(FormatError, match=message):
        read_plan(path)


def test_ascend_ids_of_devices(tmp_path):
    path = tmp_path / "plan.json"
    fields = ascend_fields(GOOD, 2)
    del fields["layer_list"][1]["device_list"][0]["device_id"]
    path.write_text(json.dumps(fields))
    refuse(path, "ascend", "layer_list[1].device_list: 1 of 2 devices have device_id: expected all or none")
    fields = ascend_fields(GOOD, 2)
    for layer in fields["layer_list"]:
        for device in layer["device_list"]:
            device["device_id"] += 1
    path.write_text(json.dumps(fields))
    assert "device_id counts from 1: taken by position" in check_file(path, "ascend", 2).notes


def test_omni_missing_expert_and_other_experts(tmp_path):
    path = tmp_path / "plan.npy"
    np.save(path, np.array([[[1, 0, 0]], [[0, 1, 0]]]))
    refuse(path, "omni", "layer 0: expert 2 has no slot", num_experts=3)
    refuse(path, "omni", "3 experts, but 4 were given", num_experts=4)
    np.save(path, np.zeros((2, 1, 3)))
    refuse(path, "omni", "every entry is 0", num_experts=3)


def test_omni_layers_may_differ_in_redundancy(tmp_path):
    path = tmp_path / "plan.npy"
    np.save(path, np.array([[[1, 0], [1, 1]], [[0, 1], [1, 1]]]))
    report = check_file(path, "omni", 2)
    assert (report.num_slots, report.num_redundant, report.num_duplicates) == (4, 2, 0)
    assert report.slots_of_layers == (2, 4)
    assert (
        "2 layers, 2 experts + 2 redundant = 4 slots on 2 ranks of 2 in layers 1, "
        "2 experts + 0 redundant = 2 slots on 2 ranks of 1 in layers 0, 0 duplicates"
    ) in str(report)
    np.save(path, np.array([[[1, 1]] * 3, [[1, 1]] * 3]))
    assert "3 layers, 2 experts + 2 redundant = 4 slots on 2 ranks of 2, 0 dup" in str(check_file(path, "omni", 2))


def test_one_vllm_list_for_all_layers(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("[0, 1, 1, 0]")
    assert "one list for all layers" in str(check_file(path, "vllm", 2, 2))
    refuse(path, "vllm", "every layer: expert 2 has no slot", num_experts=3)


def test_unknown_engine_and_ranks(tmp_path):
    with pytest.raises(UnknownNameError, match="ascend, omni, sglang, trtllm, vllm"):
        check_file(tmp_path / "a", "native", 2)
    with pytest.raises(FormatError, match="ranks = 0"):
        check_file(tmp_path / "a", "sglang", 0)


def test_the_numbers_of_a_report(tmp_path):
    path = write_raw(tmp_path / "plan.json", "vllm", [[0, 1, 2, 3, 0, 3], [3, 2, 1, 0, 0, 0]])
    report = check_file(path, "vllm", 2, 4, ModelShape(2, 4))
    assert (report.num_layers, report.num_experts, report.num_slots, report.num_ranks) == (2, 4, 6, 2)
    assert (report.num_redundant, report.num_duplicates, report.slots_of_layers) == (2, 1 + 2, (6, 6))
    facts = "vllm would load it: 2 layers, 4 experts + 2 redundant = 6 slots on 2 ranks of 3, 3 duplicates on a rank"
    assert str(report).splitlines()[0] == facts
    assert check_file(path, "vllm", 1, 4).num_duplicates == 2 + 2


def test_an_id_below_that_of_an_empty_slot_is_no_expert(tmp_path):
    path = write_raw(tmp_path / "plan.json", "vllm", [GOOD[0], [3, 2, -2, 0, 1, 2]])
    refuse(path, "vllm", "layer 1, slot 2 = -2 is no expert", "0 <= id < 4")


def test_numbers_of_experts_that_differ_are_refused(tmp_path):
    path = write_raw(tmp_path / "plan.json", "vllm", GOOD)
    with pytest.raises(FormatError, match="5 experts, but 4 were given: expected the same"):
        check_file(path, "vllm", 2, 5, SHAPE)
