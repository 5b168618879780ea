"""The dialect of `eplb plan -o`: as typed, that of the engine, that of the live file, what the suffix says."""

import json

import pytest

from eplb.formats import detect_format

ON = ("--ranks", 4, "--redundant", 4)


@pytest.mark.parametrize(
    ("name", "more", "dialect"),
    [
        ("plan.json", (), "native"),
        ("plan.jsonl", (), "vllm"),
        ("plan.npz", (), "deepseek"),
        ("plan.json", ("--format", "ascend"), "ascend"),
        ("plan.json", ("--engine", "ascend"), "ascend"),
    ],
)
def test_a_new_plan(run, load_path, tmp_path, name, more, dialect):
    out = tmp_path / name
    result = run("plan", load_path, *ON, "-o", out, *more, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["written"]["format"] == dialect
    assert detect_format(out).name == dialect


def test_a_replan_is_written_as_the_live_file_is(run, load_path, tmp_path):
    live, new = tmp_path / "live.json", tmp_path / "new.json"
    assert run("plan", load_path, *ON, "-s", "linear", "-o", live, "--format", "ascend").exit_code == 0
    result = run("plan", load_path, "--previous", live, "-o", new)
    assert result.exit_code == 0, result.stderr
    assert f"wrote {new} (ascend)" in result.stdout
    assert run("plan", load_path, "--previous", live, "-o", tmp_path / "new.npz", "--json").exit_code == 0
    assert detect_format(tmp_path / "new.npz").name == "deepseek"


def test_an_unknown_suffix_is_still_refused(run, load_path, tmp_path):
    result = run("plan", load_path, *ON, "-o", tmp_path / "plan.txt")
    assert result.exit_code == 3
    assert "expected a name that ends in .json" in result.stderr
