"""Every program in examples/ runs and prints what it promises."""

import os
import re
import runpy
import subprocess
import sys

import pytest

import eplb
from tests.pages import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
MOST_LINES = 96
PRINTS = {
    "generate_with_plan": r"linear: .* tokens/s.*deepseek: .* tokens/s.*greedy: .* tokens/s.*same tokens: yes",
    "plan_for_sglang": r"experts in order: .* 1\.918.*scenario: .* 1\.1.*--init-expert-location \S*out\.json",
    "record_and_look": r"312 tokens, 2 layers of 16 experts\nlayer 0: .*lift.*on 4 ranks: 1\.",
    "own_strategy": r"linear: .* 2\.\d+.*snake: .* 1\..*greedy: .* 1\.\d+",
    "engine_start": r"rank 7: 34 slots in each of 8 layers filled\nall ranks have read the plan sha256:",
}


def _run(name: str, arguments: list[str], monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("name", PRINTS)
def test_an_example_runs_and_prints_its_result(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    if name in ("record_and_look", "generate_with_plan"):
        pytest.importorskip("transformers")
    suffix = {"plan_for_sglang": ".json", "record_and_look": ".parquet", "engine_start": ".json"}.get(name, "")
    arguments = [] if name == "generate_with_plan" else [str(tmp_path / f"out{suffix}")]
    printed = _run(name, arguments, monkeypatch, capsys)
    assert re.search(PRINTS[name], printed, re.DOTALL), printed


def test_two_processes_generate_with_a_saved_model_under_a_plan_of_a_file(tmp_path):
    pytest.importorskip("transformers")
    from eplb.runtime import model_shape
    from tests.traces.recorder import models

    model = models.build("qwen3_moe")
    model.save_pretrained(tmp_path / "model")
    shape = model_shape(model)
    assert (shape.num_layers, shape.num_experts, shape.top_k, shape.moe_layer_ids) == (3, 8, 3, (0, 1, 2))
    topology = eplb.Topology.for_experts(8, num_ranks=4, num_redundant=4)
    load = eplb.ExpertLoad([[1.0 + expert for expert in range(8)]] * 3, shape=shape)
    eplb.write_placement(eplb.plan(load, topology, "greedy"), tmp_path / "plan.json")
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "examples/generate_with_plan.py"]
    words += ["--model", str(tmp_path / "model"), "--plan", str(tmp_path / "plan.json"), "--online"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.search(PRINTS["generate_with_plan"], done.stdout, re.DOTALL), done.stdout
    assert re.search(r"plan\.json: \d+ tokens/s, .*\nParallelModel\(3 layers, 6 slots of ranks 0 to 1", done.stdout)


def test_every_example_is_run_and_short():
    files = sorted(EXAMPLES.glob("*.py"))
    assert [path.stem for path in files] == sorted(PRINTS)
    assert all(len(path.read_text().splitlines()) <= MOST_LINES for path in files)
