"""Each command on good input: exit code, stdout, stderr and the file."""

import json

import numpy as np
import pytest

import eplb
import eplb_traces
from eplb.formats import FORMATS, read_plan
from eplb.formats.engine_check import check_file
from eplb.strategies import ONLY_WHEN_NAMED, STRATEGIES
from eplb_traces import ModelShape, read_load, read_trace, synthesize_trace, write_trace

MACHINE = ("--ranks", 4, "--nodes", 2, "--redundant", 4)
METRICS = {
    *(
        "max_over_mean_mean",
        "max_over_mean_worst",
        "balancedness_vllm",
        "balancedness_sglang",
        "imbalance_ratio_trtllm",
    ),
    *("gap_mean", "gap_worst", "duplicate_slots", "num_layers", "num_ranks", "num_slots"),
}


def _json(result):
    """The one JSON object of a run that went well and had nothing to say."""
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def test_plan_writes_the_plan_it_shows(run, load_path, tmp_path, counts):
    out = tmp_path / "plan.json"
    result = run("plan", load_path, *MACHINE, "--strategy", "greedy", "-o", out)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "3 layers of 16 experts in 20 slots on 4 ranks of 2 nodes" in result.stdout
    assert f"wrote {out} (native)" in result.stdout
    topology = eplb.Topology.for_experts(16, num_ranks=4, num_nodes=2, num_redundant=4)
    expected = eplb.plan(eplb.ExpertLoad(counts), topology, "greedy")
    assert read_plan(out).placement == expected.placement
    best = eplb.evaluate(expected.placement, eplb.ExpertLoad(counts)).summary()["max_over_mean_mean"]
    assert f"{best:.4f}" in result.stdout


def test_plan_without_output_writes_nothing(run, load_path, tmp_path):
    before = sorted(tmp_path.iterdir())
    assert run("plan", load_path, *MACHINE).exit_code == 0
    assert sorted(tmp_path.iterdir()) == before


def test_plan_as_json_is_one_object_with_the_metrics(run, load_path, tmp_path):
    out = tmp_path / "plan.jsonl"
    found = _json(run("plan", load_path, *MACHINE, "--strategy", "zigzag", "--format", "vllm", "-o", out, "--json"))
    assert METRICS | {"strategy", "status", "seconds", "seed", "notes", "windows", "layers", "written"} <= set(found)
    assert found["strategy"] == "zigzag"
    assert found["written"]["path"] == str(out)
    assert "initial_mapping_path" in found["written"]["server_flags"]
    assert len(found["layers"]) == 3
    assert all(layer["objective"] >= layer["lower_bound"] * (1 - 1e-9) for layer in found["layers"])


def test_auto_says_what_it_picked(run, load_path):
    assert "note: auto: " in run("plan", load_path, *MACHINE).stdout


def test_plan_overwrites_an_existing_file(run, load_path, tmp_path):
    out = tmp_path / "plan.json"
    out.write_text("old")
    assert run("plan", load_path, *MACHINE, "-o", out).exit_code == 0
    assert read_plan(out).placement.num_slots == 20


@pytest.mark.parametrize(("num_windows", "shown"), [(3, 3), (40, 12)])
def test_several_windows_are_shown_one_by_one_and_many_by_the_worst(run, tmp_path, counts, num_windows, shown):
    path = tmp_path / "windows.npz"
    tokens = np.stack([np.roll(counts, shift, axis=1) for shift in range(num_windows)])
    eplb_traces.write_load(eplb_traces.ExpertLoad(tokens), path)
    result = run("plan", path, *MACHINE)
    assert result.stdout.count("\nwindow ") == shown + 1  # and the heading
    found = _json(run("plan", path, *MACHINE, "--json"))
    assert [of["window"] for of in found["windows"]] == [f"window {w}" for w in range(num_windows)]
    assert max(of["max_over_mean_worst"] for of in found["windows"]) == found["max_over_mean_worst"]


def test_groups_and_group_mode_reach_the_planner(run, load_path, tmp_path):
    out = tmp_path / "plan.json"
    words = ("--strategy", "deepseek", "--groups", 4, "--group-mode", "pinned", "-o", out)
    assert run("plan", load_path, *MACHINE, *words).exit_code == 0
    node_of_slot = np.arange(20) // 10
    for row in read_plan(out).placement.physical_to_logical_map:  # pinned: no group of 4 experts is on two nodes
        nodes_of_group = {(expert // 4, node) for expert, node in zip(row, node_of_slot, strict=True)}
        assert len(nodes_of_group) == 4


def test_compare_shows_every_strategy_in_80_columns(run, load_path):
    result = run("compare", load_path, *MACHINE)
    assert result.exit_code == 0
    rows = {line.split()[0] for line in result.stdout.splitlines() if line}
    assert set(STRATEGIES) - ONLY_WHEN_NAMED <= rows
    assert not rows & ONLY_WHEN_NAMED
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_compare_as_json(run, load_path):
    found = _json(run("compare", load_path, *MACHINE, "--json"))
    assert [of["strategy"] for of in found["strategies"]] == [
        name for name in STRATEGIES if name not in ONLY_WHEN_NAMED
    ]
    assert all(set(of) >= METRICS for of in found["strategies"])


def test_compare_takes_a_choice_of_strategies(run, load_path):
    found = _json(run("compare", load_path, *MACHINE, "--strategies", "greedy,linear", "--json"))
    assert [of["strategy"] for of in found["strategies"]] == ["greedy", "linear"]


def test_evaluate_says_what_the_library_says(run, plan_path, load_path, counts):
    found = _json(run("evaluate", plan_path, load_path, "--json"))
    summary = eplb.evaluate(read_plan(plan_path).placement, eplb.ExpertLoad(counts)).summary()
    assert {name: found[name] for name in summary} == summary
    assert f"{summary['max_over_mean_mean']:.4f}" in run("evaluate", plan_path, load_path).stdout


def test_evaluate_with_a_trace_says_what_a_token_visits(run, tmp_path):
    trace = synthesize_trace(shape=ModelShape(2, 16, 4), num_steps=1, tokens_per_step=40)
    plan = tmp_path / "plan.json"
    path = tmp_path / "trace.parquet"
    write_trace(trace, path)
    assert run("plan", path, *MACHINE, "-o", plan).exit_code == 0
    found = _json(run("evaluate", plan, path, "--trace", path, "--json"))
    judged = eplb.evaluate(read_plan(plan).placement, trace.load(), trace=trace).summary()
    assert {name: found[name] for name in judged} == judged
    line = f"{judged['ranks_per_token']:.4f} / {judged['nodes_per_token']:.4f}"
    assert line in run("evaluate", plan, path, "--trace", path).stdout


def test_evaluate_reads_a_bare_file_of_an_engine_with_hints(run, plan_path, load_path, tmp_path):
    bare = tmp_path / "map.json"
    bare.write_text(json.dumps(read_plan(plan_path).placement.physical_to_logical_map.tolist()))
    words = ("--format", "vllm", "--ranks", 4, "--nodes", 2, "--json")
    mine, native = (
        _json(run("evaluate", bare, load_path, *words)),
        _json(run("evaluate", plan_path, load_path, "--json")),
    )
    assert {name: mine[name] for name in METRICS} == {name: native[name] for name in METRICS}


@pytest.mark.parametrize("name", list(FORMATS))
def test_convert_writes_every_format_and_reads_it_back(run, plan_path, tmp_path, name):
    there = tmp_path / f"there{FORMATS[name].suffixes[0]}"
    result = run("convert", plan_path, there, "--to", name, "--moe-layers", "1-3", "--hidden-layers", 4)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"wrote {there} ({name})\n  ")
    back = tmp_path / "back.json"
    assert run("convert", there, back, "--from", name, "--to", "native").exit_code == 0
    before, after = read_plan(plan_path).placement, read_plan(back).placement
    assert after.topology == before.topology
    assert np.array_equal(after.logical_replica_count, before.logical_replica_count)
    assert read_plan(back).shape.moe_layer_ids == (1, 2, 3)


def test_convert_of_a_bare_file_takes_what_is_missing_from_flags(run, tmp_path):
    bare = tmp_path / "sglang.json"  # one dense layer, two MoE layers of 3 experts in 4 slots
    bare.write_text('{"physical_to_logical_map": [[0, 0, 0, 0], [0, 1, 2, 0], [2, 1, 0, 1]]}')
    out = tmp_path / "plan.yaml"
    words = ("--ranks", 2, "--experts", 3, "--moe-layers", "1,2")
    result = run("convert", bare, out, "--to", "trtllm", *words)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "  1: [0, 1, 2, 0]" in out.read_text()
    assert "  2: [2, 1, 0, 1]" in out.read_text()


def test_convert_with_flags_that_contradict_the_file_writes_nothing(run, plan_path, tmp_path):
    first = tmp_path / "first.json"
    assert run("convert", plan_path, first, "--to", "native", "--moe-layers", "3-5").exit_code == 0
    for words in (("--moe-layers", "1-3"), ("--moe-layers", "1-9"), ("--ranks", 5), ("--experts", 17)):
        result = run("convert", first, tmp_path / "second.json", "--to", "native", *words)
        assert result.exit_code == 3, words
        assert not (tmp_path / "second.json").exists()


@pytest.mark.parametrize("text", ["", "3-", "-3", "a", "1,,2", "1-2-3", "5-3"])
def test_layer_ids_that_are_none_are_a_usage_error(run, plan_path, tmp_path, text):
    result = run("convert", plan_path, tmp_path / "x.json", "--to", "native", f"--moe-layers={text}")
    assert result.exit_code == 2
    assert not (tmp_path / "x.json").exists()


def test_check_accepts_what_convert_writes_and_refuses_other_ranks(run, plan_path, tmp_path):
    path = tmp_path / "vllm.json"
    run("convert", plan_path, path, "--to", "vllm")
    good = run("check", path, "--engine", "vllm", "--ranks", 4, "--experts", 16)
    assert good.exit_code == 0
    assert good.stdout == f"{check_file(path, 'vllm', 4, 16)}\n"
    assert "3 layers, 16 experts + 4 redundant = 20 slots on 4 ranks of 5" in good.stdout
    bad = run("check", path, "--engine", "vllm", "--ranks", 6)
    assert bad.exit_code == 3
    assert bad.stdout == ""


def test_formats_and_strategies_list_the_tables(run):
    for command, table in (("formats", FORMATS), ("strategies", STRATEGIES)):
        result = run(command)
        assert result.exit_code == 0
        assert set(table) <= {line.split()[0] for line in result.stdout.splitlines() if line}
        assert max(map(len, result.stdout.splitlines())) <= 80
        assert list(_json(run(command, "--json"))) == list(table)


def test_trace_info_of_a_load(run, load_path, counts):
    found = _json(run("trace", "info", load_path, "--json"))
    assert (found["kind"], found["layers"], found["experts"], found["windows"]) == ("load", 3, 16, 1)
    assert found["expert_choices"] == counts.sum()
    by_ranks = {of["num_ranks"]: of for of in found["linear_max_over_mean"]}
    assert set(by_ranks) == {8, 16}
    ratios = counts.max(axis=1) / counts.mean(axis=1)  # one expert a rank
    assert by_ranks[16]["mean"] == pytest.approx(ratios.mean())
    assert by_ranks[16]["worst"] == pytest.approx(ratios.max())
    table = run("trace", "info", load_path).stdout
    assert f"{ratios.max():.4f}" in table
    assert "not recorded" in table


def test_a_synthetic_trace_is_made_looked_at_counted_and_planned(run, tmp_path):
    pytest.importorskip("pyarrow")
    trace, load = tmp_path / "trace.parquet", tmp_path / "load.npz"
    shape = ("--layers", 2, "--experts", 16, "--top-k", 2, "--groups", 4)
    made = run("trace", "synth", trace, "--preset", "v3-decode", *shape, "--tokens", 32, "--windows", 4, "--seed", 7)
    assert (made.exit_code, made.stdout, made.stderr) == (0, f"wrote {trace}\n", "")
    found = _json(run("trace", "info", trace, "--json"))
    assert (found["kind"], found["tokens"], found["top_k"]) == ("token-level trace", 128, 2)
    assert run("trace", "convert", trace, load, "--window", 2).exit_code == 0
    assert read_load(load).num_windows == 2
    assert np.array_equal(read_load(load).total, read_trace(trace).load().total)
    assert run("plan", trace, "--ranks", 4, "--redundant", 4).exit_code == 0


def test_a_load_converts_to_every_kind_of_file(run, load_path, tmp_path, counts):
    for name, words in (("load.csv", ()), ("load.json", ("--moe-layers", "0-2", "--hidden-layers", 3))):
        assert run("trace", "convert", load_path, tmp_path / name, *words).exit_code == 0
        assert np.array_equal(read_load(tmp_path / name).total, counts)


def test_tokens_without_the_number_of_experts_need_the_flag(run, tmp_path):
    pytest.importorskip("pyarrow")
    path, out = tmp_path / "tokens.npz", tmp_path / "out.parquet"
    np.savez(path, topk_ids=np.array([[[0, 1]], [[2, 3]]], dtype=np.uint8))
    refused = run("trace", "convert", path, out)
    assert refused.exit_code == 3
    assert not out.exists()
    assert run("trace", "convert", path, out, "--num-experts", 8, "--moe-layers", "0").exit_code == 0
    assert read_trace(out).shape.num_experts == 8
    assert run("plan", path, "--ranks", 4, "--num-experts", 8, "--moe-layers", "0").exit_code == 0


def test_the_same_synthetic_words_make_the_same_file(run, tmp_path):
    words = ("--preset", "zipf", "--layers", 2, "--experts", 8, "--top-k", 2, "--groups", 1, "--tokens", 100)
    for name in ("a.csv", "b.csv"):
        assert run("trace", "synth", tmp_path / name, *words).exit_code == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_nodes_may_be_the_ranks_of_each(run, load_path, tmp_path):
    out, words = tmp_path / "plan.json", ("--nodes", "3,1", "--redundant", 4)
    assert run("plan", load_path, *words, "-o", out).exit_code == 0
    assert read_plan(out).placement.topology == eplb.Topology(2, (3, 1), 5)
    assert _json(run("compare", load_path, "--ranks", 4, *words, "--strategies", "greedy", "--json"))["strategies"]
    assert run("evaluate", out, load_path, "--nodes", "3,1").exit_code == 0
    assert "nodes = (3, 1), but 2 was given" in run("evaluate", out, load_path, "--nodes", 2).stderr
    assert "ranks = 5: expected 4, the sum of nodes = 3,1" in run("plan", load_path, "--ranks", 5, *words).stderr
    for text in ("x", "3,", "-1"):
        assert run("plan", load_path, "--ranks", 4, "--nodes", text).exit_code == 2
