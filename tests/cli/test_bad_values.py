"""Values that no option takes: the message names the option as it was typed, not a parameter of the library."""

import json
import re

import numpy as np
import pytest

from eplb_traces import ExpertLoad, write_load
from tests.cli.test_predicted import CONFIG

ON = ("--ranks", 4, "--redundant", 4)
REPLAY = ("replay", "LOAD", "--model", "CONFIG", "--calibration", "h200", "--online", "--ranks", 4, "--device", "cpu")
ADVISE = ("advise", "LOAD", "--model", "CONFIG", "--gpu", "h200")
VIRTUAL = (
    "verify",
    "PLAN",
    "--virtual",
    "--device",
    "cpu",
    "--model",
    "CONFIG",
    "--calibration",
    "h200",
    "--load",
    "LOAD",
)
BAD = [
    (REPLAY, "--every", 0),
    (REPLAY, "--layers-per-step", 0),
    (REPLAY, "--bandwidth", -3),
    (REPLAY, "--tokens-per-rank", -1),
    (("trace", "info", "LOAD"), "--window", 0),
    (("plan", "LOAD", *ON), "--window", -2),
    (("plan", "LOAD", *ON, "-s", "ilp"), "--time-limit", 0),
    (("plan", "LOAD", "--previous", "PLAN"), "--slots", 0),
    (("simulate", "LOAD", *ON), "--interval", 0),
    (("simulate", "LOAD", *ON), "--memory", 0),
    (("simulate", "LOAD", *ON), "--max-moves", -1),
    (("simulate", "LOAD", *ON), "--bandwidth", 0),
    (ADVISE, "--rest-bytes", -1),
    (ADVISE, "--reserve-bytes", -1),
    (ADVISE, "--gpus-per-node", 0),
    (ADVISE, "--nodes", "0:4"),
    (("trace", "synth", "OUT"), "--tokens", 0),
    (("trace", "synth", "OUT"), "--num-windows", 0),
    (("trace", "synth", "OUT"), "--top-k", 0),
    (VIRTUAL, "--tokens-per-rank", 0),
]


@pytest.fixture
def files(run, tmp_path, counts):
    load, plan, config = (tmp_path / name for name in ("load.npz", "plan.json", "config.json"))
    write_load(ExpertLoad(np.stack([counts] * 9)), load)
    assert run("plan", load, *ON, "-s", "greedy", "-o", plan).exit_code == 0
    config.write_text(json.dumps(CONFIG))
    return {"LOAD": load, "PLAN": plan, "CONFIG": config, "OUT": tmp_path / "out.npz"}


@pytest.mark.parametrize(("words", "option", "value"), BAD)
def test_the_option_is_named(run, files, words, option, value):
    if words[0] in ("verify", "replay"):
        pytest.importorskip("torch")
    result = run(*(files.get(word, word) for word in words), option, value, env={"COLUMNS": "200"})
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.search(rf"{option}'?: '?{value}'?", result.stderr)
    assert "expected" in result.stderr


def test_a_single_number_of_redundant_experts_is_tried(run, files):
    words = [files.get(word, word) for word in ADVISE]
    result = run(*words, "--nodes", 1, "--gpus-per-node", 4, "--redundant", 8, "--json")
    assert {row["num_redundant"] for row in json.loads(result.stdout)["deployments"]} == {8}


def test_more_gpus_than_experts_can_use_are_refused(run, files):
    result = run(*(files.get(word, word) for word in ADVISE), "--nodes", 1000)
    assert result.exit_code == 3
    assert "expected at most 256 GPUs for 16 experts" in result.stderr


def test_groups_without_effect_are_refused(run, files):
    phase = ("--phase", "decode", "--calibration", "h200", "--model", files["CONFIG"])
    result = run("plan", files["LOAD"], *ON, *phase, "--groups", 8)
    assert result.exit_code == 2
    assert "no effect" in result.stderr


def test_two_loads_for_a_phase_get_no_note_about_other_strategies(run, files):
    phase = ("--phase", "decode", "--calibration", "h200", "--model", files["CONFIG"])
    result = run("plan", files["LOAD"], files["LOAD"], *ON, *phase)
    assert result.exit_code == 0
    assert "`scenario` plans" not in result.stdout


def test_a_type_of_weights_that_was_not_measured_names_the_option(run):
    result = run("advise", "sample:moe-435m", "--model", "gpt-oss-120b", "--gpu", "h200")
    assert result.exit_code == 3
    assert "'mxfp4': expected one of bf16, fp8; choose one with --dtype bf16" in result.stderr


def test_replica_weights_that_are_ignored_are_named(run, files, tmp_path):
    weighted = tmp_path / "weighted.json"
    assert run("plan", files["LOAD"], *ON, "--dispatch", "weighted", "-o", weighted).exit_code == 0
    said = "note: even dispatch ignores the replica weights of the plan"
    assert said in run("evaluate", weighted, files["LOAD"]).stderr
    assert said not in run("evaluate", weighted, files["LOAD"], "--dispatch", "weighted").stderr
    assert said not in run("evaluate", files["PLAN"], files["LOAD"]).stderr
