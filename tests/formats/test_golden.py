"""One plan in every format, byte for byte as the files in tests/golden.

The plan: a model of 4 layers whose layers 1 and 3 are MoE, 4 experts in 6 slots on 2 ranks, no expert twice on a rank.
"""

from pathlib import Path

import numpy as np
import pytest

from eplb.core.placement import Placement
from eplb.core.problem import BindingBound, LayerCertificate, Plan, SolveStatus
from eplb.core.topology import Topology
from eplb.formats import FORMATS, read_plan, write_plan
from eplb.formats.provenance import eplb_version
from eplb.formats.sidecar import sidecar_path
from eplb_traces import ModelShape

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
ROWS = [[0, 1, 2, 0, 1, 3], [1, 2, 3, 0, 2, 3]]
FILES = {
    "native.json": "native",
    "sglang.json": "sglang",
    "ascend.json": "ascend",
    "trtllm.yaml": "trtllm",
    "vllm.json": "vllm",
    "vllm.jsonl": "vllm",
}


@pytest.fixture
def plan():
    certificates = (
        LayerCertificate(52.5, 50.0, BindingBound.MEAN, SolveStatus.FEASIBLE),
        LayerCertificate(61.0, 61.0, BindingBound.REPLICATION, SolveStatus.OPTIMAL),
    )
    return Plan(
        placement=Placement(ROWS, 4, Topology(1, 2, 3)),
        shape=ModelShape(2, 4, top_k=2, moe_layer_ids=(1, 3), num_hidden_layers=4),
        strategy="greedy",
        status=SolveStatus.FEASIBLE,
        seconds=0.125,
        seed=7,
        layers=certificates,
        notes=("made by hand",),
        load_digest="sha256:0123",
    )


def golden_bytes(name):
    """The version of eplb is in the records and is not what these files pin."""
    return (GOLDEN / name).read_bytes().replace(b"@VERSION@", eplb_version().encode())


@pytest.mark.parametrize("name", [*FILES, "sglang.json.eplb.json"])
def test_text_files_are_the_golden_bytes(name, plan, tmp_path):
    written = name.removesuffix(".eplb.json")
    write_plan(plan, tmp_path / written, FILES[written])
    assert (tmp_path / name).read_bytes() == golden_bytes(name)


@pytest.mark.parametrize("name", FILES)
def test_golden_files_read_back(name, plan, tmp_path):
    write_plan(plan, tmp_path / name, FILES[name])  # for the sidecar
    (tmp_path / name).write_bytes(golden_bytes(name))
    assert read_plan(tmp_path / name) == plan


@pytest.mark.parametrize("name", ["native", "sglang"])
def test_files_of_version_1_are_read(name, plan, tmp_path):
    """They hold the wall time of planning, 0.125 s, which is neither compared nor written any more."""
    record = f"{name}-version-1.json" if name == "native" else f"{name}-version-1.json.eplb.json"
    path = tmp_path / "plan.json"
    path.write_bytes(golden_bytes(f"{name}.json"))
    old = path if name == "native" else sidecar_path(path)
    old.write_bytes(golden_bytes(record))
    assert b'"seconds": 0.125' in old.read_bytes()
    again = read_plan(path)
    assert again == plan
    assert again.seconds == 0
    write_plan(again, path, name)
    assert old.read_bytes() == golden_bytes(record.replace("-version-1", ""))


def test_omni_pattern_is_the_golden_bytes(plan, tmp_path):
    write_plan(plan, tmp_path / "omni.npy", "omni")
    assert (tmp_path / "omni.npy").read_bytes() == (GOLDEN / "omni.npy").read_bytes()
    # Rank 0 holds 0, 1, 2 in the first layer and 1, 2, 3 in the second; rank 1 holds 0, 1, 3 and 0, 2, 3.
    expected = [[[1, 1, 1, 0], [0, 1, 1, 1]], [[1, 1, 0, 1], [1, 0, 1, 1]]]
    np.testing.assert_array_equal(np.load(GOLDEN / "omni.npy"), expected)


def test_archives_hold_the_golden_arrays(plan, tmp_path):
    """Compressed archives are compared by what is in them: zlib's bytes are its version's business."""
    write_plan(plan, tmp_path / "deepseek.npz", "deepseek")
    with np.load(tmp_path / "deepseek.npz") as written, np.load(GOLDEN / "deepseek.npz") as golden:
        assert written.files == golden.files
        for name in golden.files:
            np.testing.assert_array_equal(written[name], golden[name])
            assert written[name].dtype == golden[name].dtype


def test_every_format_has_a_golden_file():
    assert {name.split(".")[0] for name in FILES} | {"omni", "deepseek"} == set(FORMATS)
    assert sidecar_path(GOLDEN / "sglang.json").exists()
