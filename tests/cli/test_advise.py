"""`eplb advise`: the table, JSON and drawing show what the library finds."""

import json

import pytest

import eplb
from eplb.cost import model_sizes, named_calibration
from eplb_traces import ExpertLoad
from tests.cli.test_predicted import CONFIG


@pytest.fixture
def words(load_path, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return ("advise", load_path, "--model", tmp_path / "config.json", "--gpu", "h200", "--nodes", "1:2",
            "--gpus-per-node", 2)  # fmt: skip


def test_advice_is_that_of_the_library(run, words, counts, tmp_path):
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    cost = eplb.StepCost(
        model=model_sizes(str(tmp_path / "config.json")), calibration=named_calibration("h200"), tokens_per_rank=128
    )
    expected = eplb.advise(ExpertLoad(counts), cost, eplb.DeploymentSpace(nodes=(1, 2), gpus_per_node=2))
    assert found["deployments"] == [row.summary() for row in expected.deployments]
    assert found["recommended"] == expected.recommended.summary()
    assert (found["knee_num_ranks"], found["reason"]) == (expected.knee, expected.reason)
    assert found["prediction"]["not_modelled"].startswith("attention")
    shown = run(*words)
    assert f"recommended: {expected.reason}\n" in shown.stdout
    assert " of 30 deployments: the fastest of each size" in shown.stderr  # 2 EP sizes of 3 + 6 + 6
    assert "(estimated, bf16)" in shown.stderr
    table = shown.stdout.split("step ms: predicted")[0].splitlines()
    assert max(map(len, table[1:])) <= 80
    assert not any("…" in row for row in table)
    assert (
        len(run(*words, "--all").stdout.split("step ms: predicted")[0].splitlines()) == 3 + 30 + 1
    )  # head, rows, blank


def test_memory_and_slo_are_marked(run, words):
    assert "memory" in run(*words, "--rest-bytes", "149GB").stdout
    assert "None fits" in run(*words, "--rest-bytes", "149GB").stdout
    tight = run(*words, "--slo-ms", 0.001)
    assert "slow" in tight.stdout
    assert "None meets 0.001 ms" in tight.stdout
    assert "reserve 60.000 GB" in run(*words, "--reserve-bytes", "60GB").stderr


def test_a_formula_is_marked(run, words):
    result = run(*words, "--gpu", "h100")
    assert "NVIDIA H100 SXM (formula)" in result.stdout
    assert "FORMULA" in result.stderr


def test_the_plot_is_written(run, words, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "advice.svg"
    assert f"wrote {out}\n" in run(*words, "--plot", out).stdout
    assert out.stat().st_size > 1000


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (("--nodes", "a"), 2),
        (("--nodes", "1:2:0"), 2),
        (("--nodes", "2:1"), 2),
        (("--nodes", "-1"), 2),
        (("--nodes", "1,1"), 3),
        (("--redundant", "4:"), 2),
        (("--redundant", "1:3:2"), 3),
        (("--gpu", "abacus"), 2),
        (("--model", "abacus"), 2),
        (("--model", "deepseek-v3"), 3),
        (("--dispatch", "abacus"), 2),
        (("--strategies", "abacus"), 2),
        (("--dtype", "mxfp4"), 3),
        (("--slo-ms", 0), 3),
        (("--plot", "advice.txt"), 2),
        (("--phase", "decode", "--tokens-per-rank", 4), 2),
    ],
)
def test_bad_words_are_refused(run, words, more, code):
    result = run(*words, *more)
    assert (result.exit_code, result.stdout) == (code, "")
