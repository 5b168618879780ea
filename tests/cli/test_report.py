"""`eplb report`: what the library gathers, written as a folder or a page."""

import json
import re

import numpy as np
import pytest

import eplb
import eplb_traces
from eplb.report import gather
from eplb.report.html_arrays import unpacked
from eplb_traces import ModelShape, synthesize_trace, write_trace

pytest.importorskip("matplotlib")
pytest.importorskip("pandas")

ASKED = ("--ranks", 4, "--nodes", 2, "--redundant", 4)


@pytest.fixture
def quick(monkeypatch):
    """Folders without pictures, which take long and have their own tests."""
    monkeypatch.setattr("eplb.report.folder.report_figures", lambda *_: ())


def test_a_folder_is_written_and_the_summary_is_printed(run, load_path, tmp_path, counts):
    result = run("report", load_path, *ASKED, "-o", tmp_path / "out", "--layer", "1", "--image-format", "svg")
    assert (result.exit_code, result.stderr) == (0, "")
    topology = eplb.Topology.for_experts(16, num_ranks=4, num_nodes=2, num_redundant=4)
    contents = gather(eplb.ExpertLoad(counts), topology=topology, title="load.npz")
    *summary, written, beside = result.stdout.splitlines()
    assert summary == contents.summary_text[0].splitlines()
    assert written == f"wrote {tmp_path / 'out' / 'summary.md'}"
    num_files = len(list((tmp_path / "out").iterdir()))
    assert beside == f"  {num_files - 1} files beside it: pictures and tables"
    assert (tmp_path / "out" / "rank-load-layer-1.svg").exists()


def test_the_numbers_are_those_of_evaluate(run, quick, load_path, plan_path, tmp_path):
    found = json.loads(run("report", load_path, "--plan", plan_path, "-o", tmp_path / "out", "--json").stdout)
    judged = json.loads(run("evaluate", plan_path, load_path, "--json").stdout)
    assert list(found["plans"]) == ["experts in order", "plan.json"]
    shown = found["plans"]["plan.json"]
    for name in judged.keys() & shown.keys():
        assert judged[name] == shown[name]
    assert {"max_over_mean_mean", "balancedness_vllm", "gap_worst"} <= judged.keys() & shown.keys()
    assert found["plans"]["experts in order"].keys() == shown.keys() & judged.keys()
    assert shown["moved_copies"] > 0
    assert len(found["layers"]) == 3
    assert found["written"][0] == str(tmp_path / "out" / "summary.md")


def test_several_plans_are_set_against_the_first(run, quick, load_path, plan_path, tmp_path):
    other = tmp_path / "sub" / "plan.json"
    other.parent.mkdir()
    assert run("plan", load_path, *ASKED, "--strategy", "zigzag", "-o", other).exit_code == 0
    result = run("report", load_path, "--plan", plan_path, "--plan", other, "-o", tmp_path / "out", "--json")
    # Files of one name go by their paths.
    assert list(json.loads(result.stdout)["plans"]) == [str(plan_path), str(other)]


def test_files_that_do_not_say_the_machine_take_it_from_the_words(run, quick, load_path, plan_path, tmp_path):
    flat = tmp_path / "flat.json"
    assert run("convert", plan_path, flat, "--to", "sglang", "--moe-layers", "0-2", "--hidden-layers", 3).exit_code == 0
    flat.with_name("flat.json.eplb.json").unlink()
    words = ("report", load_path, "--plan", flat, "-o", tmp_path / "out", "--json")
    found = json.loads(run(*words, "--ranks", 4, "--nodes", 2, "--format", "sglang").stdout)
    assert found["plans"]["flat.json"]["num_ranks"] == 4


def test_a_trace_is_cut_and_shown_with_its_pairs(run, tmp_path):
    pytest.importorskip("pyarrow")
    write_trace(
        synthesize_trace("v3-prefill", shape=ModelShape(2, 8, 2), num_steps=4, tokens_per_step=16),
        tmp_path / "t.parquet",
    )
    words = ("report", tmp_path / "t.parquet", "--ranks", 2, "-o", tmp_path / "out", "--window", 2, "--json")
    found = json.loads(run(*words).stdout)
    assert found["plans"]["greedy"]["num_windows"] == 2
    assert any(path.endswith("pairs.csv") for path in found["written"])


def test_a_page_is_written_by_its_suffix(run, monkeypatch, load_path, tmp_path):
    pages = []
    page = pytest.importorskip("eplb.report.html")
    monkeypatch.setattr(
        page, "write_page", lambda contents, path: pages.append((contents.title, contents.expert_bytes, path))
    )
    result = run("report", load_path, *ASKED, "-o", tmp_path / "report.html", "--expert-bytes", 1000)
    assert (result.exit_code, pages) == (0, [("load.npz", 1000.0, tmp_path / "report.html")])
    assert result.stdout.splitlines()[-1] == f"wrote {tmp_path / 'report.html'}"


def test_a_page_of_two_files_holds_the_load_of_each(run, load_path, tmp_path, counts):
    other = tmp_path / "other.npz"
    eplb_traces.write_load(eplb.ExpertLoad(counts[:, ::-1]), other)
    page = tmp_path / "page.html"
    assert run("report", load_path, other, *ASKED, "-o", page).exit_code == 0
    text = page.read_text(encoding="utf-8")
    (written,) = re.findall(r'<script type="application/json" id="payload">(.*?)</script>', text, re.DOTALL)
    parts = json.loads(written)["domains"]
    assert parts["names"] == ["load", "other"]
    np.testing.assert_array_equal(unpacked(parts["load"]), [counts, counts[:, ::-1]])


def test_several_loads_are_compared_with_each_other(run, quick, tmp_path, counts):
    pd = pytest.importorskip("pandas")
    loads = {"a": counts, "b": counts[:, ::-1]}
    for name, tokens in loads.items():
        eplb_traces.write_load(eplb_traces.ExpertLoad(tokens), tmp_path / f"{name}.npz")
    result = run("report", *(tmp_path / f"{name}.npz" for name in loads), *ASKED, "-o", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (0, "")
    table = pd.read_csv(tmp_path / "out" / "parts.csv").set_index(["plan", "part"])["max_over_mean_mean"]
    assert table.index.get_level_values("part").tolist() == ["a", "b"] * 2
    topology = eplb.Topology.for_experts(16, num_ranks=4, num_nodes=2, num_redundant=4)
    in_order = gather(eplb.ExpertLoad(loads["b"]), topology=topology).plans[0].evaluation
    assert table["experts in order", "b"] == pytest.approx(in_order.max_over_mean.mean())


@pytest.mark.parametrize(
    "words",
    [
        ("--layer", "x", *ASKED),
        ("--redundant", 4),  # without --ranks nothing is planned
        ("--strategy", "greedy"),
        ("--dispatch", "even"),
        ("--expert-bytes", 1),
        ("--plan", "plan.json", "--redundant", 4),
        (*ASKED, "-o", "x.html", "--layer", "1"),
        (*ASKED, "-o", "x.html", "--image-format", "svg"),
        (*ASKED, "--image-format", "gif"),
        (*ASKED, "--dispatch", "nonsense"),
    ],
)
def test_words_that_do_not_fit_are_usage_errors(run, load_path, tmp_path, words):
    result = run("report", load_path, "-o", tmp_path / "out", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert not (tmp_path / "out").exists()


def test_bad_input_has_its_exit_code(run, load_path, plan_path, tmp_path):
    eplb_traces.write_load(eplb_traces.ExpertLoad(np.zeros((3, 16))), tmp_path / "zeros.npz")
    eplb_traces.write_load(eplb_traces.ExpertLoad(np.ones((3, 32))), tmp_path / "other.npz")
    for words in (
        (tmp_path / "zeros.npz", *ASKED),
        (tmp_path / "other.npz", "--plan", plan_path),
        (tmp_path / "missing.npz", *ASKED),
        (load_path, "--ranks", 5),
        (load_path, *ASKED, "--layer", "3"),
        (load_path, *ASKED, "--expert-bytes", 0),
    ):
        result = run("report", *words, "-o", tmp_path / "out")
        assert (result.exit_code, result.stdout) == (3, ""), words
        assert not (tmp_path / "out").exists()
    result = run("report", tmp_path / "other.npz", "--plan", plan_path, "-o", tmp_path / "out")
    assert "the plan plan.json is for 3 layers x 16 experts, another model" in result.stderr
