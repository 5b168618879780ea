"""The words of `plan`, `evaluate`, `backtest` and `check` that say for what traffic, machine and rule."""

import json
import re

import numpy as np
import pytest

import eplb
import eplb_traces
from eplb.core.dispatch_rule import DispatchRule
from eplb.formats import read_plan
from eplb.planning.planner import CANDIDATES
from eplb_traces import read_load

MACHINE = ("--ranks", 4, "--nodes", 2, "--redundant", 4)


def _json(result):
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


@pytest.fixture
def windows_path(tmp_path, counts):
    path = tmp_path / "windows.npz"
    eplb_traces.write_load(
        eplb_traces.ExpertLoad(np.stack([np.roll(counts, shift, axis=1) for shift in range(12)])), path
    )
    return path


@pytest.mark.parametrize("rule", ["even", "weighted", "online"])
def test_a_plan_is_made_and_judged_for_its_dispatch_rule(run, load_path, tmp_path, rule):
    out = tmp_path / "plan.json"
    words = ("--strategy", "greedy", "--dispatch", rule)
    found = _json(run("plan", load_path, *MACHINE, *words, "-o", out, "--json"))
    summary = eplb.evaluate(read_plan(out).placement, read_load(load_path), rule).summary()
    assert found["dispatch"] == rule
    assert {name: found[name] for name in summary} == summary
    assert re.search(rf"^dispatch +{rule}$", run("plan", load_path, *MACHINE, *words).stdout, re.MULTILINE)


@pytest.mark.parametrize("rule", [rule.value for rule in DispatchRule if rule is not DispatchRule.WEIGHTED])
def test_a_plan_is_judged_under_every_rule(run, plan_path, load_path, rule):
    found = _json(run("evaluate", plan_path, load_path, "--dispatch", rule, "--json"))
    summary = eplb.evaluate(read_plan(plan_path).placement, read_load(load_path), rule).summary()
    assert found["dispatch"] == rule
    assert found["max_over_mean_mean"] == summary["max_over_mean_mean"]
    assert f"{rule} dispatch" in run("evaluate", plan_path, load_path, "--dispatch", rule).stdout


def test_a_rule_that_is_unknown_or_lacks_its_weights_is_refused(run, plan_path, load_path):
    for command in (("evaluate", plan_path, load_path), ("plan", load_path, *MACHINE)):
        result = run(*command, "--dispatch", "magic")
        assert result.exit_code == 2
        assert "local_first" in result.stderr
    result = run("evaluate", plan_path, load_path, "--dispatch", "weighted")
    assert result.exit_code == 3
    assert "replica_weights" in result.stderr


def test_windows_show_their_p95(run, plan_path, windows_path):
    summary = _json(run("evaluate", plan_path, windows_path, "--json"))
    shown = run("evaluate", plan_path, windows_path).stdout
    assert re.search(rf"p95 of windows and layers +{summary['max_over_mean_p95']:.4f}$", shown, re.MULTILINE)


def test_window_cuts_a_trace_and_sums_the_windows_of_a_load(run, plan_path, windows_path, tmp_path):
    assert len(_json(run("evaluate", plan_path, windows_path, "--window", 5, "--json"))["windows"]) == 3  # 5, 5, 2
    assert len(_json(run("plan", windows_path, *MACHINE, "--window", 6, "--json"))["windows"]) == 2
    trace = tmp_path / "tokens.npz"
    topk_ids = np.arange(6 * 2 * 2, dtype=np.uint8).reshape(6, 2, 2) % 16  # without steps: one batch, one step
    np.savez(trace, topk_ids=topk_ids, request=np.zeros(6, dtype=int))
    result = run("plan", trace, "--ranks", 4, "--num-experts", 16, "--window", 1, "--json")
    assert result.stderr.startswith(
        "read as topk_ids, expert ids [tokens, layers, top-k]: token-level trace, 2 layers (ids unknown)"
    )
    found = json.loads(result.stdout)
    assert found["windows"][0]["window"] == read_load(trace, num_experts=16, window=1).labels[0]
    for path in (trace, windows_path):
        result = run("plan", path, "--ranks", 4, "--num-experts", 16, "--window", 0)
        assert result.exit_code == 2
        assert "--window: 0: expected >= 1" in result.stderr


def test_several_loads_are_windows_of_one_plan(run, load_path, windows_path, counts):
    found = _json(run("plan", load_path, windows_path, *MACHINE, "--json"))
    names = ["load", *(f"windows, window {w}" for w in range(12))]
    assert [of["window"] for of in found["windows"]] == names
    assert found["strategy"] == "scenario"
    assert found["notes"][0].startswith("several loads: ")
    summed = _json(run("plan", load_path, windows_path, *MACHINE, "--strategy", "greedy", "--json"))
    assert summed["strategy"] == "greedy"
    # One bound is the mean: all tokens of both files as they are, over 4 ranks.
    assert summed["layers"][0]["lower_bound"] >= 13 * counts[0].sum() / 4 * (1 - 1e-9)


def test_auto_takes_greedy_for_several_loads_where_it_alone_plans_what_is_asked(run, load_path, windows_path):
    price = ("--groups", 4, "--group-mode", "priced", "--group-price", 0.01)
    assert _json(run("plan", load_path, windows_path, *MACHINE, *price, "--json"))["strategy"] == "greedy"


def test_several_loads_of_one_name_are_told_apart_by_their_paths(run, load_path, counts, tmp_path):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "load.npz"
    eplb_traces.write_load(eplb_traces.ExpertLoad(counts), other)
    found = _json(run("plan", load_path, other, *MACHINE, "--json"))
    assert [of["window"] for of in found["windows"]] == [str(load_path), str(other)]


@pytest.mark.parametrize(
    ("shape", "fragment"),
    [((3, 8), "experts = 8, and 16 in load.npz"), ((2, 16), "other.npz: layers = 2, and 3 in load.npz")],
)
def test_loads_of_different_models_are_not_planned_together(run, load_path, tmp_path, shape, fragment):
    eplb_traces.write_load(eplb_traces.ExpertLoad(np.ones(shape)), tmp_path / "other.npz")
    result = run("plan", load_path, tmp_path / "other.npz", *MACHINE)
    assert (result.exit_code, result.stdout) == (3, "")
    assert fragment in result.stderr


@pytest.fixture
def mindie_path(tmp_path):
    """Two servers of two NPUs: 4 ranks on 2 nodes, 4 redundant experts."""
    model = {"worldSize": 2, "tp": 1, "dp": 4, "moe_tp": 1, "moe_ep": 4}
    options = {"deepseekv2": {"eplb": {"num_redundant_experts": 4}}}
    deploy = {"ModelConfig": [{**model, "models": options}]}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"BackendConfig": {"multiNodesInferEnabled": True, "ModelDeployConfig": deploy}}))
    return path


def test_a_mindie_configuration_says_the_machine(run, load_path, mindie_path, tmp_path):
    out = tmp_path / "plan.json"
    for words in ((), MACHINE):  # saying it again is fine
        assert run("plan", load_path, "--mindie-config", mindie_path, *words, "-o", out).exit_code == 0
        topology = read_plan(out).placement.topology
        assert (topology.num_ranks, topology.num_nodes, topology.num_slots) == (4, 2, 20)


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("--ranks", 8), "moe_ep = 4, but 8"),
        (("--nodes", 1), "nodes = 2, but 1"),
        (("--redundant", 8), "num_redundant_experts = 4, but 8"),
    ],
    ids=str,
)
def test_words_that_contradict_the_configuration_are_bad_input(run, load_path, mindie_path, words, fragment):
    result = run("plan", load_path, "--mindie-config", mindie_path, *words)
    assert (result.exit_code, result.stdout) == (3, "")
    assert fragment in result.stderr


def test_no_machine_at_all_is_a_usage_error(run, load_path):
    result = run("plan", load_path)
    assert result.exit_code == 2
    assert "--ranks" in result.stderr


def test_backtest_scores_every_candidate_on_the_end(run, windows_path):
    found = _json(run("backtest", windows_path, *MACHINE, "--json"))["candidates"]
    assert {of["candidate"] for of in found} == {candidate.name for candidate in CANDIDATES}
    held_out = [of["max_over_mean_held_out"] for of in found]
    assert held_out == sorted(held_out)
    shown = run("backtest", windows_path, *MACHINE)
    assert shown.exit_code == 0
    assert f"{held_out[0]:.4f}" in shown.stdout.splitlines()[3]
    assert max(map(len, shown.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "code", "fragment"),
    [
        (("--window", 6), 3, "a history of 2 windows"),
        (("--held-out", 0), 3, "held_out = 0"),
        (("--dispatch", "magic"), 2, "online"),
        (("--group-mode", "magic"), 2, "pinned"),
    ],
    ids=str,
)
def test_a_backtest_that_cannot_be_is_refused(run, windows_path, words, code, fragment):
    result = run("backtest", windows_path, *MACHINE, *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert fragment in result.stderr


def test_check_knows_the_layers_of_the_model(run, plan_path, tmp_path):
    path = tmp_path / "plan.yaml"
    words = ("--moe-layers", "3-5", "--hidden-layers", 6)
    assert run("convert", plan_path, path, "--to", "trtllm", *words).exit_code == 0
    asked = ("check", path, "--engine", "trtllm", "--ranks", 4)
    good = run(*asked, "--experts", 16, *words)
    assert good.exit_code == 0
    assert "absolute ids" not in good.stdout  # nothing is left to be taken on trust
    wrong = run(*asked, "--experts", 16, "--moe-layers", "2-5", "--hidden-layers", 6)
    assert wrong.exit_code == 3
    assert "layer 2 has no list" in wrong.stderr
    assert run(*asked, *words).exit_code == 2
    assert run(*asked, "--experts", 16, "--hidden-layers", 6).exit_code == 2


CONSTRAINTS = """
pin = [[0, 3]]
forbid = [[5, 0], [5, 1]]
apart = [[1, 2]]
together = [[6, 7]]
expert_bytes = 10
rank_bytes = 50.0
"""


@pytest.mark.parametrize("strategy", ["greedy", "scenario", "auto", "ilp"])
def test_constraints_are_met(run, load_path, tmp_path, strategy):
    if strategy == "ilp":
        pytest.importorskip("ortools")
    path, out = tmp_path / "constraints.toml", tmp_path / "plan.json"
    path.write_text(CONSTRAINTS)
    words = ("--strategy", strategy, "--constraints", path, "-o", out)
    result = run("plan", load_path, *MACHINE, *words, *(("--time-limit", 2) if strategy == "ilp" else ()))
    assert (result.exit_code, result.stderr) == (0, "")
    for row in read_plan(out).placement.physical_to_logical_map:
        held = [set(hand) for hand in row.reshape(4, 5).tolist()]
        assert 0 in held[3]
        assert not {5} & (held[0] | held[1])
        assert all(len(hand & {1, 2}) <= 1 and len(hand & {6, 7}) in (0, 2) for hand in held)


def test_surviving_a_loss_reaches_the_planner(run, load_path, tmp_path):
    out = tmp_path / "plan.json"
    words = ("--ranks", 4, "--nodes", 2, "--redundant", 16)
    for unit, per_unit in (("rank", 8), ("node", 16)):
        assert run("plan", load_path, *words, "--survive", unit, "-o", out).exit_code == 0
        rows = read_plan(out).placement.physical_to_logical_map
        for lost in range(32 // per_unit):
            left = np.delete(rows, np.s_[lost * per_unit : (lost + 1) * per_unit], axis=1)
            assert all(set(row) == set(range(16)) for row in left)
    few = run("plan", load_path, *MACHINE, "--survive", "rank")
    assert (few.exit_code, few.stdout) == (4, "")
    assert "32 slots" in few.stderr
    assert run("plan", load_path, *words, "--survive", "magic").exit_code == 2


def test_constraints_that_no_placement_meets_have_their_own_exit_code(run, load_path, tmp_path):
    path = tmp_path / "constraints.toml"
    path.write_text("pin = [[0, 3]]\nforbid = [[0, 3]]")
    result = run("plan", load_path, *MACHINE, "--strategy", "ilp", "--constraints", path)
    assert (result.exit_code, result.stdout) == (4, "")
    assert "expert 0 is pinned to rank 3 and forbidden there" in result.stderr


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("pin = [[0", "not TOML"),
        ("pin = " + "[" * 4000, "too deep in each other"),
        ("pins = [[0, 1]]", "unknown key 'pins'"),
        ("pin = [[0]]", "pin[0] has 1 entries"),
        ("pin = [0, 1]", "pin[0] is a number: expected a list"),
        ("apart = 3", "apart is a number: expected a list"),
        ("apart = [[0, -1]]", "apart[0][1] = -1"),
        ("together = [[4]]", "together"),
        ("replica_counts = [1, 1.5]", "replica_counts[1] = 1.5"),
        ("expert_bytes = 'much'", "expert_bytes: 'much': expected a number of bytes"),
        ("rank_bytes = [1, -2]", "rank_bytes[1] = -2"),
        ("expert_bytes = 5", "expected both or neither"),
        ("pin = [[16, 0]]", "pin: expert = 16"),
    ],
)
def test_constraints_that_are_none_are_bad_input(run, load_path, tmp_path, text, fragment):
    path = tmp_path / "constraints.toml"
    path.write_text(text)
    result = run("plan", load_path, *MACHINE, "--strategy", "ilp", "--constraints", path)
    assert (result.exit_code, result.stdout) == (3, "")
    assert fragment in result.stderr


@pytest.mark.parametrize(
    ("words", "strategies"),
    [
        (("--constraints", "x.toml"), ("linear", "zigzag", "deepseek")),
        (("--replicate-everywhere", "3"), ("linear", "zigzag", "deepseek")),
        (("--time-limit", 5), ("auto", "greedy", "scenario")),
    ],
    ids=str,
)
def test_words_are_refused_with_strategies_that_would_ignore_them(run, load_path, words, strategies):
    for strategy in strategies:
        result = run("plan", load_path, *MACHINE, "--strategy", strategy, *words)
        assert result.exit_code == 2
        assert words[0] in result.stderr


@pytest.mark.parametrize(("words", "slot"), [((), -1), (("--replicated-slot", "first"), 0)], ids=str)
@pytest.mark.parametrize("strategy", ["auto", "scenario"])
def test_an_expert_is_replicated_everywhere_in_the_slot_that_is_asked(run, load_path, tmp_path, strategy, words, slot):
    out = tmp_path / "plan.json"
    asked = ("--strategy", strategy, "--replicate-everywhere", 7, *words, "-o", out)
    assert run("plan", load_path, *MACHINE, *asked).exit_code == 0
    maps = read_plan(out).placement.physical_to_logical_map
    assert (maps.reshape(len(maps), 4, 5)[:, :, slot] == 7).all()


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("--replicated-slot", "last"), "has no effect without --replicate-everywhere"),
        (("--replicate-everywhere", "7", "--replicated-slot", "first", "--engine", "ascend"), "expects last"),
        (("--replicate-everywhere", "x"), "expected ids"),
        (("--replicate-everywhere", "7", "--constraints", "FILE"), "has replicate_everywhere too"),
    ],
    ids=str,
)
def test_experts_everywhere_that_contradict_other_words_are_refused(run, load_path, tmp_path, words, fragment):
    path = tmp_path / "constraints.toml"
    path.write_text("replicate_everywhere = [3]")
    result = run("plan", load_path, *MACHINE, *(path if word == "FILE" else word for word in words))
    assert (result.exit_code, result.stdout) == (2, "")
    assert fragment in " ".join(result.stderr.replace("│", " ").split())
