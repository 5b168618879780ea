"""`eplb replay` on the CPU: plans, periodic and online replans over a small history, and what is refused."""

import json

import numpy as np
import pytest

import eplb
import eplb_traces
from eplb.online.replay_arms import PeriodicReplan, schedule

pytest.importorskip("torch")

NUM_STEPS = 12
GPU = ("--device", "cpu", "--calibration", "h100")
CONFIG = {
    "model_type": "qwen3_moe", "hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 3,
    "num_experts": 16, "num_experts_per_tok": 2,
}  # fmt: skip


@pytest.fixture
def model_path(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def history_path(tmp_path):
    rng = np.random.default_rng(3)
    rate = rng.lognormal(0, 1, (3, 16))
    tokens = np.stack([rng.poisson(20 * np.roll(rate, step // 4, axis=1)) for step in range(NUM_STEPS)])
    path = tmp_path / "history.npz"
    eplb_traces.write_load(eplb_traces.ExpertLoad(tokens), path)
    return path


def test_every_plan_has_a_distribution_of_step_times(run, history_path, plan_path, model_path):
    words = ("--plan", plan_path, "--strategy", "deepseek", "--online", "--every", 4, "--model", model_path)
    result = run("replay", history_path, *words, *GPU, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert [one["name"] for one in found["plans"]] == ["plan.json", "deepseek every 4", "online"]
    for one in found["plans"]:
        steps = np.array(one["step_s"])
        assert (one["num_steps"], len(steps)) == (8, 8)
        assert one["mean_s"] == pytest.approx(steps.mean())
        assert one["ffn_mean_s"] == pytest.approx(steps.mean() - one["migration_s"] / 8)
        assert 0 < one["p50_s"] <= one["p95_s"] <= one["p99_s"] <= steps.max()
    fixed, periodic, _ = found["plans"]
    assert (fixed["moved_copies"], fixed["migration_s"]) == (0, 0)
    load = eplb.read_load(history_path)
    gpu = eplb.cost.named_calibration("h100").links
    topology = eplb.Topology(2, 2, 5, intra_node_gbps=gpu.intra_node.gbps, inter_node_gbps=gpu.inter_node.gbps)
    arm = PeriodicReplan(
        name="", load=load, every=4, plan=lambda load: eplb.plan(load, topology, "deepseek").placement,
        expert_bytes=2.0 * 3 * 32 * 16,
    )  # fmt: skip
    expected = schedule(arm, first_step=4, num_steps=NUM_STEPS)
    assert periodic["moved_copies"] == expected.moved_copies > 0
    assert periodic["migration_s"] == pytest.approx(expected.migration_s.sum())


def test_a_slower_link_and_fewer_layers_change_what_they_say(run, history_path, plan_path, model_path):
    words = ("replay", history_path, "--plan", plan_path, "-s", "greedy", "--every", 4, "--model", model_path, *GPU)
    slow = json.loads(run(*words, "--bandwidth", 0.001, "--json").stdout)["plans"][1]
    fast = json.loads(run(*words, "--bandwidth", 1.0, "--json").stdout)["plans"][1]
    assert slow["migration_s"] == pytest.approx(1000 * fast["migration_s"])
    assert slow["p99_s"] > slow["p50_s"]
    result = run(*words, "--layers", "0,2", "--tokens-per-rank", 8)
    assert result.exit_code == 0
    assert "8 steps, 2 layers" in result.stdout
    assert "greedy every 4" in result.stdout


def test_a_trace_is_replayed_step_by_step(run, tmp_path, model_path):
    path = tmp_path / "trace.parquet"
    ids = np.random.default_rng(1).permuted(np.tile(np.arange(16), (60, 3, 1)), axis=2)[:, :, :2]
    shape = eplb_traces.ModelShape(3, 16, 2)
    batch = eplb_traces.TokenBatch(shape, ids, np.arange(60) // 10, np.zeros(60, dtype=np.int64))
    eplb_traces.write_trace(eplb_traces.RoutingTrace(shape, [batch]), path)
    words = ("--online", "--every", 2, "--ranks", 2, "--redundant", 2, "--model", model_path)
    result = run("replay", path, *words, *GPU, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["plans"][0]["num_steps"] == 4


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "expected --plan, --strategies or --online"),
        (("--plan", "PLAN", "--bandwidth", 3), 2, "has no effect without --strategies or"),
        (("--online", "--ranks", 4, "--group-mode", "pinned"), 2, "t without --strategies"),
        (("--online",), 2, "--ranks"),
        (("--plan", "PLAN", "--layers", "7"), 2, "layer 7: expected below 3"),
        (("--plan", "PLAN", "--every", 12), 3, "a history of 12 steps: expected more than 12"),
        (("--plan", "PLAN", "--every", 4, "--device", "tpu"), 3, "expected cuda or cpu"),
        (("--plan", "PLAN", "--dtype", "int3"), 3, "int3"),
        (("--plan", "PLAN", "--model", "deepseek-v3"), 3, "model deepseek-v3 has 256"),
        (("--plan", "PLAN", "--dispatch", "nobody"), 2, "nobody"),
    ],
)
def test_what_has_no_effect_or_does_not_fit_is_refused(
    run, history_path, plan_path, model_path, words, code, message
):  # fmt: skip
    given = [plan_path if word == "PLAN" else word for word in words]
    result = run("replay", history_path, "--model", model_path, *GPU, *given)
    assert result.exit_code == code
    assert message in result.stderr
