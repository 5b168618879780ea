"""`eplb trace info`: the view by layer says what the judge and the counts say, for every kind of file and terminal."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import eplb
from eplb_cli.main import app
from eplb_traces import ExpertLoad, ModelShape, RoutingTrace, TokenBatch, read_trace, write_load, write_trace
from eplb_traces.coactivation.layer_coactivation import coactivation
from eplb_traces.statistics import drift, load_profile
from eplb_traces.windows import load_by_window

SHAPE = ModelShape(2, 64, 4, num_expert_groups=4, top_k_groups=2)


@pytest.fixture(scope="module")
def trace_path(tmp_path_factory):
    """800 tokens of 16 steps that choose from two of four groups; odd steps prefer the upper experts."""
    pytest.importorskip("pyarrow")
    rng = np.random.default_rng(6)
    step = np.arange(800) // 50
    keys = rng.exponential(size=(800, 2, 64)) * (1 + 2 * np.where(step[:, None, None] >= 8, np.arange(64) / 64, 0.5))
    groups = np.argsort(rng.random((800, 2, 4)), axis=2)[:, :, :2]
    allowed = (np.arange(64) // 16 == groups[:, :, 0, None]) | (np.arange(64) // 16 == groups[:, :, 1, None])
    ids = np.argsort(np.where(allowed, keys, np.inf), axis=2)[:, :, :4]
    path = tmp_path_factory.mktemp("info") / "trace.parquet"
    write_trace(RoutingTrace(SHAPE, [TokenBatch(SHAPE, ids, step, step // 4)]), path)
    return path


def _found(run, *words):
    result = run("trace", "info", *words, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def _view(run, *words, **options):
    """The lines below the heading of the view by layer: the headings, the rows, the legend."""
    result = run("trace", "info", *words, **options)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    start = lines.index("Load by layer, experts in order")
    end = lines.index("", start)
    return lines[start + 1], lines[start + 3 : end], lines[end + 1 :]


def _load_file(tmp_path, tokens):
    path = tmp_path / "load.npz"
    write_load(ExpertLoad(np.array(tokens, dtype=float)), path)
    return path


def test_every_number_of_a_trace_is_that_of_the_library(run, trace_path):
    trace = read_trace(trace_path)
    found = _found(run, trace_path)
    over_time = load_by_window(trace, None)
    drifted, profile = drift(over_time), load_profile(trace.load(), 32)
    assert found["drift_windows"] == over_time.num_windows == 6
    for layer, line in enumerate(found["by_layer"]):
        assert line["layer"] == layer
        assert line["load_profile"] == profile[layer].tolist()
        assert (line["drift"], line["drift_by_chance"]) == (drifted.distance[layer], drifted.by_chance[layer])
        share = coactivation(trace, layer).share_inside(np.arange(64) // 16)
        assert (line["pairs_inside_group"], line["pairs_inside_group_by_chance"]) == share
        assert line["group_affinity"] == share.ratio > 1.3  # two of four groups a token
        for ranks, ratio in line["max_over_mean"].items():
            linear = eplb.plan(over_time, eplb.Topology.for_experts(64, num_ranks=int(ranks)), "linear")
            assert ratio == eplb.evaluate(linear.placement, over_time).max_over_mean[layer]
    assert list(found["by_layer"][0]["max_over_mean"]) == ["8", "16", "32", "64"]


def test_the_table_shows_the_numbers_of_the_json(run, trace_path):
    by_layer = _found(run, trace_path)["by_layer"]
    headings, rows, legend = _view(run, trace_path)
    assert headings.split() == ["layer", "load", "EP8", "EP16", "EP32", "EP64", "drift", "group"]
    assert len(rows) == 2
    for row, line in zip(rows, by_layer, strict=True):
        layer, drawn, *ratios, drifted, group = row.split()
        assert int(layer) == line["layer"]
        assert len(drawn) == 32
        # A character is a height of a quarter of the mean, the eighth one the highest.
        heights = ["▁▂▃▄▅▆▇█".index(bar) + 1 for bar in drawn]
        assert np.abs(np.array(heights) - np.clip(4 * np.array(line["load_profile"]), 1, 8)).max() <= 0.5
        assert ratios == [f"{ratio:.2f}" for ratio in line["max_over_mean"].values()]
        assert (drifted, group) == (f"{line['drift']:.3f}", f"{line['group_affinity']:.2f}")
    assert legend[0] == "load   a character is 2 experts; ▄ the layer's mean, █ twice the mean or more"
    mean_drift, mean_share = (np.mean([line[name] for line in by_layer]) for name in ("drift", "pairs_inside_group"))
    assert f"{mean_drift:.3f} on average" in legend[3]
    assert f"{mean_share:.3f} of all pairs" in legend[5]


def test_windows_can_be_chosen(run, trace_path):
    found = _found(run, trace_path, "--window", 4)
    assert (found["windows"], found["drift_windows"]) == (4, 4)
    assert found["by_layer"][0]["drift"] == drift(read_trace(trace_path).load(4)).distance[0]


def test_a_load_has_no_pairs_and_one_window_no_drift(run, tmp_path, counts):
    path = _load_file(tmp_path, counts)
    for line in _found(run, path)["by_layer"]:
        assert line["drift"] is line["drift_by_chance"] is line["group_affinity"] is line["pairs_inside_group"] is None
    headings, rows, legend = _view(run, path)
    assert headings.split() == ["layer", "load", "EP8", "EP16"]
    assert [len(row.split()[1]) for row in rows] == [16] * 3
    assert [text.split()[0] for text in legend] == ["load", "EPn"]
    assert "a character is 1 expert;" in legend[0]


def test_a_load_of_windows_drifts(run, tmp_path):
    # Halves that share nothing lie 1/2 from the whole.
    path = _load_file(tmp_path, [[[9.0] * 4 + [0] * 4], [[0.0] * 4 + [9] * 4]])
    (line,) = _found(run, path)["by_layer"]
    assert line["drift"] == pytest.approx(0.5)
    _, (row,), legend = _view(run, path)
    assert row.split() == ["0", "▄▄▄▄▄▄▄▄", "2.00", "0.500"]  # of each window: 9 over 4.5
    assert "of 2 windows" in legend[2]


def test_layers_without_load_have_blanks(run, tmp_path):
    path = _load_file(tmp_path, [[[0.0] * 32, [1.0] * 16 + [0.0] * 16]] * 2)
    empty, half = _found(run, path)["by_layer"]
    assert empty["load_profile"] is empty["drift"] is None
    assert half["load_profile"] == [2.0] * 16 + [0.0] * 16
    _, rows, _ = _view(run, path)
    assert rows[0].split() == ["0", "-", "-", "-", "-"]  # EP8, EP16, EP32, drift
    assert rows[1].split() == ["1", "█" * 16, "2.00", "2.00", "2.00", "0.000"]


@pytest.mark.parametrize(("columns", "num_blocks"), [(80, 32), (200, 32), (64, 16)])
def test_it_fits_the_terminal(run, tmp_path, monkeypatch, columns, num_blocks):
    monkeypatch.setenv("COLUMNS", str(columns))
    rng = np.random.default_rng(0)
    headings, rows, legend = _view(run, _load_file(tmp_path, rng.integers(1, 99, (3, 94, 256))))
    assert len(rows) == 94
    assert {len(row.split()[1]) for row in rows} == {num_blocks}
    assert max(map(len, [headings, *rows])) <= columns
    assert max(map(len, legend)) <= 80


def test_experts_that_no_block_divides(run, tmp_path):
    headings, (row,), legend = _view(run, _load_file(tmp_path, [np.ones(50)]))
    assert headings.split() == ["layer", "load"]
    assert row.split() == ["0", "▄" * 32]
    assert legend == ["load   a character is 1 or 2 experts; ▄ the layer's mean, █ twice the mean or more"]


def test_a_terminal_without_blocks_gets_ascii(tmp_path):
    path = _load_file(tmp_path, [[4.0] + [1.0] * 6 + [0.0]])  # mean 1.25
    result = CliRunner(charset="ascii").invoke(app, ["trace", "info", str(path)])
    assert result.exit_code == 0
    assert "@------ " in result.stdout  # 3.2, 0.8 and 0 of the mean
    assert "= the layer's mean, @ twice the mean or more" in result.stdout
    assert result.stdout.isascii()
