"""What a file does not hold has to be given by its reader, and the error names the flag."""

import json

import numpy as np
import pytest

from eplb.errors import FormatError
from eplb.formats import ReadHints, detect_format, read_plan
from eplb_traces import ModelShape

torch = pytest.importorskip("torch")

TWO_RANKS = ReadHints(num_ranks=2)


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"physical_to_logical_map": [[0,1]]}'),
        ("a.json", "[[0,1]]"),
        ("a.yaml", "num_slots: 2\ninitial_global_assignments:\n  0: [0, 1]\n"),
    ],
)
def test_flat_lists_need_the_ranks(name, text, tmp_path):
    with pytest.raises(FormatError, match="do not hold the number of ranks: give --ranks"):
        read_plan(write(tmp_path / name, text))


def test_deepseek_arrays_alone_need_the_ranks(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {"phy2log": np.array([[0, 1]]), "log2phy": np.array([[[0], [1]]]), "logcnt": np.array([[1, 1]])}
    np.savez(path, **arrays)
    with pytest.raises(FormatError, match="give --ranks"):
        read_plan(path)
    assert read_plan(path, hints=TWO_RANKS).placement.topology.num_ranks == 2


def test_wider_padding_and_other_order_of_replicas_is_the_same_map(tmp_path):
    # vLLM pads log2phy to 1024 columns; the order of an expert's slots is free.
    path = tmp_path / "a.npz"
    log2phy = np.array([[[2, 0, -1, -1], [1, -1, -1, -1]]])
    np.savez(path, phy2log=np.array([[0, 1, 0]]), log2phy=log2phy, logcnt=np.array([[2, 1]]), num_gpus=3)
    assert read_plan(path).placement.physical_to_logical_map.tolist() == [[0, 1, 0]]


def test_experts_are_counted_by_the_largest_id_with_a_note(tmp_path):
    plan = read_plan(write(tmp_path / "a.json", "[[0,2,1,0]]"), hints=TWO_RANKS)
    assert plan.placement.num_experts == 3
    assert plan.notes == ("the file does not hold the number of experts: 3 by the largest id",)


def test_given_experts_find_the_missing_one(tmp_path):
    path = write(tmp_path / "a.json", "[[0,2,1,0]]")
    with pytest.raises(FormatError, match=r"layer 0.*expert 3 has no slot"):
        read_plan(path, hints=ReadHints(num_ranks=2, num_experts=4))


def test_slots_have_to_divide_by_the_ranks(tmp_path):
    path = write(tmp_path / "a.json", "[[0,2,1,0]]")
    with pytest.raises(FormatError, match="multiple of 3 ranks"):
        read_plan(path, hints=ReadHints(num_ranks=3))
    with pytest.raises(FormatError, match="multiple of nodes = 3"):
        read_plan(path, hints=ReadHints(num_ranks=4, num_nodes=3))


def test_one_list_for_all_vllm_layers_needs_the_layers(tmp_path):
    path = write(tmp_path / "a.json", "[0,1,2,0]")
    with pytest.raises(FormatError, match="give --num-layers"):
        read_plan(path, hints=TWO_RANKS)
    plan = read_plan(path, hints=ReadHints(num_ranks=2, shape=ModelShape(3, 3)))
    assert plan.placement.physical_to_logical_map.tolist() == [[0, 1, 2, 0]] * 3


def test_a_vllm_record_holds_its_number_of_experts(tmp_path):
    record = {"record_type": "eplb_initial_mapping", "version": 1, "num_redundant_experts": 1, "num_slots": 4}
    record["initial_global_assignments"] = {"1": [2, 1, 0, 0], "0": [0, 1, 2, 0]}
    plan = read_plan(write(tmp_path / "a.json", json.dumps(record)), hints=TWO_RANKS)
    assert plan.placement.num_experts == 3
    assert plan.placement.physical_to_logical_map.tolist() == [[0, 1, 2, 0], [2, 1, 0, 0]]
    assert plan.notes == ()


def test_the_shape_tells_which_sglang_rows_are_dense(tmp_path):
    path = write(tmp_path / "a.json", '{"physical_to_logical_map": [[1,0,1,0],[0,1,0,0],[1,1,0,1]]}')
    assert read_plan(path, hints=TWO_RANKS).placement.num_layers == 3
    plan = read_plan(path, hints=ReadHints(num_ranks=2, shape=ModelShape(2, 2, moe_layer_ids=(1, 2))))
    assert plan.placement.physical_to_logical_map.tolist() == [[0, 1, 0, 0], [1, 1, 0, 1]]
    assert plan.shape.num_hidden_layers == 3
    wrong = ModelShape(2, 2, moe_layer_ids=(1, 2), num_hidden_layers=4)
    with pytest.raises(FormatError, match=r"3 rows.*expected 4"):
        read_plan(path, hints=ReadHints(num_ranks=2, shape=wrong))
    unknown = ModelShape(2, 2, num_hidden_layers=3)
    with pytest.raises(FormatError, match="give --moe-layers"):
        read_plan(path, hints=ReadHints(num_ranks=2, shape=unknown))


def test_trtllm_layer_ids_come_from_the_file(tmp_path):
    path = write(tmp_path / "a.yaml", "initial_global_assignments:\n  7: [1, 0]\n  3: [0, 1]\nnum_slots: 2\n")
    plan = read_plan(path, hints=TWO_RANKS)
    assert plan.shape.moe_layer_ids == (3, 7)
    assert plan.placement.physical_to_logical_map.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(FormatError, match="MoE layer ids"):
        read_plan(path, hints=ReadHints(num_ranks=2, shape=ModelShape(2, 2, moe_layer_ids=(3, 4))))


def test_ascend_ranks_are_its_devices(tmp_path):
    device_list = [{"device_id": i, "device_expert": [i, 1 - i]} for i in range(2)]
    layer = {"layer_id": 0, "device_count": 2, "device_list": device_list}
    path = write(tmp_path / "a.json", json.dumps({"moe_layer_count": 1, "layer_list": [layer]}))
    assert read_plan(path).placement.topology.num_ranks == 2
    with pytest.raises(FormatError, match="ranks = 2, but 4 was given"):
        read_plan(path, hints=ReadHints(num_ranks=4))


def test_omni_ranks_may_differ_when_read(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[[1, 1, 0]], [[0, 0, 1]]]))
    plan = read_plan(tmp_path / "a.npy")
    assert plan.placement.topology.slots_per_rank == (2, 1)
    assert plan.placement.physical_to_logical_map.tolist() == [[0, 1, 2]]


def test_torch_files_of_int32_are_read(tmp_path):
    torch.save({"physical_to_logical_map": torch.tensor([[0, 1]], dtype=torch.int32)}, tmp_path / "a.pt")
    assert read_plan(tmp_path / "a.pt", hints=TWO_RANKS).placement.physical_to_logical_map.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{}", "give --from"),
        ("a.json", "3", "give --from"),
        ("a.json", '{"layer_list": [], "record_type": "eplb_initial_mapping"}', "looks like vllm and ascend"),
        ("a.json", '{"physical_to_logical_map": [[0]], "layer_list": []}', "looks like sglang and ascend"),
        ("a.json", '{"format": "eplb-provenance"}', "the record beside a placement"),
        ("a.json.eplb.json", '{"format": "eplb-provenance"}', "give a.json"),
        ("a.txt", "[[0]]", "give --from"),
        ("a.json", "{", "not JSON, line 1"),
    ],
)
def test_unclear_files_are_asked_about(name, text, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        detect_format(write(tmp_path / name, text))
