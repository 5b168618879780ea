"""Every kind of bad input: exit code 3, one sentence on stderr, nothing on stdout, nothing written."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

import eplb_traces

PLAN = ("plan", "{load}", "--ranks", 4, "-o", "{out}")


@pytest.fixture
def refused(run, tmp_path):
    """Run a command that must be refused; its error sentence."""

    def check(*words):
        paths = {"load": tmp_path / "load.npz", "plan": tmp_path / "plan.json", "out": tmp_path / "out.json"}
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        result = run(*(word.format(**paths) if isinstance(word, str) else word for word in words))
        assert result.exit_code == 3, result.stderr
        assert result.stdout == ""
        assert re.fullmatch(r"error: [^\n]+\n", result.stderr)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        return result.stderr

    return check


def _write_json(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_a_count_that_is_no_count(refused, tmp_path, counts, value):
    counts = counts.copy()
    counts[2, 5] = value
    np.savez(tmp_path / "load.npz", tokens=counts)
    assert "layer 2, expert 5" in refused(*PLAN)


def test_ragged_rows(refused, tmp_path):
    path = _write_json(tmp_path / "ragged.json", {"logical_count": [[1, 2, 3, 4], [1, 2, 3]]})
    refused("plan", path, "--ranks", 2, "-o", "{out}")


def test_a_wrong_expert_id(refused, tmp_path):
    path = tmp_path / "tokens.npz"
    np.savez(path, topk_ids=np.array([[[0, 9]]], dtype=np.uint8))
    assert "9" in refused("plan", path, "--ranks", 4, "--num-experts", 8, "-o", "{out}")


def test_a_load_of_zeros(refused, tmp_path):
    eplb_traces.write_load(eplb_traces.ExpertLoad(np.zeros((3, 16))), tmp_path / "load.npz")
    refused(*PLAN)
    refused("compare", "{load}", "--ranks", 4)


def test_a_load_whose_layers_are_all_dense(refused, tmp_path):
    path = _write_json(tmp_path / "dense.json", {"logical_count": [[0] * 16] * 3})
    refused("plan", path, "--ranks", 4, "-o", "{out}")


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("--redundant", -4), "-4"),
        (("--redundant", 3), "multiple of 4 ranks"),
        (("--nodes", 3), "multiple of nodes = 3"),
        (("--nodes", 0), "nodes"),
        (("--groups", 5), "divisor"),
    ],
    ids=str,
)
def test_an_impossible_machine(refused, load_path, words, fragment):
    assert fragment in refused(*PLAN, *words)


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ((*PLAN, "--group-mode", "tight"), "free, pinned"),
        ((*PLAN, "--strategy", "magic"), "greedy"),
        ((*PLAN, "--to", "magic"), "trtllm"),
        (("compare", "{load}", "--ranks", 4, "--strategies", "greedy,magic"), "greedy"),
        (("convert", "{plan}", "{out}", "--to", "magic"), "trtllm"),
        (("convert", "{plan}", "{out}", "--from", "magic", "--to", "vllm"), "trtllm"),
        (("check", "{plan}", "--engine", "magic", "--ranks", 4), "trtllm"),
        (("trace", "synth", "{out}", "--preset", "magic"), "zipf"),
    ],
    ids=str,
)
def test_an_unknown_name_is_a_usage_error(run, load_path, plan_path, tmp_path, words, fragment):
    places = {"load": load_path, "plan": plan_path, "out": tmp_path / "out.json"}
    result = run(*(str(word).format(**places) for word in words))
    assert (result.exit_code, result.stdout) == (2, "")
    assert fragment in result.stderr
    assert not (tmp_path / "out.json").exists()


def test_a_truncated_parquet_file(refused, run, tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "trace.parquet"
    run("trace", "synth", path, "--layers", 1, "--experts", 16, "--top-k", 2, "--tokens", 64, "--windows", 1)
    path.write_bytes(path.read_bytes()[:-100])
    assert "trace.parquet" in refused("plan", path, "--ranks", 4, "-o", "{out}")
    refused("trace", "info", path)


def test_a_pt_file_that_needs_unpickling(refused, tmp_path):
    torch = pytest.importorskip("torch")
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    torch.save({"logical_count": _Evil(canary)}, path)
    refused("plan", path, "--ranks", 4, "-o", "{out}")
    refused("convert", path, "{out}", "--to", "native", "--ranks", 4)
    assert not canary.exists()
    with pytest.raises(pickle.UnpicklingError):  # the file is as bad as it should be
        torch.load(path, weights_only=True)


class _Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_json_with_extra_keys(refused, tmp_path):
    path = _write_json(tmp_path / "extra.json", {"physical_to_logical_map": [[0, 1]], "comment": "mine"})
    assert "comment" in refused("convert", path, "{out}", "--to", "native", "--ranks", 2)
    assert "comment" in refused("check", path, "--engine", "sglang", "--ranks", 2)


@pytest.mark.parametrize("shape", [(3, 8), (2, 16)])
def test_a_plan_for_another_model(refused, plan_path, tmp_path, shape):
    eplb_traces.write_load(eplb_traces.ExpertLoad(np.ones(shape)), tmp_path / "other.npz")
    sentence = refused("evaluate", plan_path, tmp_path / "other.npz")
    assert "3 layers x 16 experts" in sentence
    assert f"{shape[0]} layers x {shape[1]} experts" in sentence


@pytest.mark.usefixtures("load_path")
def test_an_unwritable_path(refused, plan_path, tmp_path):
    (tmp_path / "folder.json").mkdir()
    for out in (tmp_path / "nowhere" / "out.json", tmp_path / "folder.json"):
        refused("plan", "{load}", "--ranks", 4, "-o", out)
        refused("convert", plan_path, out, "--to", "vllm")
    refused("trace", "convert", "{load}", tmp_path / "nowhere" / "load.csv")
    refused("trace", "synth", tmp_path / "nowhere" / "load.csv", "--layers", 1)


def test_a_file_that_is_not_there(refused, plan_path, tmp_path):
    missing = tmp_path / "missing.json"
    for words in (
        ("plan", missing, "--ranks", 4, "-o", "{out}"),
        ("compare", missing, "--ranks", 4),
        ("evaluate", missing, "{load}"),
        ("evaluate", plan_path, missing),
        ("convert", missing, "{out}", "--to", "native"),
        ("check", missing, "--engine", "sglang", "--ranks", 4),
        ("trace", "info", missing),
        ("trace", "convert", missing, "{out}"),
    ):
        assert "missing.json" in refused(*words)


def test_a_foreign_file_without_what_only_a_flag_can_say(refused, tmp_path):
    path = _write_json(tmp_path / "map.json", [[0, 1, 2, 3]])
    assert "--ranks" in refused("convert", path, "{out}", "--to", "native")
