"""`eplb sweep`: the points that the library finds, shown, printed and drawn."""

import json
from dataclasses import asdict

import numpy as np
import pytest

import eplb
import eplb_traces
from eplb.planning.redundancy_sweep import sweep

ASKED = ("--ranks", 4, "--nodes", 2, "--redundant", "0:8:4")


def test_a_sweep_shows_what_the_library_finds(run, load_path, counts):
    result = run("sweep", load_path, *ASKED, "--expert-bytes", 1e9, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)["points"]
    expected = [asdict(point) for point in sweep(eplb.ExpertLoad(counts), 4, 2, (0, 4, 8), 1e9)]
    for point in (*found, *expected):
        del point["seconds"]
    for point in expected:
        assert point.pop("predicted_step_s") is None  # nothing to predict with
    assert found == expected
    shown = run("sweep", load_path, *ASKED, "--expert-bytes", 1e9).stdout.splitlines()
    assert [row.split()[0] for row in shown[3:6]] == ["0", "4", "8"]
    assert "12.000 GB" in shown[3]  # 3 layers of 16 experts on 4 ranks, one GB each
    assert max(map(len, shown)) <= 80


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_sweep_is_drawn(run, load_path, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    out = tmp_path / f"sweep{suffix}"
    result = run("sweep", load_path, *ASKED, "-o", out)
    assert result.exit_code == 0
    assert f"wrote {out}\n" in result.stdout
    assert out.stat().st_size > 1000


def test_numbers_that_do_not_fit_are_left_out_and_named(run, load_path):
    result = run("sweep", load_path, "--ranks", 4, "--redundant", "0:8:2", "--json")
    assert [point["num_redundant"] for point in json.loads(result.stdout)["points"]] == [0, 4, 8]
    assert "[2, 6] left out" in result.stderr


@pytest.mark.parametrize("text", ["8", "0:8", "0:8:0", "a:b:c", "0:-8:4", ""])
def test_a_range_that_is_none_is_a_usage_error(run, load_path, text):
    result = run("sweep", load_path, "--ranks", 4, "--redundant", text)
    assert (result.exit_code, result.stdout) == (2, "")


def test_a_drawing_of_no_known_kind_is_a_usage_error(run, load_path, tmp_path):
    result = run("sweep", load_path, *ASKED, "-o", tmp_path / "sweep.txt")
    assert (result.exit_code, result.stdout) == (2, "")
    assert not (tmp_path / "sweep.txt").exists()


def test_bad_input_has_its_exit_code(run, load_path, tmp_path):
    pytest.importorskip("matplotlib")
    eplb_traces.write_load(eplb_traces.ExpertLoad(np.zeros((3, 16))), tmp_path / "zeros.npz")
    for words in (
        ("sweep", load_path, "--ranks", 4, "--redundant", "1:3:1"),
        ("sweep", load_path, *ASKED, "--expert-bytes", 0),
        ("sweep", load_path, *ASKED, "-o", tmp_path / "nowhere" / "sweep.png"),
        ("sweep", tmp_path / "zeros.npz", *ASKED),
    ):
        result = run(*words)
        assert (result.exit_code, result.stdout) == (3, "")
