"""`eplb simulate`: the figures that the library finds, shown and printed."""

import json

import numpy as np
import pytest

import eplb
import eplb_traces
from eplb.core.topology import Topology
from eplb.online.replay import POLICIES, Replay, simulate

ASKED = ("--ranks", 4, "--nodes", 2, "--redundant", 4, "--interval", 5)


@pytest.fixture
def history_path(tmp_path):
    rng = np.random.default_rng(3)
    rate = rng.lognormal(0, 1, (2, 16))
    tokens = np.stack([rng.poisson(500 * np.roll(rate, step // 8, axis=1)) for step in range(24)])
    path = tmp_path / "history.npz"
    eplb_traces.write_load(eplb_traces.ExpertLoad(tokens), path)
    return path


def test_the_figures_are_the_librarys(run, history_path):
    words = ("--policy", "never, incremental,full", "--bandwidth", 2.0, "--expert-bytes", 1e6, "--json")
    result = run("simulate", history_path, *ASKED, *words)
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)["policies"]
    machine = Topology(2, 2, 5, intra_node_gbps=2.0, inter_node_gbps=2.0)
    replay = Replay(load=eplb.read_load(history_path), topology=machine, interval=5, expert_bytes=1e6)
    expected = [one.summary() for one in simulate(replay, ["never", "incremental", "full"])]
    for policy in (*found, *expected):
        assert policy.pop("plan_s") >= 0
    assert found == expected
    assert found[2]["moved_copies"] > 0
    assert found[2]["stall_s"] > 0


def test_all_policies_are_shown_with_a_line_over_time(run, history_path):
    result = run("simulate", history_path, *ASKED)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "history.npz: 19 steps, a replan every 5"
    assert [line.split()[0] for line in lines[3 : 3 + len(POLICIES)]] == list(POLICIES)
    (begin,) = [number for number, line in enumerate(lines) if line.startswith("max/mean over time")]
    drawn = {line.split()[0]: line.split()[1] for line in lines[begin + 1 :] if line}
    assert list(drawn) == list(POLICIES)
    assert {len(bars) for bars in drawn.values()} == {19}
    assert "█" in "".join(drawn.values())
    assert max(map(len, lines)) <= 80


def test_what_incremental_may_spend_is_said(run, history_path):
    def moved(*words):
        result = run("simulate", history_path, *ASKED, "--policy", "incremental", "--json", *words)
        return json.loads(result.stdout)["policies"][0]["moved_copies"]

    assert moved("--max-moves", 0) == 0
    assert moved("--price", 100.0) == 0
    assert moved("--max-moves", 1) < moved()
    assert moved("--memory", 2) != moved("--memory", 20)


def test_bad_words_have_their_exit_codes(run, history_path):
    assert run("simulate", history_path, *ASKED, "--policy", "sometimes").exit_code == 2
    assert run("simulate", history_path, "--ranks", 4, "--interval", 13).exit_code == 3
    assert run("simulate", history_path, "--ranks", 4, "--redundant", 4, "--bandwidth", 0).exit_code == 2
    assert run("simulate", history_path, "--ranks", 4, "--redundant", 4, "--price", -1).exit_code == 3
    assert run("simulate", history_path, "--interval", 5).exit_code == 2
