"""--engine, --engine-option and --sources on every command that takes them."""

import json

import numpy as np
import pytest

import eplb
import eplb_traces
from eplb.dispatch.engine_dispatch import ENGINES
from eplb.formats import read_plan
from eplb_traces import ModelShape, RoutingTrace, TokenBatch, read_load, write_trace

MACHINE = ("--ranks", 4, "--nodes", 2, "--redundant", 8)
MODEL = ("--moe-layers", "1-3", "--hidden-layers", 4)


def _json(result):
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_plan_writes_the_engines_format_and_prints_flags_and_metric(run, load_path, tmp_path):
    out = tmp_path / "plan.json"
    words = ("plan", load_path, *MACHINE, *MODEL, "--strategy", "greedy", "--engine", "sglang", "-o", out)
    found = _json(run(*words, "--json"))
    load = read_load(load_path, moe_layer_ids=(1, 2, 3), num_hidden_layers=4)
    judged = eplb.evaluate(read_plan(out).placement, load, "sglang_static")
    assert found["dispatch"] == "sglang_static"
    assert found["engine_metric"] == {"name": "balancedness, SGLang 0.5.23", "value": judged.balancedness_sglang}
    assert found["written"]["format"] == "sglang"
    assert found["written"]["server_flags"].endswith("--moe-a2a-backend deepep --ep-dispatch-algorithm static")
    assert len(json.loads(out.read_text())["physical_to_logical_map"]) == 4
    shown = run(*words).stdout
    assert "balancedness, SGLang 0.5.23" in shown
    assert "note: sglang 0.5.23 dispatches by sglang_static (run: srt/eplb/expert_location.py" in shown


def test_an_option_chooses_another_rule(run, load_path):
    words = ("plan", load_path, *MACHINE, "--engine", "sglang", "--engine-option", "a2a=none", "--json")
    assert _json(run(*words))["dispatch"] == "sglang_by_row"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--engine", "sglang", "--dispatch", "even"), 2, "sglang dispatches by sglang_static"),
        (("--engine-option", "a2a=none"), 2, "has no effect without --engine"),
        (("--engine", "sglang", "--engine-option", "a2a"), 2, "expected NAME=VALUE"),
        (("--engine", "sglang", "--engine-option", "a2a=none", "--engine-option", "algorithm=lp"), 3, "SGLang refuses"),
        (("--engine", "magic"), 2, "'magic': Expected one of sglang"),
        (("--sources", "1,1,1"), 2, "3 weights: expected one for each of 4 ranks"),
        (("--sources", "1,1,1,x"), 2, "expected a weight for each rank"),
        (("--sources", "1,1,1,-1"), 2, "expected weights >= 0"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "compare"])
def test_what_contradicts_or_is_unknown_is_refused(run, load_path, command, words, code, message):
    result = run(command, load_path, *MACHINE, *words)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_the_format_of_another_engine_is_refused_and_native_is_kept(run, load_path, tmp_path):
    words = ("plan", load_path, *MACHINE, "--engine", "vllm")
    assert run(*words, "--format", "sglang", "-o", tmp_path / "a.json").exit_code == 2
    assert "wrote" in run(*words, "--format", "native", "-o", tmp_path / "b.json").stdout


def test_a_placement_that_the_engine_cannot_run_is_refused(run, load_path, tmp_path):
    path = tmp_path / "twice.json"
    placement = eplb.Placement([[0, 0, *range(1, 16), *range(7)]] * 3, 16, eplb.Topology(1, 4, 6))
    eplb.write_placement(placement, path, shape=read_load(load_path).shape)
    result = run("evaluate", path, load_path, "--engine", "ascend")
    assert result.exit_code == 3
    assert "holds expert 0 twice" in result.stderr


def test_evaluate_shows_the_engines_metric_and_every_layer(run, plan_path, load_path):
    found = _json(run("evaluate", plan_path, load_path, "--engine", "sglang", "--json"))
    judged = eplb.evaluate(read_plan(plan_path).placement, read_load(load_path), "sglang_static")
    assert found["engine"] == "sglang"
    assert [of["max_over_mean"] for of in found["layers"]] == judged.max_over_mean.tolist()
    assert [of["rank_load"] for of in found["layers"]] == judged.total_rank_load.tolist()
    assert [of["gap"] for of in found["layers"]] == judged.gap.tolist()
    assert "balancedness, SGLang 0.5.23" in run("evaluate", plan_path, load_path, "--engine", "sglang").stdout


def test_weights_of_sources_and_a_trace_with_source_ranks_are_the_same(run, plan_path, load_path, tmp_path):
    trace = tmp_path / "trace.parquet"
    shape, tokens = ModelShape(3, 16, 2), 8
    ids = np.tile(np.array([0, 1], dtype=np.uint16), (tokens, 3, 1))
    batch = TokenBatch(shape, ids, np.zeros(tokens, dtype=int), np.arange(tokens), np.array([0] * 5 + [1, 2, 3]))
    write_trace(RoutingTrace(shape, [batch]), trace)
    words = ("evaluate", plan_path, load_path, "--dispatch", "local_first", "--json")
    by_weights, by_trace = (_json(run(*words, "--sources", given)) for given in ("5,1,1,1", trace))
    assert by_weights == by_trace
    placement = read_plan(plan_path).placement
    judged = eplb.evaluate(placement, read_load(load_path), "local_first", sources=[5 / 8, 1 / 8, 1 / 8, 1 / 8])
    assert by_weights["max_over_mean_mean"] == judged.summary()["max_over_mean_mean"]
    assert by_weights["max_over_mean_mean"] != _json(run(*words))["max_over_mean_mean"]


def test_a_trace_without_source_ranks_is_refused(run, plan_path, load_path, tmp_path):
    trace = tmp_path / "trace.parquet"
    shape = ModelShape(3, 16, 2)
    batch = TokenBatch(
        shape, np.tile(np.array([0, 1], dtype=np.uint16), (4, 3, 1)), np.zeros(4, dtype=int), np.arange(4)
    )
    write_trace(RoutingTrace(shape, [batch]), trace)
    result = run("evaluate", plan_path, load_path, "--sources", trace)
    assert result.exit_code == 3
    assert "holds no source ranks" in result.stderr


def test_compare_on_all_engines_is_one_table(run, load_path):
    words = ("compare", load_path, *MACHINE, "--engine", "all")
    found = _json(run(*words, "--json"))["engines"]
    assert [of["engine"] for of in found] == list(ENGINES)
    shown = run(*words).stdout
    assert all(name in shown for name in ENGINES)
    assert run(*words, "--dispatch", "even").exit_code == 2


def test_compare_judges_under_the_engines_rule(run, load_path):
    words = ("compare", load_path, *MACHINE, "--strategies", "linear,greedy", "--engine", "sglang")
    found = _json(run(*words, "--json"))
    made = eplb.plan(read_load(load_path), eplb.Topology(2, 2, 6), "linear")
    judged = eplb.evaluate(made.placement, read_load(load_path), "sglang_static")
    linear = found["strategies"][0]
    assert found["dispatch"] == "sglang_static"
    assert linear["max_over_mean_mean"] == judged.summary()["max_over_mean_mean"]
    assert linear["engine_metric"]["value"] == judged.balancedness_sglang
    assert len(linear["layers"]) == 3
    assert "balancedness, SGLang 0.5.23" in run(*words).stdout


def test_sweep_takes_the_engine(run, load_path, tmp_path):
    words = ("sweep", load_path, "--ranks", 4, "--nodes", 2, "--redundant", "8:8:1", "--engine", "ascend", "--json")
    found = _json(run(*words))
    load = read_load(load_path)
    made = eplb.plan(load, eplb.Topology(2, 2, 6), "greedy", dispatch="ascend")
    judged = eplb.evaluate(made.placement, load, "ascend").summary()
    assert (found["dispatch"], found["points"][0]["max_over_mean_mean"]) == ("ascend", judged["max_over_mean_mean"])


def test_report_takes_the_engine(run, load_path, tmp_path):
    made = eplb.plan(read_load(load_path), eplb.Topology(2, 2, 6), "greedy", dispatch="ascend")
    judged = eplb.evaluate(made.placement, read_load(load_path), "ascend").summary()
    words = ("report", load_path, *MACHINE, "--engine", "ascend", "-o", tmp_path / "report.html", "--json")
    plans = _json(run(*words))["plans"]
    assert plans["greedy"]["max_over_mean_mean"] == judged["max_over_mean_mean"]


def test_simulate_judges_every_policy_under_the_rule(run, tmp_path, counts):
    path = tmp_path / "windows.npz"
    windows = eplb_traces.ExpertLoad(np.stack([np.roll(counts, shift, axis=1) for shift in range(6)]))
    eplb_traces.write_load(windows, path)
    words = ("simulate", path, *MACHINE, "--interval", 2, "--policy", "never", "--json")
    even, sglang = _json(run(*words)), _json(run(*words, "--engine", "sglang"))
    assert (even["dispatch"], sglang["dispatch"]) == ("even", "sglang_static")
    assert even["policies"][0]["max_over_mean_mean"] != sglang["policies"][0]["max_over_mean_mean"]


def test_trace_info_shows_the_numbers_of_ranks_that_were_asked_for(run, load_path):
    found = _json(run("trace", "info", load_path, "--ranks", "2,4", "--json"))
    assert [of["num_ranks"] for of in found["linear_max_over_mean"]] == [2, 4, 16]
    shown = run("trace", "info", load_path, "--ranks", "2,4").stdout
    assert "EP2" in shown
    assert "EP4" in shown
    assert "EP8" not in shown
    refused = run("trace", "info", load_path, "--ranks", "3")
    assert refused.exit_code == 3
    assert "ranks = 3: expected a divisor of 16 experts" in refused.stderr
