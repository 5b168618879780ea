"""`eplb plan --phase`: what is printed and written is what the library computes; what would be ignored is refused."""

import json

import numpy as np
import pytest

import eplb
from eplb.core.problem import Problem
from eplb.cost import model_sizes, named_calibration
from eplb.formats import read_plan
from eplb.planning.phase import phase_target
from eplb.planning.two_phases import PhaseProblem, plan_phases
from eplb_traces import write_load

TOPOLOGY = ("--ranks", 32, "--redundant", 32)
WORDS = ("--calibration", "h200", "--model", "deepseek-v3", "--dtype", "bf16")


@pytest.fixture
def load_paths(tmp_path):
    paths = []
    for name, seed in (("prefill", 1), ("decode", 2)):
        path = tmp_path / f"{name}.npz"
        write_load(eplb.ExpertLoad(np.random.default_rng(seed).lognormal(5, 0.7, (2, 256)).round()), path)
        paths.append(path)
    return paths


def test_a_plan_for_decode_says_what_redundancy_costs(run, load_paths, tmp_path):
    out = tmp_path / "plan.json"
    words = (*TOPOLOGY, "--phase", "decode", *WORDS, "--tokens-per-rank", 16)
    result = run("plan", load_paths[1], *words, "-o", out)
    assert result.exit_code == 0, result.stderr
    expected = eplb.plan(
        eplb.read_load(load_paths[1]), eplb.Topology(1, 32, 9), phase="decode", calibration="h200",
        model="deepseek-v3", dtype="bf16", tokens_per_rank=16,
    )  # fmt: skip
    assert read_plan(out).placement == expected.placement
    lines = result.stdout.splitlines()
    assert (
        "Expert FFN of the slowest rank: decode, 16 tokens a rank, deepseek-v3 in bf16, NVIDIA H200 (measured)" in lines
    )
    for step in expected.step_prediction.steps:
        assert f"{step.name} {step.num_slots} 0.0 {1e3 * step.seconds:.3f}" in [
            " ".join(line.split()) for line in lines
        ]
    assert any(line.startswith("note: redundancy does not pay in decode: 256 slots") for line in lines)
    found = json.loads(run("plan", load_paths[1], *words, "--json").stdout)["step_prediction"]
    assert [step["seconds"] for step in found["steps"]] == [step.seconds for step in expected.step_prediction.steps]


def test_two_plans_and_the_price_of_sharing_one(run, load_paths, tmp_path):
    out = tmp_path / "plan.json"
    words = ("plan", load_paths[0], "--decode-load", load_paths[1], *TOPOLOGY, "--phase", "both", *WORDS)
    more = ("--tokens-per-rank", "2048,64", "--dispatch", "weighted", "-o", out)
    result = run(*words, *more)
    assert result.exit_code == 0, result.stderr
    model, gpu = model_sizes("deepseek-v3"), named_calibration("h200")
    phases = [
        PhaseProblem(
            Problem(eplb.read_load(path), eplb.Topology(1, 32, 9), dispatch=eplb.DispatchRule.WEIGHTED),
            phase_target(path.stem, gpu, model, tokens, "bf16"),
        )
        for path, tokens in zip(load_paths, (2048, 64), strict=True)
    ]
    expected = plan_phases(*phases)
    assert read_plan(tmp_path / "plan.prefill.json").placement == expected.prefill.placement
    assert read_plan(tmp_path / "plan.decode.json").placement == expected.decode.placement
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith(("plan of", "one plan"))]
    times = [[float(row[-4]), float(row[-2])] for row in rows]
    np.testing.assert_allclose(times, 1e3 * expected.seconds, atol=6e-4)
    found = json.loads(run(*words, *more, "--json").stdout)
    assert found["seconds"]["shared"] == dict(zip(("prefill", "decode"), expected.seconds[2].tolist(), strict=True))
    assert found["slower"]["prefill"]["prefill"] == 0
    assert sorted(found["written"]) == ["decode", "prefill"]


def test_an_engine_gets_its_own_files(run, load_paths, tmp_path):
    words = ("plan", load_paths[0], "--decode-load", load_paths[1], *TOPOLOGY, "--phase", "both", *WORDS)
    result = run(*words, "--engine", "vllm", "-o", tmp_path / "plan.json")
    assert result.exit_code == 0, result.stderr
    topology = eplb.Topology(1, 32, 9)
    placement = eplb.read_placement(tmp_path / "plan.decode.json", format="vllm", topology=topology)
    assert placement.physical_to_logical_map.shape == (2, 288)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--calibration", "h200"), "has no effect without --phase"),
        (("--decode-load", "x.npz"), "has no effect without --phase"),
        (("--dtype", "fp8"), "has no effect without --phase"),
        (("--phase", "decode", *WORDS, "--decode-load", "x.npz"), "needs --phase both"),
        (("--phase", "both", *WORDS), "needed with --phase both"),
        (("--phase", "both", *WORDS, "--decode-load", "x.npz", "--strategy", "greedy"), "cannot be chosen with"),
        (("--phase", "both", *WORDS, "--decode-load", "x.npz", "--tokens-per-rank", 9), "expected two numbers"),
        (("--phase", "decode", *WORDS, "--tokens-per-rank", "9,8"), "expected one number"),
        (("--phase", "decode", "--calibration", "h200"), "expected a calibration and a model"),
        (("--phase", "decode", *WORDS, "--strategy", "greedy"), "strategy greedy ignores it"),
        (
            ("--phase", "decode", *WORDS, "--group-mode", "pinned"),
            "group mode pinned: strategy step_time does not plan for it",
        ),
        (("--phase", "idle", *WORDS), "'idle': Expected one of"),
        (("--previous", "x.json", "--phase", "decode"), "cannot be chosen with --previous"),
    ],
)
def test_options_that_would_be_ignored_are_refused(run, load_paths, words, message):
    result = run("plan", load_paths[0], *(() if "--previous" in words else TOPOLOGY), *words)
    assert result.exit_code in (2, 3)
    assert message in " ".join(result.stderr.replace("│", " ").split())
