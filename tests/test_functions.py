"""A function for every command: it gives what the command prints."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import eplb
from eplb.errors import FormatError, InputError
from eplb.online import OnlineSettings
from eplb.report import FolderOptions
from eplb_cli.main import app
from eplb_traces import ModelShape, write_load

SHAPE = ModelShape(3, 16, moe_layer_ids=(1, 2, 3), num_hidden_layers=4)
TOKENS = np.random.default_rng(1).lognormal(4, 1, (24, 3, 16)).round() + 1
TOPOLOGY = eplb.Topology.for_experts(16, num_ranks=4, num_nodes=2, num_redundant=4)
ON_RANKS = ("--ranks", "4", "--nodes", "2")


@pytest.fixture
def load_path(tmp_path):
    path = tmp_path / "load.npz"
    write_load(eplb.ExpertLoad(TOKENS, shape=SHAPE), path)
    return path


def printed(*words) -> dict:
    result = CliRunner().invoke(app, [str(word) for word in words] + ["--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_backtest_is_the_command(load_path):
    scores = eplb.backtest(load_path, TOPOLOGY)
    found = printed("backtest", load_path, *ON_RANKS, "-k", 4)["candidates"]
    assert [(one.candidate.name, one.mean) for one in scores] == [
        (row["candidate"], row["max_over_mean_held_out"]) for row in found
    ]


def test_sweep_is_the_command(load_path):
    points = eplb.sweep(load_path, 4, 2, range(0, 9, 4))
    found = printed("sweep", load_path, *ON_RANKS, "-k", "0:8:4")["points"]
    assert [(p.num_redundant, p.max_over_mean_mean) for p in points] == [
        (row["num_redundant"], row["max_over_mean_mean"]) for row in found
    ]


def test_simulate_is_the_command(load_path):
    policies = ["never", "incremental", "full"]
    settings = OnlineSettings(max_moves=3)
    served = eplb.simulate(load_path, TOPOLOGY, policies, interval=6, settings=settings)
    words = ("simulate", load_path, *ON_RANKS, "-k", 4, "-i", 6, "--policy", ",".join(policies), "--max-moves", 3)
    found = printed(*words)["policies"]
    assert [(one.policy, one.mean, one.moved_copies) for one in served] == [
        (row["policy"], row["max_over_mean_mean"], row["moved_copies"]) for row in found
    ]
    with pytest.raises(InputError, match="unknown policy 'sometimes'"):
        eplb.simulate(load_path, TOPOLOGY, ["sometimes"], interval=6)


def test_simulate_takes_interval_and_bytes_from_the_settings(load_path):
    settings = eplb.OnlineSettings(interval=6, plan_steps=0, horizon=eplb.Horizon(token_s=1e-6), expert_bytes=1e3)
    by_settings = eplb.simulate(load_path, TOPOLOGY, ["full_greedy", "incremental"], settings=settings)
    given = eplb.simulate(load_path, TOPOLOGY, ["full_greedy", "incremental"], interval=6, settings=settings)
    assert [one.moved_copies for one in by_settings] == [one.moved_copies for one in given]
    assert {moved.expert_bytes for one in by_settings for moved in one.migrations} == {1e3}
    assert len(by_settings[0].migrations) > 1  # 24 steps: with an interval of 20 there would be too few


@pytest.mark.parametrize("format", ["native", "sglang"])
def test_diff_is_the_command_and_takes_plans_placements_and_files(tmp_path, load_path, format):
    old, new = eplb.plan(load_path, TOPOLOGY, "linear"), eplb.plan(load_path, TOPOLOGY, "greedy")
    files = tmp_path / "old.json", tmp_path / "new.json"
    for plan, path in zip((old, new), files, strict=True):
        eplb.write_placement(plan, path, format)
    found = printed("diff", *files)
    moved = found["moved_copies"]
    assert moved > 0
    for pair in [(old, new), (old.placement, new), files, (old, files[1]), (str(files[0]), new.placement)]:
        assert eplb.diff(*pair).moved_copies == moved
    assert eplb.diff(new, new).moved_copies == 0


def test_diff_reads_an_engines_file_like_the_other_one(tmp_path, load_path):
    old, new = eplb.plan(load_path, TOPOLOGY, "linear"), eplb.plan(load_path, TOPOLOGY, "greedy")
    path = tmp_path / "old.json"
    eplb.write_placement(old, path, "sglang")
    for record in tmp_path.glob("old.json.*"):
        record.unlink()
    assert eplb.diff(path, new) == eplb.diff(old, new)
    assert eplb.diff(new, path) == eplb.diff(new, old)
    with pytest.raises(FormatError, match="--ranks"):
        eplb.diff(path, path)
    with pytest.raises(InputError, match="old is of type ndarray of float64"):
        eplb.diff(np.zeros(3), new)


def test_diff_knows_other_ranks(load_path):
    old = eplb.plan(load_path, TOPOLOGY, "greedy")
    fewer = eplb.Topology.for_experts(16, num_ranks=2, num_nodes=1)
    new = eplb.plan(load_path, fewer, "greedy")
    assert eplb.diff(old, new).topology.num_ranks == 4
    lost = eplb.diff(old, new, rank_map=[(0, 0), (1, 1)], lost_ranks=[2, 3])
    assert not np.isin(lost.source_rank, [2, 3]).any()


def test_convert_is_the_command_and_check_reads_the_file(tmp_path, load_path):
    native, theirs = tmp_path / "plan.json", tmp_path / "vllm.json"
    plan = eplb.plan(eplb.ExpertLoad(TOKENS), TOPOLOGY)
    eplb.write_placement(plan, native)
    written = eplb.convert(native, theirs, "sglang", shape=SHAPE)
    assert (written.placement, written.shape) == (plan.placement, SHAPE)
    words = ["convert", native, tmp_path / "cli.json", "--to", "sglang", "--moe-layers", "1-3", "--hidden-layers", 4]
    assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    assert theirs.read_bytes() == (tmp_path / "cli.json").read_bytes()
    assert str(eplb.check(theirs, "sglang", 4, num_experts=16)).startswith("sglang would load it: 4 layers, 16 experts")
    with pytest.raises(FormatError, match="expected a multiple of 3"):
        eplb.check(theirs, "sglang", 3)
    with pytest.raises(FormatError, match="experts = 16, but 8 was given"):
        eplb.convert(native, theirs, "sglang", shape=ModelShape(3, 8))


def test_a_report_is_that_of_the_command(tmp_path, load_path):
    contents = eplb.write_report(load_path, tmp_path / "own.html", topology=TOPOLOGY)
    printed("report", load_path, *ON_RANKS, "-k", 4, "-o", tmp_path / "cli.html")
    assert (tmp_path / "own.html").read_bytes() == (tmp_path / "cli.html").read_bytes()
    assert [view.name for view in contents.plans] == ["experts in order", "greedy"]
    with pytest.raises(InputError, match=r"expected none for page.html, a page shows every layer"):
        eplb.write_report(load_path, tmp_path / "page.html", topology=TOPOLOGY, options=FolderOptions(layers=(1,)))


def test_a_report_of_plans_is_a_folder(tmp_path, load_path):
    pytest.importorskip("matplotlib")
    plan = eplb.plan(load_path, TOPOLOGY)
    eplb.write_placement(plan, tmp_path / "plan.json")
    contents = eplb.write_report(
        TOKENS, tmp_path / "report", {"a": plan, "b": tmp_path / "plan.json"}, options=FolderOptions(layers=(1,))
    )
    assert [view.placement for view in contents.plans] == [plan.placement] * 2
    assert "summary.md" in {path.name for path in (tmp_path / "report").iterdir()}
