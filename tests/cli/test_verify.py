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


def test_mindies_config_for_other_ranks_is_refused(plan, tmp_path):
    config = mindie(tmp_path / "config.json", worldSize=8, moe_ep=8)

    result = CliRunner().invoke(app, ["verify", str(plan), "--mindie-config", config])

    assert result.exit_code == 3
    assert "moe_ep = 8" in result.stderr
