"""Milliseconds beside balance: the commands print what the cost model predicts, and nothing changes without it."""

import json
import re

import numpy as np
import pytest

import eplb
from eplb.core.dispatch_rule import DispatchRule
from eplb.cost import Phase, model_sizes, named_calibration
from eplb.evaluation.step_cost import StepCost
from eplb_traces import ExpertLoad, write_load

CONFIG = {
    "model_type": "small", "hidden_size": 256, "moe_intermediate_size": 128, "num_hidden_layers": 3,
    "num_experts": 16, "num_experts_per_tok": 4, "torch_dtype": "bfloat16",
}  # fmt: skip
ON = ("--ranks", 4, "--nodes", 2)


@pytest.fixture
def asked(tmp_path):
    """The words that ask for milliseconds on an H200."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return ("--calibration", "h200", "--model", tmp_path / "config.json")


def _expected(tmp_path, load, placement, tokens=128, seed=0):
    cost = StepCost(
        model=model_sizes(str(tmp_path / "config.json")), calibration=named_calibration("h200"),
        tokens_per_rank=tokens, seed=seed,
    )  # fmt: skip
    return cost.predict(placement, cost.batch(load, placement.topology), DispatchRule.EVEN).summary()


def _object(result):
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_evaluate_and_compare_print_the_prediction(run, load_path, plan_path, counts, asked, tmp_path):
    load, placement = ExpertLoad(counts), eplb.read_placement(plan_path)
    expected = _expected(tmp_path, load, placement)
    found = _object(run("evaluate", plan_path, load_path, *asked, "--json"))
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["prediction"]["provenance"] == "measured"
    assert found["prediction"]["choices"] == "sampled from the load, seed 0"
    words = ("compare", load_path, *ON, "--redundant", 4, "--strategies", "linear,greedy", *asked)
    rows = _object(run(*words, "--json"))["strategies"]
    assert rows[1]["predicted_step_ms"] == pytest.approx(expected["predicted_step_ms"])
    shown = run(*words)
    assert f"{expected['predicted_step_ms']:.2f}" in shown.stdout
    assert "Predicted ms of a step, small (bf16) on NVIDIA H200 (measured), 128 tokens a rank" in shown.stdout
    assert "not in the milliseconds: attention" in shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 90  # the title alone is not wrapped


def test_engines_are_compared_in_milliseconds(run, load_path, asked):
    words = ("compare", load_path, *ON, "--redundant", 4, "--engine", "all")
    found = _object(run(*words, *asked, "--json"))
    assert all(one[who]["predicted_step_ms"] > 0 for one in found["engines"] for who in ("own", "eplb"))
    assert "predicted" not in run(*words, "--json").stdout
    assert "step ms" in run(*words, *asked).stdout


def test_sweep_predicts_each_point(run, load_path, counts, asked, tmp_path):
    words = ("sweep", load_path, *ON, "--redundant", "0:4:4")
    points = _object(run(*words, *asked, "--phase", "prefill", "--json"))["points"]
    topology = eplb.Topology.for_experts(16, num_ranks=4, num_nodes=2, num_redundant=4)
    plan = eplb.plan(ExpertLoad(counts), topology, "greedy")
    expected = _expected(tmp_path, ExpertLoad(counts), plan.placement, Phase.PREFILL.tokens_per_rank)
    assert 1e3 * points[1]["predicted_step_s"] == pytest.approx(expected["predicted_step_ms"])
    assert "predicted" not in run(*words, "--json").stdout
    shown = run(*words, *asked, "--phase", "prefill").stdout
    assert f"{expected['predicted_step_ms']:.2f}" in shown
    assert "step on NVIDIA H200 (measured)" in shown


def test_simulate_predicts_each_step(run, asked, tmp_path):
    tokens = np.random.default_rng(2).lognormal(3, 1, (12, 3, 16)).round() + 1
    write_load(ExpertLoad(tokens), tmp_path / "history.npz")
    words = ("simulate", tmp_path / "history.npz", *ON, "--redundant", 4, "--interval", 4, "--policy", "never")
    (found,) = _object(run(*words, *asked, "--json"))["policies"]
    assert len(found["predicted_step_ms_by_step"]) == 8
    assert found["predicted_step_ms_mean"] == pytest.approx(np.mean(found["predicted_step_ms_by_step"]))
    assert "predicted" not in run(*words, "--json").stdout
    row = run(*words, *asked).stdout.splitlines()[3].split()
    assert row[-2:] == [f"{found['predicted_step_ms_mean']:.2f}", f"{found['predicted_step_ms_p95']:.2f}"]


def test_a_formula_is_marked_in_every_table(run, load_path, plan_path, asked):
    by_formula = ("--calibration", "h100", *asked[2:])
    for words in (
        ("evaluate", plan_path, load_path),
        ("compare", load_path, *ON),
        ("compare", load_path, *ON, "--engine", "all"),
        ("sweep", load_path, *ON, "--redundant", "0:4:4"),
    ):
        result = run(*words, *by_formula)
        assert "NVIDIA H100 SXM (formula)" in result.stdout, words
        assert "FORMULA: nobody measured NVIDIA H100 SXM" in result.stderr, words


def test_an_option_without_effect_is_refused(run, load_path, asked):
    words = ("compare", load_path, *ON)
    for option in (asked[2:], ("--phase", "decode"), ("--tokens-per-rank", 8), ("--dtype", "bf16")):
        result = run(*words, *option)
        assert (result.exit_code, result.stdout) == (2, ""), option
        assert re.search(r"has no effect\s", result.stderr), option
    for more in (
        asked[:2],
        (*asked, "--sources", "0.4,0.2,0.2,0.2"),
        (*asked, "--phase", "mixed", "--tokens-per-rank", 8),
    ):
        assert run(*words, *more).exit_code == 2, more
    assert run(*words, *asked, "--phase", "lunch").exit_code == 2
    assert run(*words, "--calibration", "abacus", *asked[2:]).exit_code == 2


def test_a_load_of_another_model_is_refused(run, load_path):
    result = run("compare", load_path, *ON, "--calibration", "h200", "--model", "deepseek-v3")
    assert result.exit_code == 3
    assert "model deepseek-v3 has 256 experts: expected 16, as the load" in result.stderr
