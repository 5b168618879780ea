"""`eplb verify` from the words to the exit code, on two gloo processes."""

import json

import pytest
from typer.testing import CliRunner

from eplb_cli.main import app

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    load = "\n".join(",".join(str(1 + (3 * layer + expert) % 7) for expert in range(16)) for layer in range(2))
    (folder / "load.csv").write_text(load)
    words = ["plan", str(folder / "load.csv"), "--ranks", "4", "--redundant", "4", "-o", str(folder / "plan.json")]
    assert CliRunner().invoke(app, words).exit_code == 0
    return folder / "plan.json"


def mindie(path, **model):
    path.write_text(json.dumps({"BackendConfig": {"ModelDeployConfig": {"ModelConfig": [model]}}}))
    return str(path)


def test_mindies_config_chooses_the_exchange_and_its_buffers(plan, tmp_path):
    options = {"ep_level": 2, "alltoall_ep_buffer_scale_factors": [[0, 8.0]]}
    config = mindie(tmp_path / "config.json", worldSize=4, moe_ep=4, models={"deepseekv2": options})
    words = [
        "verify",
        str(plan),
        "--processes",
        "2",
        "--tokens",
        "16",
        "--top-k",
        "4",
        "--mindie-config",
        config,
        "--json",
    ]

    result = CliRunner().invoke(app, words)

    assert result.exit_code == 0, result.output
    assert "allgather" not in json.dumps(json.loads(result.stdout)["traffic"])


def test_mindies_data_parallel_example_runs_with_experts_cut_over_all_ranks(tmp_path):
    (tmp_path / "load.csv").write_text("1,2,3,4,5,6,7,8")
    one_rank = tmp_path / "plan.json"
    words = ["plan", str(tmp_path / "load.csv"), "--ranks", "1", "-o", str(one_rank)]
    assert CliRunner().invoke(app, words).exit_code == 0
    config = mindie(tmp_path / "config.json", worldSize=8, tp=1, dp=8, moe_tp=8, moe_ep=1)
    words = ["verify", str(one_rank), "-p", "2", "-t", "4", "--top-k", "2", "--mindie-config", config]

    result = CliRunner().invoke(app, [*words, "--json"])

    assert result.exit_code == 0, result.output
    cut = json.loads(result.stdout)["moe_tp"]
    assert max(cut["max_error"].values()) < 1e-4
    assert [(one["rank"], one["experts"], one["matmul"]) for one in cut["ranks"]] == [
        (rank, "0-7", "loop") for rank in range(8)
    ]
    shown = CliRunner().invoke(app, words).stdout
    assert "3 of 8" in shown


def test_mindies_all_to_all_example_takes_the_grouped_matmul_above_32_experts(tmp_path):
    (tmp_path / "load.csv").write_text(",".join(str(1 + expert % 7) for expert in range(264)))
    plan = tmp_path / "plan.json"
    words = ["plan", str(tmp_path / "load.csv"), "--ranks", "8", "-o", str(plan)]
    assert CliRunner().invoke(app, words).exit_code == 0
    factors = [[1048576, 1.32], [524288, 1.4], [262144, 1.53], [131072, 1.8], [32768, 3.0], [8192, 5.2], [0, 8.0]]
    options = {"ep_level": 2, "alltoall_ep_buffer_scale_factors": factors}
    config = mindie(tmp_path / "config.json", worldSize=8, moe_ep=8, models={"deepseekv2": options})
    words = ["verify", str(plan), "-p", "2", "-t", "4", "--top-k", "8", "--mindie-config", config, "--json"]

    result = CliRunner().invoke(app, words)

    assert result.exit_code == 0, result.output
    cut = json.loads(result.stdout)["moe_tp"]
    assert max(cut["max_error"].values()) < 1e-4
    assert [(one["ep_rank"], one["part"], one["matmul"]) for one in cut["ranks"]] == [
        (rank, "1 of 1", "grouped") for rank in range(8)
    ]


def test_mindies_config_for_other_ranks_is_refused(plan, tmp_path):
    config = mindie(tmp_path / "config.json", worldSize=8, moe_ep=8)

    result = CliRunner().invoke(app, ["verify", str(plan), "--mindie-config", config])

    assert result.exit_code == 3
    assert "moe_ep = 8" in result.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--exchange", "alltoall"), ("--buffer-scale-factors", "[[0, 8]]"), ("--topk-scaling-factor", "0.5")],
)
def test_what_mindies_config_gives_is_not_typed_beside_it(plan, tmp_path, option, value):
    config = mindie(tmp_path / "config.json", worldSize=4, moe_ep=4)
    result = CliRunner().invoke(app, ["verify", str(plan), "--mindie-config", config, option, value])
    assert result.exit_code == 2
    assert option in result.stderr
    assert "is given by --mindie-config" in " ".join(result.stderr.split())


def test_a_verification_says_whose_choices_it_executed_and_what_each_check_proves(plan):
    words = ["verify", str(plan), "--processes", "2", "--tokens", "4", "--top-k", "2", "--layers", "0"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "traffic random router, give --trace for recorded choices" in lines
    assert "weights: each slot holds the weight of its expert" in lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--trace", "PLAN", "--top-k", "4"), "--top-k: has no effect with --trace"),
        (("--num-experts", "8"), "--num-experts: has no effect without --trace"),
        (("--layers", "0", "--record", "out.parquet"), "--layers: --record needs all layers"),
        (("--exchange", "allgather", "--buffer-scale-factors", "[[0, 8]]"), "no effect with --exchange allgather"),
        (("--exchange", "alltoall", "--topk-scaling-factor", "0.5"), "no effect with --exchange alltoall"),
    ],
)
def test_options_without_effect_are_refused(plan, words, message):
    result = CliRunner().invoke(app, ["verify", str(plan), *(str(plan) if word == "PLAN" else word for word in words)])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", "").split())


@pytest.mark.parametrize("factors", ["[[1e400, 1]]", "[[0.7, 1]]", "[[0, true]]", '[[0, "8"]]', "[[0]]", "{}x"])
def test_buffer_scale_factors_that_are_no_pairs_of_numbers_are_refused(plan, factors):
    result = CliRunner().invoke(app, ["verify", str(plan), "--buffer-scale-factors", factors])
    assert result.exit_code == 3
    assert "expected a list of [length, factor]" in result.stderr
