"""What every format has to do: read what it wrote, write whole files or none, name the place of every defect."""

import json
import os
import sys
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb.core.placement import Placement
from eplb.core.problem import Plan
from eplb.core.topology import Topology
from eplb.errors import FormatError, InputError, MissingExtraError, UnknownNameError
from eplb.formats import (
    FORMATS,
    ReadHints,
    RecordStatus,
    detect_format,
    find_format,
    parse_file,
    read_plan,
    write_plan,
)
from eplb.formats.omni import ascending
from eplb.formats.placement_files import read_placement, write_placement
from eplb.formats.sidecar import sidecar_path
from eplb_traces import ModelShape
from tests.generators import formats_examples, plans

OTHERS = sorted(set(FORMATS) - {"native"})
FILES = [(name, suffix) for name, entry in FORMATS.items() for suffix in entry.suffixes]
ENGINE_FILES = [(name, suffix) for name, suffix in FILES if name != "native"]

# Plans that every engine's file can hold.
common_plans = plans(layer_ids=True, equal=True, duplicates=False, weights=True)


def expected_placement(plan, name):
    """The placement that a file of the format holds: omni's has an order of its own."""
    return ascending(plan.placement) if name == "omni" else plan.placement


def hints_of(plan):
    return ReadHints(topology=plan.placement.topology, shape=plan.shape)


@pytest.fixture
def small_plan():
    """Layers 1 and 2 of a model of 4; 4 experts in 6 slots on 2 ranks."""
    placement = Placement([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]], 4, Topology(1, 2, 3))
    return Plan(placement, ModelShape(2, 4, moe_layer_ids=(1, 2), num_hidden_layers=4), "greedy")


@given(plans(holes=True, weights=True))
@formats_examples
def test_native_returns_the_whole_plan(plan):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        write_plan(plan, path)
        again = read_plan(path)
        assert again == plan
        first = path.read_bytes()
        write_plan(again, path)
        assert path.read_bytes() == first


@given(plan=common_plans)
@formats_examples
def test_file_with_its_sidecar_returns_the_whole_plan(plan):
    with tempfile.TemporaryDirectory() as folder:
        for name, suffix in ENGINE_FILES:
            path = Path(folder) / f"{name}{suffix}"
            write_plan(plan, path, name)
            assert detect_format(path).name == name
            assert read_plan(path) == replace(plan, placement=expected_placement(plan, name)), name


@given(plan=common_plans)
@formats_examples
def test_file_alone_returns_the_map(plan):
    with tempfile.TemporaryDirectory() as folder:
        for name, suffix in ENGINE_FILES:
            path = Path(folder) / f"{name}{suffix}"
            write_plan(plan, path, name)
            sidecar_path(path).unlink()
            again = read_plan(path, name, hints_of(plan))
            expected = expected_placement(plan, name).physical_to_logical_map
            np.testing.assert_array_equal(again.placement.physical_to_logical_map, expected, err_msg=name)
            assert again.shape == plan.shape, name
            assert (again.strategy, again.layers) == (f"imported:{name}", ()), name


@pytest.mark.parametrize(("name", "suffix"), FILES)
def test_unequal_nodes_are_in_the_record_or_refused(small_plan, tmp_path, name, suffix):
    topology = Topology(2, (1, 2), 2)
    plan = replace(small_plan, placement=replace_topology(small_plan.placement, topology))
    path, bare = tmp_path / f"plan{suffix}", ReadHints(num_nodes=(1, 2), shape=plan.shape)
    if name == "deepseek":
        with pytest.raises(FormatError, match=r"nodes of \(1, 2\) ranks: the deepseek format holds nodes with equally"):
            write_plan(plan, path, name)
        return
    write_plan(plan, path, name)
    assert read_plan(path) == replace(plan, placement=expected_placement(plan, name))
    with pytest.raises(FormatError, match=r"nodes = \(1, 2\), but 3 was given"):
        read_plan(path, hints=ReadHints(num_nodes=3))
    if name != "native":
        sidecar_path(path).unlink()
        assert read_plan(path, name, bare).placement.topology == topology


def replace_topology(placement, topology):
    return Placement(placement.physical_to_logical_map, placement.num_experts, topology)


@given(plan=plans(duplicates=False, holes=True))
@formats_examples
def test_omni_keeps_which_rank_holds_which_expert(plan):
    held = np.array([[(row[s] >= 0).sum() for s in slots_of(plan)] for row in plan.placement.physical_to_logical_map])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.npy"
        if (held != held[:, :1]).any():
            with pytest.raises(FormatError, match="holds"):
                write_plan(plan, path, "omni")
        else:
            write_plan(plan, path, "omni")
            assert read_plan(path).placement == ascending(plan.placement)


def slots_of(plan):
    first = plan.placement.topology.rank_first_slot
    return [slice(a, b) for a, b in pairwise(first)]


@given(plan=common_plans, data=st.data())
@formats_examples
def test_any_conversion_keeps_the_map(plan, data):
    chain = data.draw(st.lists(st.sampled_from(FILES), min_size=2, max_size=4))
    plan = replace(plan, placement=ascending(plan.placement))
    with tempfile.TemporaryDirectory() as folder:
        current = plan
        for step, (name, suffix) in enumerate(chain):
            path = Path(folder) / f"{step}{suffix}"
            write_plan(current, path, name)
            sidecar_path(path).unlink(missing_ok=True)
            current = read_plan(path, hints=hints_of(plan))
        np.testing.assert_array_equal(current.placement.physical_to_logical_map, plan.placement.physical_to_logical_map)
        assert current.shape.moe_layer_ids == plan.shape.moe_layer_ids


@pytest.mark.parametrize(("name", "suffix"), FILES)
def test_same_plan_gives_same_bytes(name, suffix, small_plan, tmp_path):
    contents = []
    for part in ("a", "b"):
        path = tmp_path / f"{part}{suffix}"
        write_plan(small_plan, path, name)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize(("name", "suffix"), FILES)
def test_failed_write_leaves_the_old_file(name, suffix, small_plan, tmp_path, monkeypatch):
    path = tmp_path / f"plan{suffix}"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match="No space left"):
        write_plan(small_plan, path, name)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("name", "suffix"), FILES)
def test_unwritable_path_is_an_error_and_leaves_nothing(name, suffix, small_plan, tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        write_plan(small_plan, tmp_path / "missing" / f"plan{suffix}", name)
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_plan(small_plan, tmp_path / f"folder{suffix}", name)
    assert [entry.name for entry in tmp_path.iterdir()] == [f"folder{suffix}"]


@pytest.mark.parametrize("name", OTHERS)
def test_refused_plan_writes_nothing(name, tmp_path):
    # Rank 1 has an empty slot in layer 0, so layer 0 has one redundant expert less than layer 1.
    placement = Placement([[0, 1, 1, -1], [0, 1, 0, 1]], 2, Topology(1, 2, 2))
    plan = Plan(placement, ModelShape(2, 2, moe_layer_ids=(0, 1), num_hidden_layers=2), "given")
    with pytest.raises(FormatError, match=r"layer 0.*rank 1"):
        write_plan(plan, tmp_path / f"plan{FORMATS[name].suffixes[0]}", name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [n for n in OTHERS if n != "omni"])
def test_uneven_ranks_are_refused(name, tmp_path):
    placement = Placement([[0, 1, 0]], 2, Topology(1, 2, [2, 1]))
    plan = Plan(placement, ModelShape(1, 2, moe_layer_ids=(0,), num_hidden_layers=1), "given")
    with pytest.raises(FormatError, match="rank 1 has 1 slots and rank 0 has 2"):
        write_plan(plan, tmp_path / f"plan{FORMATS[name].suffixes[0]}", name)


@pytest.mark.parametrize("name", ["ascend", "omni"])
def test_duplicates_are_refused_where_the_engine_loses_one(name, tmp_path):
    placement = Placement([[0, 1, 0, 0]], 2, Topology(1, 2, 2))
    with pytest.raises(FormatError, match="layer 0, rank 1 holds expert 0 twice, the second time in slot 3"):
        write_placement(placement, tmp_path / f"plan{FORMATS[name].suffixes[0]}", name)


@pytest.mark.parametrize("name", ["sglang", "vllm", "deepseek", "native"])
def test_duplicates_are_kept_where_the_engine_loads_them(name, tmp_path):
    placement = Placement([[0, 1, 0, 0]], 2, Topology(1, 2, 2))
    path = tmp_path / f"plan{FORMATS[name].suffixes[0]}"
    write_placement(placement, path, name, ModelShape(1, 2, moe_layer_ids=(0,), num_hidden_layers=1))
    assert read_placement(path) == placement


def test_one_layer_may_have_fewer_redundant_experts_for_omni(tmp_path):
    placement = Placement([[0, -1, 1, -1], [0, 1, 0, 1]], 2, Topology(1, 2, 2))
    write_placement(placement, tmp_path / "plan.npy", "omni")
    sidecar_path(tmp_path / "plan.npy").unlink()
    assert read_placement(tmp_path / "plan.npy") == placement


@pytest.mark.parametrize("name", OTHERS)
def test_wrong_suffix_is_refused(name, small_plan, tmp_path):
    with pytest.raises(FormatError, match="expected a name that ends in"):
        write_plan(small_plan, tmp_path / "plan.txt", name)


@pytest.mark.parametrize("name", FORMATS)
def test_flags_name_the_file(name, small_plan):
    path = Path("somewhere") / f"plan{FORMATS[name].suffixes[0]}"
    assert str(path) in FORMATS[name].server_flags(path, small_plan)
    assert FORMATS[name].summary


def test_vllm_flags_say_that_no_release_loads_them(small_plan):
    assert "in no release" in FORMATS["vllm"].server_flags(Path("a.json"), small_plan)
    assert "initial_mapping_path" in FORMATS["vllm"].server_flags(Path("a.jsonl"), small_plan)


def test_unknown_format_lists_the_known():
    with pytest.raises(UnknownNameError, match="ascend, deepseek, native, omni, sglang, trtllm, vllm"):
        find_format("sg-lang")


def test_pt_files_are_read_without_torch_and_written_with_it(small_plan, tmp_path, monkeypatch):
    write_plan(small_plan, tmp_path / "plan.pt", "sglang")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert read_plan(tmp_path / "plan.pt").placement == small_plan.placement
    with pytest.raises(MissingExtraError, match="extra 'runtime'"):
        write_plan(small_plan, tmp_path / "other.pt", "sglang")
    assert not (tmp_path / "other.pt").exists()


def test_any_name_of_a_native_file_will_do(small_plan, tmp_path):
    write_plan(small_plan, tmp_path / "my.eplb.json")
    assert read_plan(tmp_path / "my.eplb.json") == small_plan


def test_stale_sidecar_is_not_used(small_plan, tmp_path):
    path = tmp_path / "plan.json"
    write_plan(small_plan, path, "vllm")
    path.write_text("[[0,1,2,3,0,2],[3,2,1,0,3,2]]")
    again = read_plan(path, hints=ReadHints(num_ranks=2))
    assert again.strategy == "imported:vllm"
    assert "plan.json.eplb.json is about another map and was not used" in again.notes


def test_sidecar_of_another_format_is_not_used(tmp_path):
    path, rows = tmp_path / "plan.json", [[0, 1, 2, 3, 0, 1]]
    shape = ModelShape(1, 4, moe_layer_ids=(0,), num_hidden_layers=1)
    write_placement(Placement(rows, 4, Topology(1, 2, 3)), path, "sglang", shape)
    assert parse_file(path).record_status is RecordStatus.IN_SIDECAR
    path.write_text(json.dumps(rows))  # the same integers, as vLLM has them
    assert parse_file(path).record_status is RecordStatus.STALE
    assert read_plan(path, hints=ReadHints(num_ranks=2)).strategy == "imported:vllm"


@pytest.mark.parametrize(
    ("topology", "message"),
    [(Topology(2, 1, 3), "nodes = 1, but 2 was given"), (Topology(1, 2, 4), "slots = 6, but 8 was given")],
)
def test_topology_against_a_file_alone_is_refused(topology, message, small_plan, tmp_path):
    path = tmp_path / "plan.npz"
    write_plan(small_plan, path, "deepseek")
    sidecar_path(path).unlink()
    with pytest.raises(FormatError, match=message):
        read_plan(path, hints=ReadHints(topology=topology))


@pytest.mark.parametrize("name", [*OTHERS, "native"])
@pytest.mark.parametrize(
    ("hints", "message"),
    [
        (ReadHints(num_ranks=3), "ranks = 2, but 3 was given"),
        (ReadHints(num_nodes=2), "nodes = 1, but 2 was given"),
        (ReadHints(num_experts=5), "experts = 4, but 5 was given"),
        (ReadHints(shape=ModelShape(3, 4)), "layers = 2, but 3 was given"),
        (ReadHints(topology=Topology(2, 1, 3)), "topology"),
    ],
)
def test_hint_against_the_record_is_refused(name, hints, message, small_plan, tmp_path):
    path = tmp_path / f"plan{FORMATS[name].suffixes[0]}"
    write_plan(small_plan, path, name)
    with pytest.raises(FormatError, match=message):
        read_plan(path, name, hints)


@pytest.mark.parametrize("name", FORMATS)
def test_missing_file_is_an_input_error(name, tmp_path):
    with pytest.raises(FormatError, match="cannot be read"):
        read_plan(tmp_path / f"none{FORMATS[name].suffixes[0]}", name)


def test_write_placement_takes_the_shape_of_a_bare_placement(tmp_path):
    placement = Placement([[0, 1], [1, 0]], 2, Topology(1, 2, 1))
    shape = ModelShape(2, 2, moe_layer_ids=(3, 4), num_hidden_layers=5)
    with pytest.raises(FormatError, match="--moe-layers"):
        write_placement(placement, tmp_path / "plan.yaml", "trtllm")
    write_placement(placement, tmp_path / "plan.yaml", "trtllm", shape)
    assert read_plan(tmp_path / "plan.yaml").shape == shape
    write_placement(Plan(placement, ModelShape(2, 2), "greedy"), tmp_path / "b.json", "sglang", shape)
    rows = json.loads((tmp_path / "b.json").read_text())["physical_to_logical_map"]
    assert (len(rows), rows[3:]) == (5, [[0, 1], [1, 0]])


def test_big_native_file_is_fast(tmp_path):
    """94 layers x 1536 slots in far less than a second, both ways; the bound is generous for a busy machine."""
    from time import process_time

    rows = np.tile(np.arange(1536) % 1280, (94, 1))
    plan = Plan(Placement(rows, 1280, Topology(8, 8, 24)), ModelShape(94, 1280), "greedy")
    start = process_time()
    write_plan(plan, tmp_path / "plan.json")
    again = read_plan(tmp_path / "plan.json")
    assert process_time() - start < 0.6
    assert again.placement == plan.placement
