"""The page in headless Chromium: no requests, charts show the data, numbers equal those of `evaluate`."""

import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

import eplb
from eplb.report.contents import gather
from eplb.report.html import write_page
from eplb_cli.main import app
from eplb_traces import ExpertLoad, ModelShape, synthesize_trace, write_load
from eplb_traces.coactivation.layer_coactivation import coactivation
from tests.report.browser import chart, choose, complaints, layout, press, requested, settle, table

WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait

SHAPE = ModelShape(4, 32, 4, 4, 2, moe_layer_ids=(1, 2, 3, 4))
TOPOLOGY = eplb.Topology(2, 2, 10)
INSIDE_THE_FILE = {"file", "data", "blob"}
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>{{payload}}"


@pytest.fixture(scope="module")
def contents():
    trace = synthesize_trace(shape=SHAPE, num_steps=6, tokens_per_step=512)
    return gather(trace, topology=TOPOLOGY, window=2, title="sample", expert_bytes=44_040_192.0)


@pytest.fixture
def driver(browser, contents, page_url):
    """The page of `contents`, with the controls as when it is opened."""
    if browser.current_url != page_url:
        _open(browser, page_url)
    for button in browser.find_elements("css selector", "input[checked]"):
        if not button.is_selected():
            browser.execute_script("arguments[0].click()", button)
    _move_slider(browser, _worst_layer(contents))
    yield browser
    assert complaints(browser) == []
    assert requested(browser) <= INSIDE_THE_FILE


def _open(browser, url):
    browser.get(url)
    settle(browser)


def _worst_layer(contents):
    return int(contents.plans[0].evaluation.max_over_mean.argmax())


def _move_slider(driver, layer):
    driver.execute_script(
        "const s = document.getElementById('layer'); s.value = arguments[0]; s.dispatchEvent(new Event('input'));",
        layer,
    )
    settle(driver)


def _layer(driver):
    return int(driver.find_element("id", "layer").get_attribute("value"))


def _matrix(trace):
    return np.array([[np.nan if cell is None else cell for cell in row] for row in trace["z"]])


def _bars(driver, name):
    """Heights of the bars of a plan in the chart of rank loads."""
    (found,) = [trace["y"] for trace in chart(driver, "rank-load") if trace["type"] == "bar" and trace["name"] == name]
    return found


def test_a_request_or_an_error_would_be_seen(browser, page_url):
    _open(browser, page_url)
    assert (complaints(browser), requested(browser) <= INSIDE_THE_FILE) == ([], True)
    browser.execute_script("setTimeout(() => { throw new Error('seen'); })")
    browser.execute_script("new Image().src = 'http://127.0.0.1:9/nothing'")
    WebDriverWait(browser, 20).until(lambda d: "http" in requested(d))  # requested, and refused by the page's policy
    logged = " ".join(complaints(browser))
    assert "seen" in logged
    assert "Content Security Policy" in logged


def test_no_button_of_a_chart_sends_it_anywhere(driver):
    script = "return [...document.querySelectorAll('#rank-load .modebar-btn')].map((b) => b.dataset.title)"
    shown = set(driver.execute_script(script))
    assert shown == {"Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}


def test_the_summary_is_at_the_top(driver, contents):
    overall, *layers = contents.summary_text
    assert driver.find_element("id", "summary").text.split("\n") == overall.split("\n")
    script = "return [...document.querySelectorAll('#layer-summaries li')].map((item) => item.textContent)"
    assert driver.execute_script(script) == layers


def test_the_page_opens_with_the_worst_layer_and_the_first_plan_after_before(browser, contents, page_url):
    _open(browser, page_url)
    assert _layer(browser) == _worst_layer(contents)
    assert browser.find_element("css selector", "#plans :checked").get_attribute("value") == "1"


@pytest.mark.parametrize("layer", [0, 2])
def test_the_slider_changes_the_heatmap_and_it_shows_the_layer(driver, contents, layer):
    choose(driver, "coactivation-order", "id")
    _move_slider(driver, 1)
    before = _matrix(chart(driver, "coactivation")[0])
    _move_slider(driver, layer)
    after = _matrix(chart(driver, "coactivation")[0])
    assert not np.array_equal(before, after, equal_nan=True)
    of_layer = coactivation(contents.trace, layer)
    lift = (of_layer.pairs + 5) / (of_layer.expected_pairs + 5)
    lift[np.isnan(of_layer.lift())] = np.nan  # the diagonal, and experts without tokens
    stated = float(re.search(r"at most ([\d.]+) % off", driver.find_element("id", "coactivation-note").text)[1]) / 100
    seen = lift > 0
    np.testing.assert_allclose(2 ** after[seen], lift[seen], rtol=stated + 5e-4)
    assert np.isnan(after[np.isnan(lift)]).all()
    assert driver.find_element("id", "layer-summary").text == contents.summary_text[1 + layer]


def test_the_heatmap_can_show_tokens_and_blocks(driver, contents):
    of_layer = coactivation(contents.trace, _layer(driver))
    choose(driver, "coactivation-value", "count")
    order = of_layer.order()
    root = _matrix(chart(driver, "coactivation")[0])
    expected = of_layer.pairs[np.ix_(order, order)].astype(float)
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(root**2, expected, rtol=0.03, atol=0.51)  # in 256 levels, then whole tokens
    assert layout(driver, "coactivation")["shapes"] == []
    choose(driver, "coactivation-order", "id")
    # 4 groups of 8: borders before experts 8, 16 and 24, across and along.
    ends = {shape["x0"] for shape in layout(driver, "coactivation")["shapes"]}
    assert ends == {-0.5, 7.5, 15.5, 23.5}
    assert len(layout(driver, "coactivation")["shapes"]) == 6


def test_the_plan_toggle_changes_the_bars_and_not_their_scale(driver, contents):
    before, after = contents.plans
    layer = _layer(driver)
    np.testing.assert_array_equal(_bars(driver, after.name), after.total_rank_load[layer])
    np.testing.assert_array_equal(_bars(driver, before.name), before.total_rank_load[layer])
    scale = layout(driver, "rank-load")["yaxis"]["range"]
    choose(driver, "plan", "0")
    assert [trace["name"] for trace in chart(driver, "rank-load") if trace["type"] == "bar"] == [before.name]
    assert layout(driver, "rank-load")["yaxis"]["range"] == scale
    press(driver, "b")
    np.testing.assert_array_equal(_bars(driver, after.name), after.total_rank_load[layer])
    driver.find_element("id", "compare").click()
    settle(driver)
    assert [trace["name"] for trace in chart(driver, "rank-load") if trace["type"] == "bar"] == [after.name]


def test_the_bound_is_drawn_at_its_value(driver, contents):
    layer, after = _layer(driver), contents.plans[1]
    (line,) = [trace for trace in chart(driver, "rank-load") if trace["name"].startswith("lower bound")]
    assert line["y"] == [after.bound.value[layer]] * 2
    assert str(after.bound.binding[layer]) in line["name"]


def test_experts_show_their_tokens_and_replicas(driver, contents):
    choose(driver, "expert-order", "id")
    layer, replicas = _layer(driver), contents.plans[1].placement.logical_replica_count
    bars = [trace for trace in chart(driver, "expert-load") if trace["type"] == "bar"]
    tokens = {x: y for trace in bars for x, y in zip(trace["x"], trace["y"], strict=True)}
    assert [tokens[expert] for expert in range(32)] == contents.load.total[layer].tolist()
    for trace in bars:
        assert set(replicas[layer][trace["x"]]) == {int(trace["name"].split()[0])}


def test_the_rank_table_sorts_both_ways(driver, contents):
    heading = driver.find_elements("css selector", "#rank-table th [role=button]")[2]  # tokens
    load = contents.plans[1].total_rank_load
    for direction, ordered in (("descending", lambda x: -np.sort(-x)), ("ascending", np.sort)):
        driver.execute_script("arguments[0].click()", heading)
        found = [float(row[2]) for row in table(driver, "rank-table")]
        assert found == ordered(load[_layer(driver)]).tolist()
        script = "return document.querySelectorAll('#rank-table th')[2].getAttribute('aria-sort')"
        assert driver.execute_script(script) == direction
    press(driver, "\ue012")  # arrow left: another layer, sorted as before
    found = [float(row[2]) for row in table(driver, "rank-table")]
    assert found == np.sort(load[_layer(driver)]).tolist()


def test_the_rank_table_shows_experts_and_replicas_moved_in(driver, contents):
    view, layer = contents.plans[1], _layer(driver)
    held = view.placement.physical_to_logical_map[layer].reshape(4, 10)
    count, migration = view.placement.logical_replica_count[layer], view.migration
    moved_in = [
        int(np.sum((migration.layer == layer) & (migration.rank == r) & (migration.batch >= 0))) for r in range(4)
    ]
    for rank, row in enumerate(sorted(table(driver, "rank-table"), key=lambda row: int(row[0]))):
        shared = int((count[held[rank]] > 1).sum())
        assert [int(row[i]) for i in (0, 1, 4, 5, 6)] == [rank, rank // 2, len(held[rank]), shared, moved_in[rank]]


def test_arrow_keys_and_buttons_change_the_layer(driver):
    _move_slider(driver, 1)
    press(driver, "\ue014")  # arrow right
    assert _layer(driver) == 2
    press(driver, "\ue012")  # arrow left
    assert _layer(driver) == 1
    driver.find_element("id", "layer-down").click()
    driver.find_element("id", "layer-down").click()  # there is no layer -1
    settle(driver)
    assert _layer(driver) == 0
    driver.find_element("id", "layer").send_keys("\ue014")
    settle(driver)
    assert _layer(driver) == 1
    assert driver.find_element("id", "layer").get_attribute("aria-valuetext") == "layer 1 (2 in the model)"


def test_a_click_on_the_overview_chooses_the_layer(driver):
    from selenium.webdriver import ActionChains

    _move_slider(driver, 0)
    plot = driver.find_element("css selector", "#load-map .nsewdrag")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    # 4 layers from top to bottom: an eighth of the height above the lower edge is the middle of layer 3.
    ActionChains(driver).move_to_element_with_offset(plot, 0, int(plot.size["height"] * 3 / 8)).click().perform()
    settle(driver)
    assert _layer(driver) == 3
    (frame,) = [shape for shape in layout(driver, "load-map")["shapes"] if shape["type"] == "rect"]
    assert (frame["y0"], frame["y1"]) == (2.5, 3.5)


def test_hovering_the_heatmap_shows_the_pair(driver, contents):
    from selenium.webdriver import ActionChains

    choose(driver, "coactivation-order", "id")
    plot = driver.find_element("css selector", "#coactivation .nsewdrag")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    # 32 experts: one and a half cells right of the middle is expert 17, half a cell below it expert 16.
    cell = plot.size["width"] / 32
    ActionChains(driver).move_to_element_with_offset(plot, int(1.5 * cell), int(0.5 * cell)).perform()
    shown = driver.find_element("id", "tip").text
    pairs = coactivation(contents.trace, _layer(driver)).pairs
    assert shown.startswith("experts 16 and 17")
    found = int(re.search(r"about ([\d,]+) tokens", shown)[1].replace(",", ""))
    assert found == pytest.approx(pairs[16, 17], rel=0.03, abs=0.51)


def test_overview_lines_equal_the_evaluation(driver, contents):
    lines = chart(driver, "layer-balance")
    assert [line["name"] for line in lines] == [view.name for view in contents.plans]
    for line, view in zip(lines, contents.plans, strict=True):
        np.testing.assert_array_equal(line["y"], view.evaluation.max_over_mean)
    choose(driver, "balance-of", "total")
    for line, view in zip(chart(driver, "layer-balance"), contents.plans, strict=True):
        np.testing.assert_array_equal(line["y"], view.evaluation.max_over_mean_of_total)
    for value, reduce in (("mean", np.mean), ("worst", np.max)):
        choose(driver, "windows-of", value)
        for line, view in zip(chart(driver, "windows"), contents.plans, strict=True):
            np.testing.assert_allclose(line["y"], reduce(view.balance_by_window, axis=1), rtol=1e-6)
    choose(driver, "windows-of", "layer")
    _move_slider(driver, 3)
    np.testing.assert_allclose(chart(driver, "windows")[1]["y"], contents.plans[1].balance_by_window[:, 3], rtol=1e-6)


def test_migration_is_shown_in_gigabytes(driver, contents):
    found = _matrix(chart(driver, "migration")[0])
    expected = contents.plans[1].migration.link_bytes / 1e9
    np.fill_diagonal(expected := expected.copy(), np.nan)
    np.testing.assert_allclose(found, expected)
    choose(driver, "plan", "0")
    assert not driver.find_element("id", "migration").is_displayed()
    assert "nothing moves" in driver.find_element("id", "migration-summary").text


def test_numbers_on_the_page_are_those_of_evaluate(driver, contents, tmp_path):
    write_load(contents.load, tmp_path / "load.npz")
    rows = {row[0]: row[2:] for row in table(driver, "metric-table")}
    for index, view in enumerate(contents.plans):
        path = tmp_path / f"{index}.json"
        eplb.write_placement(view.placement, path, format="native")
        result = CliRunner().invoke(app, ["evaluate", str(path), str(tmp_path / "load.npz"), "--json"])
        assert result.exit_code == 0, result.output
        judged = {name: value for name, value in json.loads(result.stdout).items() if isinstance(value, int | float)}
        assert len(judged) >= 15
        for name, value in judged.items():
            assert float(rows[name][index]) == value, name


def test_dark_and_light_change_page_and_charts(driver):
    def colours():
        ink = layout(driver, "rank-load")["font"]["color"]
        return driver.execute_script("return getComputedStyle(document.body).backgroundColor"), ink

    seen = [colours()]
    for _ in range(2):
        driver.find_element("id", "theme").click()
        settle(driver)
        seen.append(colours())
    assert all(new != old for new, old in zip(seen[1], seen[0], strict=True))
    assert seen[2] == seen[0]


def test_every_control_has_a_label_for_screen_readers(driver):
    script = """
        return [...document.querySelectorAll('input, button, .chart:not([hidden])')]
          .filter((e) => !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim()))
          .map((e) => e.outerHTML);
    """
    assert driver.execute_script(script) == []


def test_the_page_fits_a_laptop_screen(driver):
    script = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    needed, there = driver.execute_script(script)
    assert needed <= there


def test_names_from_files_are_escaped_everywhere(browser, contents, tmp_path):
    plans = {HOSTILE: contents.plans[0].placement, "<b>bold</b>%{x}": contents.plans[1].placement}
    write_page(gather(contents.load, plans, title=HOSTILE), tmp_path / "hostile.html")
    _open(browser, (tmp_path / "hostile.html").as_uri())
    assert browser.execute_script("return window.hacked") is None
    assert browser.title == f"{HOSTILE}: expert placement"
    labels = browser.execute_script("return [...document.querySelectorAll('#plans label')].map((l) => l.textContent)")
    assert labels == list(plans)
    legend = browser.execute_script("return document.querySelector('#layer-balance .legend').textContent")
    assert "<b>bold</b>%{x}" in legend
    assert complaints(browser) == []


@pytest.mark.parametrize(
    ("load", "topology"),
    [
        # A layer without load; one rank twice as fast as the other.
        (np.array([[0.0, 0, 0, 0], [5, 2, 1, 1]]), eplb.Topology(1, 2, 3, rank_speed=(1.0, 2.0))),
        (np.array([[3.0]]), eplb.Topology(1, 1, 1)),  # one layer, one expert, one rank
    ],
)
def test_unusual_loads_are_shown(browser, load, topology, tmp_path):
    write_page(gather(ExpertLoad(load), topology=topology), tmp_path / "odd.html")
    _open(browser, (tmp_path / "odd.html").as_uri())
    for layer in range(len(load)):
        _move_slider(browser, layer)
        (*_, bar) = [trace for trace in chart(browser, "rank-load") if trace["type"] == "bar"]
        speed = topology.relative_speed
        assert np.dot(bar["y"], speed) == pytest.approx(load[layer].sum())
    assert not browser.find_element("id", "coactivation-part").is_displayed()
    assert browser.find_element("id", "no-coactivation").is_displayed()
    assert browser.find_element("id", "no-windows").is_displayed()
    assert complaints(browser) == []


def test_an_old_browser_shows_an_error(browser, page_url):
    script = "Object.defineProperty(window, 'DecompressionStream', { value: undefined });"
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    browser.get(page_url)
    problem = browser.find_element("id", "problem")
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    assert "browser of 2023 or later" in problem.text
    complaints(browser)
