"""Every program in examples/ runs and prints what it promises."""

import re
import runpy
import sys

import pytest

from tests.pages import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
MOST_LINES = 60
PRINTS = {
    "generate_with_plan": r"linear: .* tokens/s.*deepseek: .* tokens/s.*greedy: .* tokens/s.*same tokens: yes",
    "plan_for_sglang": r"experts in order: .* 1\.918.*scenario: .* 1\.1.*--init-expert-location \S*out\.json",
    "record_and_look": r"312 tokens, 2 layers of 16 experts\nlayer 0: .*lift.*on 4 ranks: 1\.",
    "own_strategy": r"linear: .* 2\.\d+.*snake: .* 1\..*greedy: .* 1\.\d+",
    "engine_start": r"rank 7: 34 slots in each of 8 layers filled\nall ranks have read the plan sha256:",
}


def _run(name: str, argument: str, monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", [name, argument])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("name", PRINTS)
def test_an_example_runs_and_prints_its_result(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    if name in ("record_and_look", "generate_with_plan"):
        pytest.importorskip("transformers")
    suffix = {"plan_for_sglang": ".json", "record_and_look": ".parquet", "engine_start": ".json"}.get(name, "")
    printed = _run(name, str(tmp_path / f"out{suffix}"), monkeypatch, capsys)
    assert re.search(PRINTS[name], printed, re.DOTALL), printed


def test_every_example_is_run_and_short():
    files = sorted(EXAMPLES.glob("*.py"))
    assert [path.stem for path in files] == sorted(PRINTS)
    assert all(len(path.read_text().splitlines()) <= MOST_LINES for path in files)
