"""A report without plans and topology: what the router did, and nothing about ranks."""

import json

import numpy as np
import pytest

import eplb
from eplb.errors import InputError
from eplb.report import gather
from eplb.report.contents import ReportContents
from eplb.report.html import page, write_page
from eplb.report.html_payload import payload
from eplb_traces import ExpertLoad, ModelShape
from tests.report.browser import chart, chromium, complaints, press, settle
from tests.report.examples import some_trace

LOAD = ExpertLoad(np.array([[8.0, 4, 2, 1, 1], [0, 0, 0, 0, 0], [6, 6, 0, 0, 0]]), shape=ModelShape(3, 5))


def test_the_summary_is_about_experts():
    overall, *layers = gather(LOAD, title="load.npz").summary_text
    # Layer 0: 8 of 16 tokens, 16 / 5 in the mean; layer 2: 6 of 12, 12 / 5 in the mean. The mean of 2.5 and 2.5 is 2.5.
    assert overall.splitlines()[:2] == [
        "load.npz: 3 layers of 5 experts; nothing is planned.",
        "The busiest expert of a layer gets 2.50x the mean on average and 2.50x in layer 0.",
    ]
    assert overall.endswith("8 experts of all layers got no token.")
    assert layers == [
        "layer 0: expert 0 gets 2.50x the mean expert; half of the tokens go to 1 expert; 0 experts without tokens",
        "layer 1: no tokens",
        "layer 2: expert 0 gets 2.50x the mean expert; half of the tokens go to 1 expert; 3 experts without tokens",
    ]


def test_there_are_no_plans_and_the_worst_layer_is_the_most_skewed():
    contents = gather(ExpertLoad(np.array([[2.0, 1], [5, 1]])))
    assert contents.plans == ()
    assert contents.worst_layer == 1
    assert repr(contents) == "ReportContents(load: no plans)"
    assert payload(contents)["recommended"] is None


@pytest.mark.parametrize("more", [{"sources": (1.0, 1.0)}])
def test_what_is_about_ranks_is_refused(more):
    with pytest.raises(InputError, match="topology = None: expected a topology"):
        gather(LOAD, **more)


def test_the_page_has_no_verdict_and_no_word_about_ranks_at_the_top():
    text = page(gather(some_trace()))
    assert "<title>load: load of the experts</title>" in text
    top = text.partition("<script")[0].partition("<main>")[0]
    assert "verdict" not in top.partition("<body>")[2]
    assert " rank" not in top.partition("<body>")[2]


def test_a_folder_holds_experts_and_pairs_alone(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    eplb.write_report(some_trace(), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"summary.md", "expert-load.png", "experts.csv", "pairs.csv", "pair_locality.csv"} <= names
    assert not {name for name in names if name.startswith(("rank", "layer", "metrics", "migration", "replica"))}
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "## Plans" not in text
    assert "dispatch" not in text


def test_the_command_needs_no_ranks(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from eplb_cli.main import app

    eplb.write_report(LOAD, tmp_path / "own.html", title="load.npz")
    from eplb_traces import write_load

    write_load(LOAD, tmp_path / "load.npz")
    result = CliRunner().invoke(app, ["report", str(tmp_path / "load.npz"), "-o", str(tmp_path / "a.html"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["plans"] == {}
    assert found["summary"][0] == "load.npz: 3 layers of 5 experts; nothing is planned."


@pytest.mark.parametrize("source", ["trace", "load"])
def test_the_page_shows_activations_and_coactivation_only(tmp_path, source):
    contents: ReportContents = gather(some_trace() if source == "trace" else LOAD)
    write_page(contents, tmp_path / "page.html")
    with chromium() as driver:
        driver.get((tmp_path / "page.html").as_uri() + "#layer=1&expert=3")
        settle(driver)
        press(driver, "b")  # there is no plan to switch to
        shown = [
            one.get_attribute("id") for one in driver.find_elements("css selector", ".chart") if one.is_displayed()
        ]
        expected = ["expert-load", "coactivation", "load-map"]
        assert shown == [name for name in expected if source == "trace" or name != "coactivation"]
        assert not driver.find_element("id", "plans").is_displayed()
        assert driver.find_element("id", "expert-facts").text.startswith("expert 3")
        (bars,) = chart(driver, "expert-load")
        assert sorted(bars["y"]) == sorted(contents.load.total[1].tolist())
        assert complaints(driver) == []
