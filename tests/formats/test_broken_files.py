"""At least ten broken files a format: each is refused with the place, none with a traceback of another kind."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest

from eplb.core.placement import Placement
from eplb.core.problem import BindingBound, LayerCertificate, Plan, SolveStatus
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.formats import ReadHints, read_plan, write_plan
from eplb.formats.sidecar import sidecar_path
from eplb_traces import ModelShape

torch = pytest.importorskip("torch")

HINTS = ReadHints(num_ranks=2)
GOOD_MAP = [[0, 1, 2, 0], [2, 1, 0, 1]]


def refuse(path, name, message, hints=HINTS):
    with pytest.raises(InputError, match=message) as caught:
        read_plan(path, name, hints)
    assert path.name in str(caught.value)


def edited(fields, keys, value):
    """A deep copy of JSON fields with one place set, or removed where `value` is ...."""
    copy = json.loads(json.dumps(fields))
    inner = copy
    for key in keys[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return copy


@pytest.fixture
def plan():
    certificate = LayerCertificate(3.0, 2.5, BindingBound.MEAN, SolveStatus.HEURISTIC)
    placement = Placement(GOOD_MAP, 3, Topology(1, 2, 2), np.array([[0.5, 1, 1, 0.5], [1, 0.25, 1, 0.75]]))
    shape = ModelShape(2, 3, moe_layer_ids=(1, 2), num_hidden_layers=3)
    return Plan(placement, shape, "greedy", layers=(certificate,) * 2, notes=("a",))


BROKEN_RECORDS = [
    (("version",), 3, r"\$\.version = 3: expected 1 to 2"),
    (("version",), 0, r"\$\.version = 0: expected an integer >= 1"),
    (("version",), ..., "key 'version' is missing"),
    (("version",), 1, "key 'seconds' is missing"),
    (("format",), "other", "format"),
    (("strategy",), 7, r"\$\.strategy is a number: expected a string"),
    (("extra",), 1, r"\$: unknown key 'extra'"),
    (("seed",), ..., "key 'seed' is missing"),
    (("seed",), -1, r"\$\.seed = -1"),
    (("seconds",), 1.0, r"\$: unknown key 'seconds'"),
    (("status",), "good", r"\$\.status = 'good'"),
    (("notes", 0), 3, r"\$\.notes\[0\]"),
    (("layers", 1, "objective"), 1.0, r"\$\.layers\[1\]\.objective = 1.0: expected at least lower_bound = 2.5"),
    pytest.param(
        ("layers", 1, "objective"), 10**400, r"objective = a number of more than 30 digits: expected a", id="huge"
    ),
    (("layers", 1, "binding_bound"), "no", r"\$\.layers\[1\]\.binding_bound"),
    (("layers", 0, "status"), ..., r"\$\.layers\[0\]: key 'status' is missing"),
    (("layers",), [], None),  # legal: no certificates
    (("topology", "num_nodes"), 0, r"\$\.topology\.num_nodes = 0"),
    (("topology", "slots_per_rank"), [2, 1, 1], "slots_per_rank has 3 entries"),
    (("topology", "slots_per_rank"), [2, 3], "slots"),
    (("topology", "rank_speed"), [1.0, 0.0], "speeds"),
    (("topology", "intra_node_gbps"), 0, "intra_node_gbps"),
    (("topology", "ranks_per_node"), [1, 1], "ranks_per_node has 2 entries: expected one for each of 1 nodes"),
    (("topology", "ranks_per_node"), [0], r"\$\.topology\.ranks_per_node\[0\] = 0"),
    (("absent_ranks",), 1, r"\$\.absent_ranks is"),
    (("absent_ranks",), [3], r"\$\.absent_ranks = \[3\]: expected different ids, 0 <= id < 3"),
    (("absent_ranks",), [1, 1], r"\$\.absent_ranks = \[1, 1\]: expected different ids"),
    (("shape", "num_layers"), 3, "moe_layer_ids"),
    (("shape", "num_experts"), "3", "num_experts"),
    (("replica_weights", 1), [1, 1], r"\$\.replica_weights\[1\] has 2 entries"),
    (("replica_weights", 1, 1), 0.5, "sum to"),
    (("replica_weights",), [], r"\$\.replica_weights is empty"),
]


@pytest.mark.parametrize(("keys", "value", "message"), BROKEN_RECORDS)
@pytest.mark.parametrize("name", ["native", "sglang"])
def test_broken_record(keys, value, message, name, plan, tmp_path):
    """The same fields in the native file and in the sidecar of an engine's file."""
    path = tmp_path / "plan.json"
    write_plan(plan, path, name)
    record = path if name == "native" else sidecar_path(path)
    record.write_text(json.dumps(edited(json.loads(record.read_text()), keys, value)))
    if message is None:
        assert read_plan(path, name).layers == ()
    else:
        refuse(path, name, message, ReadHints())


def test_a_number_that_json_cannot_hold_is_not_written(plan, tmp_path):
    endless = replace(plan, layers=tuple(replace(layer, objective=float("inf")) for layer in plan.layers))
    with pytest.raises(InputError, match="holds a number that JSON cannot hold: expected finite numbers"):
        write_plan(endless, tmp_path / "plan.json", "native")
    assert not list(tmp_path.iterdir())


def test_absent_ranks_that_the_file_has_no_columns_for(plan, tmp_path):
    path = tmp_path / "plan.json"
    write_plan(plan, path, "sglang")
    record = sidecar_path(path)
    record.write_text(json.dumps({**json.loads(record.read_text()), "absent_ranks": [1]}))
    refuse(path, "sglang", "4 columns: expected a multiple of 3, the ranks of the sidecar with its", ReadHints())


@pytest.mark.parametrize("name", ["native", "sglang"])
def test_broken_wall_time_in_a_record_of_version_1(name, plan, tmp_path):
    path = tmp_path / "plan.json"
    write_plan(plan, path, name)
    record = path if name == "native" else sidecar_path(path)
    fields = {**json.loads(record.read_text()), "version": 1, "seconds": "1"}
    record.write_text(json.dumps(fields))
    refuse(path, name, r"\$\.seconds = '1'", ReadHints())


BROKEN_TEXTS = [
    ("", "not JSON"),
    ("[", "not JSON, line 1 column 2"),
    ('{"a": 1, "a": 2}', "key 'a' is given twice"),
    pytest.param(
        "{" + ",".join(f'"k{key}": 1' for key in [*range(60_000), *range(60_000, -1, -1)]) + "}",
        "key 'k[0-9]+' is given twice",
        id="60000 keys twice",
    ),
    ('{"a": NaN}', "NaN"),
    ("[" * 100_000, "not JSON"),
    (b"\xff\xfe", "byte 0 is not UTF-8"),
    ("null", "is null: expected an object"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN_TEXTS)
@pytest.mark.parametrize("name", ["native", "sglang", "ascend", "vllm"])
def test_broken_json(text, message, name, tmp_path):
    path = tmp_path / "plan.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refuse(path, name, message)


BROKEN_ROWS = [
    ([], "is empty"),
    ([[]], r"\[0\] is empty"),
    (3, "expected a list"),
    ([3], "a number: expected a list"),
    ([[0, 1, 2, 0], [0, 1, 2]], r"\[1\] has 3 entries: expected 4"),
    ([[0, 1, 2.0, 0]], r"\[0\]\[2\] = 2.0: expected an integer"),
    ([[0, 1, True, 0]], r"\[0\]\[2\] = True: expected an integer"),
    ([[0, 1, "2", 0]], r"\[0\]\[2\] = '2': expected an integer"),
    ([[0, 1, None, 0]], r"\[0\]\[2\] = None"),
    ([[0, 1, 10**40, 0]], r"\[0\]\[2\]"),
    ([[0, 1, 2, -2]], r"layer 0, slot 3\] = -2"),
    ([[0, 1, 3, 0]], r"layer 0\]: expert 2 has no slot"),
    ([[0, 1, 2]], "multiple of 2 ranks"),
]


@pytest.mark.parametrize(("rows", "message"), BROKEN_ROWS)
def test_broken_sglang_rows(rows, message, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"physical_to_logical_map": rows}))
    refuse(path, "sglang", message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"physical_to_logical_map": GOOD_MAP, "version": 1}, "extra key 'version': SGLang takes every key"),
        ({"logical_count": [[1, 2]]}, "holds logical_count, a load"),
        ({"other": 1}, "key 'physical_to_logical_map' is missing"),
    ],
)
def test_broken_sglang_keys(fields, message, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(fields))
    refuse(path, "sglang", message)


def torch_bytes(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a .pt file"),
        (b"PK\x03\x04garbage", "not a .pt file"),
        (b"garbage", "not a .pt file"),
        (torch_bytes({"physical_to_logical_map": torch.tensor(GOOD_MAP)})[:-50], "not a .pt file"),
        (torch_bytes(torch.tensor(GOOD_MAP)), "expected an object"),
        (torch_bytes({"physical_to_logical_map": torch.tensor(GOOD_MAP, dtype=torch.float32)}), "expected an integer"),
        (torch_bytes({"physical_to_logical_map": torch.tensor([0, 1])}), "expected a list"),
        (torch_bytes({"physical_to_logical_map": torch.tensor(3)}), "expected a list"),
        (torch_bytes({"physical_to_logical_map": torch.tensor(GOOD_MAP), "x": 1}), "extra key 'x'"),
        (torch_bytes({"physical_to_logical_map": Topology(1, 1, 1)}), "not a .pt file of plain tensors"),
        (torch_bytes({1: 2}), "is missing"),
    ],
)
def test_broken_pt(content, message, tmp_path):
    path = tmp_path / "plan.pt"
    path.write_bytes(content)
    refuse(path, "sglang", message)


ASCEND = {
    "moe_layer_count": 2,
    "layer_list": [
        {
            "layer_id": layer,
            "device_count": 2,
            "device_list": [
                {"device_id": 0, "device_expert": [0, 1]},
                {"device_id": 1, "device_expert": [2, 0]},
            ],
        }
        for layer in range(2)
    ],
}


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("moe_layer_count",), 3, "moe_layer_count = 3: layer_list has 2 layers"),
        (("moe_layer_count",), ..., "'moe_layer_count' is missing"),
        (("model",), "x", "unknown key 'model'"),
        (("layer_list",), [], "moe_layer_count"),
        (("layer_list", 1, "layer_id"), 0, r"layer_list\[1\]\.layer_id = 0: expected 1, its position"),
        (("layer_list", 1, "device_count"), 3, r"layer_list\[1\]\.device_count = 3"),
        (("layer_list", 1, "device_list"), [], "device_list has 0 devices"),
        (("layer_list", 1, "device_list", 0, "device_id"), 1, r"device_list\[0\]\.device_id = 1: expected 0"),
        (("layer_list", 1, "device_list", 1, "device_expert"), [2], r"device_list\[1\]\.device_expert has 1 entries"),
        (("layer_list", 1, "device_list", 1, "device_expert"), [], r"device_list\[1\]\.device_expert is empty"),
        (("layer_list", 1, "device_list", 1, "device_expert", 0), "2", r"device_expert\[0\] = '2'"),
        (("layer_list", 1, "device_list", 1, "device_expert", 0), 1, r"layer 1\]: expert 2 has no slot"),
        (("layer_list", 1, "device_list", 1, "device_expert", 0), -5, r"layer 1, slot 2\] = -5"),
        (("layer_list", 1, "device_list", 1, "name"), "x", "unknown key 'name'"),
    ],
)
def test_broken_ascend(keys, value, message, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(edited(ASCEND, keys, value)))
    refuse(path, "ascend", message)


def test_ascend_layers_of_different_redundancy(tmp_path):
    fields = json.loads(json.dumps(ASCEND))
    for device in fields["layer_list"][1]["device_list"]:
        device["device_expert"].append(1)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(fields))
    refuse(path, "ascend", "takes the redundancy of all layers from one")


@pytest.mark.parametrize(("rows", "message"), [case for case in BROKEN_ROWS if case[0] not in (3, [3])])
def test_broken_vllm_rows(rows, message, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(rows))
    refuse(path, "vllm", message)


RECORD = {
    "record_type": "eplb_initial_mapping",
    "version": 1,
    "num_redundant_experts": 1,
    "num_slots": 4,
    "initial_global_assignments": {"0": [0, 1, 2, 0], "1": [2, 1, 0, 1]},
}


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("record_type",), "eplb_load_stats", "record_type"),
        (("version",), 2, "version = 2"),
        (("step",), 7, "unknown key 'step'"),
        (("num_slots",), ..., "'num_slots' is missing"),
        (("num_slots",), 5, "has 4 slots: expected num_slots = 5"),
        (("num_redundant_experts",), 4, "expected less than num_slots"),
        (("num_redundant_experts",), 0, "expert 3 has no slot"),
        (("num_redundant_experts",), 2, r"slot 2\] = 2: expected 0 <= id < 2"),
        (("initial_global_assignments",), {}, "is empty"),
        (("initial_global_assignments",), [], "expected an object"),
        (("initial_global_assignments", "3"), [0, 1, 2, 0], 'key \'3\': expected "0" to "2"'),
        (("initial_global_assignments", "x"), [0, 1, 2, 0], "key 'x'"),
        (("initial_global_assignments", "1"), [0], "1 has 1 slots"),
    ],
)
def test_broken_vllm_record(keys, value, message, tmp_path):
    path = tmp_path / "plan.jsonl"
    path.write_text(json.dumps(edited(RECORD, keys, value)))
    refuse(path, "vllm", message)


def test_a_second_vllm_record_is_refused(tmp_path):
    path = tmp_path / "plan.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + json.dumps(RECORD) + "\n")
    refuse(path, "vllm", "line 2")


DEEPSEEK = {
    "phy2log": np.array([[0, 1, 2, 0]]),
    "log2phy": np.array([[[0, 3], [1, -1], [2, -1]]]),
    "logcnt": np.array([[2, 1, 1]]),
    "num_nodes": np.array(1),
    "num_gpus": np.array(2),
}


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("phy2log", None, "array 'phy2log' is missing"),
        ("logcnt", None, "array 'logcnt' is missing"),
        ("weight", np.array(1), "unknown array 'weight'"),
        ("phy2log", np.array([0, 1, 2, 0]), "phy2log is"),
        ("phy2log", np.array([[0.0, 1, 2, 0]]), "phy2log is float64"),
        ("phy2log", np.zeros((0, 4), dtype=int), "phy2log is"),
        ("phy2log", np.array([[0, 1, 1, 0]]), "expert 2 has no slot"),
        ("logcnt", np.array([[1, 2, 1]]), r"logcnt\[layer 0, expert 0\]"),
        ("logcnt", np.array([[2, 1, 1], [2, 1, 1]]), "logcnt"),
        ("log2phy", np.array([[[0, 3], [2, -1], [1, -1]]]), r"log2phy\[layer 0, expert 1\] = \[2, -1\]"),
        ("log2phy", np.array([[[0, -1], [1, -1], [2, -1]]]), r"log2phy\[layer 0, expert 0\]"),
        ("log2phy", np.array([[[0, 3], [1, -1]]]), "log2phy has shape"),
        ("num_gpus", np.array(3), "multiple of 3 ranks|but 2 was given"),
        ("num_gpus", np.array(0), "num_gpus = 0"),
        ("num_nodes", np.array([1]), "num_nodes is"),
        ("phy2log", np.array([[None]], dtype=object), "not a .npz file of numbers"),
    ],
)
def test_broken_deepseek(name, array, message, tmp_path):
    path = tmp_path / "plan.npz"
    arrays = {**DEEPSEEK, name: array}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    refuse(path, "deepseek", message)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"hello"])
@pytest.mark.parametrize(("name", "suffix"), [("deepseek", ".npz"), ("omni", ".npy")])
def test_broken_array_files(content, name, suffix, tmp_path):
    path = tmp_path / f"plan{suffix}"
    path.write_bytes(content)
    refuse(path, name, f"not a {suffix} file of numbers")


PATTERN = np.array([[[1, 1, 0]], [[1, 0, 1]]])


@pytest.mark.parametrize(
    ("pattern", "hints", "message"),
    [
        (PATTERN[0], HINTS, "expected \\[ranks, layers, experts\\]"),
        (PATTERN[:, :0], HINTS, "shape"),
        (PATTERN * 2, HINTS, r"rank 0, layer 0, expert 0\] = 2: expected 0 or 1"),
        (PATTERN * 0.5, HINTS, "= 0.5: expected 0 or 1"),
        (PATTERN - 1, HINTS, "= -1: expected 0 or 1"),
        (np.where(PATTERN == 1, np.nan, 0), HINTS, "= nan: expected 0 or 1"),
        (PATTERN.astype(str), HINTS, "expected zeros and ones"),
        (PATTERN.astype(complex), HINTS, "expected zeros and ones"),
        (PATTERN * np.array([[[1, 0, 1]]]), HINTS, "expert 1 has no slot"),
        (PATTERN * np.array([[[1]], [[0]]]), HINTS, "rank 1 holds no expert in any layer"),
        (PATTERN, ReadHints(num_ranks=4), "ranks = 2, but 4 was given"),
        (PATTERN, ReadHints(num_experts=4), "experts = 3, but 4 was given"),
        (PATTERN, ReadHints(topology=Topology(1, 2, 1)), "the topology has"),
        (PATTERN, ReadHints(shape=ModelShape(2, 3)), "layers = 1, but 2 was given"),
    ],
)
def test_broken_omni(pattern, hints, message, tmp_path):
    path = tmp_path / "plan.npy"
    np.save(path, pattern)
    refuse(path, "omni", message, hints)
