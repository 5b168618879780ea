"""A placement given as a load, and a load given as a placement, are named as what they are."""

import pytest


@pytest.mark.parametrize("words", [("trace", "info"), ("plan", "--ranks", 4), ("report", "--ranks", 4, "-o", "r")])
def test_a_placement_is_no_load(run, plan_path, words):
    result = run(*words, plan_path)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == f"error: {plan_path}: a placement (native): expected a load or a trace\n"


def test_a_load_is_no_placement(run, plan_path, load_path, tmp_path):
    for words in (
        ("evaluate", load_path, load_path),
        ("diff", plan_path, load_path),
        ("convert", load_path, tmp_path / "out.json", "--to", "native"),
    ):
        result = run(*words)
        assert (result.exit_code, result.stdout) == (3, "")
        assert f"{load_path}: a load or trace (" in result.stderr
        assert result.stderr.endswith("): expected a placement\n")


def test_a_file_that_is_neither_keeps_its_error(run, tmp_path, load_path):
    neither = tmp_path / "neither.json"
    neither.write_text("{}")
    assert "expected one of the known forms of .json" in run("trace", "info", neither).stderr
    assert "no format has these keys" in run("evaluate", neither, load_path).stderr
