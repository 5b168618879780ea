"""`eplb compare --plan`: placement files as rows beside those of strategies."""

import csv
import io
import json

import numpy as np
import pytest

import eplb
from eplb.formats import read_plan
from eplb_traces import ExpertLoad, write_load

ON = ("--ranks", 4, "--nodes", 2)


@pytest.fixture
def linear_path(run, load_path, tmp_path):
    path = tmp_path / "linear.json"
    assert run("plan", load_path, *ON, "--redundant", 4, "-s", "linear", "-o", path).exit_code == 0
    return path


def _json(result):
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


@pytest.mark.parametrize("rule", ["even", "vllm", "online"])
def test_files_alone_are_evaluated_under_the_rule(run, load_path, plan_path, linear_path, counts, rule):
    words = ("compare", load_path, "--plan", linear_path, "--plan", plan_path, "--dispatch", rule)
    found = _json(run(*words, "--json"))
    rows = found["strategies"]
    assert [(of["plan"], of["strategy"], of["seconds"]) for of in rows] == [
        ("linear.json", "linear", None),
        ("plan.json", "greedy", None),
    ]
    for of, path in zip(rows, (linear_path, plan_path), strict=True):
        summary = eplb.evaluate(read_plan(path).placement, ExpertLoad(counts), rule).summary()
        assert {name: of[name] for name in summary} == summary
    order = eplb.Topology.for_experts(16, num_ranks=4, num_nodes=2)
    in_order = eplb.plan(ExpertLoad(counts), order, "linear")
    before = eplb.evaluate(in_order.placement, ExpertLoad(counts), rule)
    assert found["before"]["max_over_mean_mean"] == pytest.approx(before.balance["max_over_mean_mean"])


def test_files_are_rows_beside_those_of_strategies(run, load_path, plan_path):
    words = ("compare", load_path, "--plan", plan_path, "--strategies", "linear,greedy")
    rows = _json(run(*words, "--json"))["strategies"]
    assert [of.get("plan", of["strategy"]) for of in rows] == ["plan.json", "linear", "greedy"]
    assert {of["num_slots"] for of in rows} == {20}  # the strategies plan for the slots of the file
    assert rows[0]["max_over_mean_mean"] == rows[2]["max_over_mean_mean"] < rows[1]["max_over_mean_mean"]
    table = [dict(row) for row in csv.DictReader(io.StringIO(run(*words, "--csv").stdout))]
    assert [(row["plan"], row["strategy"]) for row in table] == [
        ("plan.json", "greedy"),
        ("", "linear"),
        ("", "greedy"),
    ]
    shown = run(*words).stdout
    assert "3 layers of 16 experts on 4 ranks, 2 nodes, 20 slots" in shown
    first = [line.split()[0] for line in shown.splitlines() if line]
    assert first.index("plan") < first.index("plan.json") < first.index("linear") < first.index("greedy")


def test_an_engine_file_gets_its_ranks_from_the_options(run, load_path, plan_path, tmp_path):
    bare = tmp_path / "bare" / "sglang.json"
    bare.parent.mkdir()
    assert run("convert", plan_path, bare, "--to", "sglang", "--hidden-layers", 3).exit_code == 0
    for beside in bare.parent.iterdir():
        if beside != bare:
            beside.unlink()
    words = ("compare", load_path, "--plan", plan_path, "--plan", bare)
    assert "rank" in run(*words).stderr
    rows = _json(run(*words, *ON, "--engine", "sglang", "--json"))["strategies"]
    assert rows[0]["engine_metric"] == rows[1]["engine_metric"]
    assert rows[1]["strategy"].startswith("imported:")


def test_files_of_one_name_are_told_apart_by_their_folders(run, load_path, plan_path, linear_path, tmp_path):
    other = tmp_path / "b" / "plan.json"
    other.parent.mkdir()
    other.write_bytes(linear_path.read_bytes())
    rows = _json(run("compare", load_path, "--plan", plan_path, "--plan", other, "--json"))["strategies"]
    assert [(of["plan"], of["strategy"]) for of in rows] == [(str(plan_path), "greedy"), (str(other), "linear")]


def test_predicted_milliseconds_are_those_of_evaluate(run, load_path, plan_path, tmp_path):
    model = {
        **{"model_type": "small", "hidden_size": 256, "moe_intermediate_size": 128, "num_hidden_layers": 3},
        **{"num_experts": 16, "num_experts_per_tok": 4, "torch_dtype": "bfloat16"},
    }
    (tmp_path / "config.json").write_text(json.dumps(model))
    cost = ("--calibration", "h200", "--model", tmp_path / "config.json", "--json")
    (row,) = json.loads(run("compare", load_path, "--plan", plan_path, *cost).stdout)["strategies"]
    alone = json.loads(run("evaluate", plan_path, load_path, *cost).stdout)
    assert row["predicted_step_ms"] == alone["predicted_step_ms"] > 0


@pytest.mark.parametrize(
    "other", [("--redundant", 8), ("--redundant", 4, "--nodes", 1), ("--ranks", 2, "--redundant", 4)]
)
def test_plans_for_other_ranks_nodes_or_slots_are_refused_by_name(run, load_path, plan_path, tmp_path, other):
    path = tmp_path / "other.json"
    assert run("plan", load_path, *ON, *other, "-s", "linear", "-o", path).exit_code == 0
    result = run("compare", load_path, "--plan", plan_path, "--plan", path)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "plan other.json is for" in result.stderr
    assert "as plan plan.json has" in result.stderr


def test_a_plan_for_another_model_is_refused_by_name(run, plan_path, tmp_path):
    path = tmp_path / "small.npz"
    write_load(ExpertLoad(np.ones((2, 16))), path)
    result = run("compare", path, "--plan", plan_path)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "plan plan.json is for 3 layers x 16 experts, another model" in result.stderr


@pytest.mark.parametrize(
    ("words", "option", "reason"),
    [
        ((), "--ranks", "needed, unless --plan gives it"),
        (("--ranks", 4, "--plan-from", "native"), "--plan-from", "needs --plan"),
        (("--plan", "PLAN", "--redundant", 4), "--redundant", "cannot be chosen with --plan"),
        (("--plan", "PLAN", "--groups", 4), "--groups", "has no effect with --plan and without"),
        (("--plan", "PLAN", "--seed", 4), "--seed", "has no effect with --plan and without"),
        (("--plan", "PLAN", "--engine", "all"), "--plan", "has no effect with --engine all"),
        (("--plan", "PLAN", "--plan", "PLAN"), "--plan", "given twice"),
    ],
)
def test_what_does_not_go_together_is_refused(run, load_path, plan_path, words, option, reason):
    result = run("compare", load_path, *(plan_path if word == "PLAN" else word for word in words))
    assert (result.exit_code, result.stdout) == (2, "")
    flat = " ".join(result.stderr.replace("│", " ").split())
    assert f"Invalid value for {option}:" in flat
    assert reason in flat


def test_ranks_that_contradict_the_file_are_refused(run, load_path, plan_path):
    result = run("compare", load_path, "--plan", plan_path, "--ranks", 8)
    assert result.exit_code == 3
    assert "plan.json: ranks = 4, but 8 was given" in result.stderr


def test_evaluate_takes_several_loads(run, load_path, plan_path, counts, tmp_path):
    other = tmp_path / "other.npz"
    write_load(ExpertLoad(counts[:, ::-1]), other)
    found = _json(run("evaluate", plan_path, load_path, other, "--json"))
    both = ExpertLoad(np.stack([counts, counts[:, ::-1]]))
    summary = eplb.evaluate(read_plan(plan_path).placement, both).summary()
    assert {name: found[name] for name in ("max_over_mean_mean", "max_over_mean_worst", "num_windows")} == {
        name: pytest.approx(summary[name]) for name in ("max_over_mean_mean", "max_over_mean_worst", "num_windows")
    }
