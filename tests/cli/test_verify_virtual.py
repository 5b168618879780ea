"""`eplb verify --virtual` on the CPU: seconds of every rank beside the prediction, and what is refused."""

import json

import numpy as np
import pytest

import eplb
import eplb_traces
from eplb.cost import Batch, named_calibration, predict, read_model_config

pytest.importorskip("torch")

CONFIG = {
    "model_type": "qwen3_moe", "hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 3,
    "num_experts": 16, "num_experts_per_tok": 2,
}  # fmt: skip
GPU = ("--virtual", "--device", "cpu", "--calibration", "h100")


@pytest.fixture
def model_path(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def trace_path(tmp_path):
    ids = np.random.default_rng(1).permuted(np.tile(np.arange(16), (40, 3, 1)), axis=2)[:, :, :2]
    shape = eplb_traces.ModelShape(3, 16, 2)
    column = np.zeros(40, dtype=np.int64)
    path = tmp_path / "trace.parquet"
    eplb_traces.write_trace(eplb_traces.RoutingTrace(shape, [eplb_traces.TokenBatch(shape, ids, column, column)]), path)
    return path


def test_the_figures_stand_beside_the_librarys_prediction(run, plan_path, load_path, model_path):
    words = ("--load", load_path, "--model", model_path, "--tokens-per-rank", 8, "--seed", 3, "--layers", "0,2")
    result = run("verify", plan_path, *GPU, *words, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    placement, load = eplb.read_placement(plan_path), eplb.read_load(load_path)
    batch = Batch.sampled(load.total, num_ranks=4, tokens_per_rank=8, top_k=2, seed=3)
    times = predict(placement, batch, read_model_config(model_path), named_calibration("h100"), dtype="bf16")
    assert found["layers"] == [0, 2]
    assert found["predicted_makespan_s"] == pytest.approx(times.makespan_s[[0, 2]].tolist())
    measured = np.array(found["rank_s"])
    assert measured.shape == (2, 4)
    assert (measured > 0).all()
    assert found["makespan_s"] == measured.max(axis=1).tolist()
    assert found["straggler_rank"] == measured.argmax(axis=1).tolist()
    assert (found["tokens_per_rank"], found["calibration"]) == (8, "NVIDIA H100 SXM (formula)")


def test_a_trace_gives_the_tokens(run, plan_path, trace_path, model_path):
    words = ("--trace", trace_path, "--model", model_path, "--tokens-per-rank", 10, "--layers", "all")
    result = run("verify", plan_path, *GPU, *words)
    assert result.exit_code == 0, result.stderr
    assert "NVIDIA H100 SXM (formula)" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if line[:5].strip().isdigit()]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    result = run("verify", plan_path, *GPU, *words[:-2], "--tokens-per-rank", 11)
    assert result.exit_code == 3
    assert "the trace has 40 tokens: expected 44" in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--tokens-per-rank", 4), 2, "--trace, --load"),
        (("--load", "LOAD"), 2, "--phase, --tokens-per-rank"),
        (("--load", "LOAD", "--phase", "decode", "--tokens-per-rank", 4), 2, "--phase, --tokens-per-rank"),
        (("--load", "LOAD", "--phase", "training"), 2, "training"),
        (("--load", "LOAD", "--phase", "decode", "--inject", "drop-row"), 2, "has no effect with --virtual"),
        (("--load", "LOAD", "--phase", "decode", "--num-experts", 16), 2, "has no effect with --load"),
        (("--trace", "TRACE", "--phase", "decode", "--seed", 4), 2, "has no effect with --trace"),
        (("--load", "LOAD", "--tokens-per-rank", 4, "--model", "deepseek-v3"), 3, "deepseek-v3 has 256 experts"),
        (("--load", "LOAD", "--tokens-per-rank", 4, "--layers", "9"), 3, "9"),
        (("--load", "LOAD", "--tokens-per-rank", 4, "--dtype", "fp8"), 3, "fp8"),
    ],
)
def test_what_has_no_effect_or_does_not_fit_is_refused(
    run, plan_path, load_path, trace_path, model_path, words, code, message
):
    paths = {"LOAD": load_path, "TRACE": trace_path}
    result = run("verify", plan_path, "--model", model_path, *GPU, *(paths.get(word, word) for word in words))
    assert result.exit_code == code
    assert message in result.stderr


def test_its_options_have_no_effect_on_processes(run, plan_path):
    result = run("verify", plan_path, "--phase", "decode")
    assert result.exit_code == 2
    assert "has no effect without --virtual" in result.stderr
