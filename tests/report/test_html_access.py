"""The page for everyone: rules of axe-core, small screens, dark colours, paper, keyboard."""

import base64
import json
import re
from importlib import resources

import numpy as np
import pytest

import eplb
from eplb.report.contents import gather
from eplb.report.html import write_page
from eplb_traces import ModelShape, RoutingTrace, TokenBatch, synthesize_trace
from eplb_traces.coactivation.layer_coactivation import coactivation
from tests.report.browser import chart, complaints, layout, press, settle

SHAPE = ModelShape(4, 32, 4, 4, 2, moe_layer_ids=(1, 2, 3, 4))
TOPOLOGY = eplb.Topology(2, 2, 10)
SERIOUS = {"serious", "critical"}
STRATEGIES = ("linear", "round_robin", "zigzag", "deepseek", "greedy")


@pytest.fixture(scope="module")
def contents():
    """Five plans, one with a long name, for a trace with two domains."""
    drawn = next(iter(synthesize_trace(shape=SHAPE, num_steps=4, tokens_per_step=512).batches()))
    domain = (np.arange(drawn.num_tokens) % 3 > 0).astype(np.int32)
    batch = TokenBatch(SHAPE, drawn.expert_ids, drawn.step, drawn.request, domain=domain)
    trace = RoutingTrace(SHAPE, [batch], domain_names=("code", "prose"))
    plans = {f"{name}-of-a-long-file-name-without-any-gaps.json": eplb.plan(trace.load(), TOPOLOGY, name).placement
             for name in STRATEGIES}  # fmt: skip
    return gather(trace, plans, title="sample")


@pytest.fixture
def opened(browser, page_url):
    """Opens the page anew, at a width and under a colour scheme."""

    def open_page(width=1366, scheme="light", address=""):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get("about:blank")  # so that an address that differs in its fragment is loaded, too
        browser.get(page_url + address)
        settle(browser)
        return browser

    yield open_page
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert complaints(browser) == []


def _violations(driver):
    """{rule: elements} of impact serious or critical."""
    pytest.importorskip("axe_playwright_python")
    driver.execute_script((resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    script = """
        const done = arguments[arguments.length - 1];
        axe.run(document, { rules: { "target-size": { enabled: true } }, resultTypes: ["violations"] })
          .then(({ violations }) => done(JSON.stringify(violations)), (error) => done(JSON.stringify(String(error))));
    """
    driver.set_script_timeout(120)
    found = json.loads(driver.execute_async_script(script))
    assert isinstance(found, list), found
    return {rule["id"]: [node["html"][:200] for node in rule["nodes"]] for rule in found if rule["impact"] in SERIOUS}


@pytest.mark.parametrize(("width", "scheme"), [(1366, "light"), (1366, "dark"), (390, "light"), (390, "dark")])
def test_axe_finds_nothing_serious(opened, width, scheme):
    assert _violations(opened(width, scheme, "#expert=7")) == {}


def test_axe_would_find_something(opened):
    driver = opened()
    driver.execute_script("""
        document.body.insertAdjacentHTML("afterbegin",
          '<button></button><p style="color: #ccc; background: #fff">faint</p>' +
          '<button style="min-width:0;min-height:0;width:9px;height:9px;padding:0">a</button>' +
          '<button style="min-width:0;min-height:0;width:9px;height:9px;padding:0">b</button>');
    """)
    assert {"button-name", "color-contrast", "target-size"} <= _violations(driver).keys()


@pytest.mark.parametrize("width", [390, 768, 1024, 1440])
def test_nothing_is_off_screen(opened, width):
    driver = opened(width)
    # Elements that reach beyond the right edge, but for those that are meant for the ear alone.
    script = """
        const width = document.documentElement.clientWidth;
        return [...document.querySelectorAll("body *:not(defs *)")]
          .filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > width + 1)
          .map((e) => `${e.tagName}#${e.id}.${e.className.baseVal ?? e.className} ${e.getBoundingClientRect().right}`);
    """
    assert driver.execute_script(script) == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_verdict_is_there_without_scripts(browser, page_url, contents):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page_url)
        verdict = browser.find_element("id", "verdict").text
        rows = browser.find_elements("css selector", "#plan-table tbody tr")
        names = [row.find_element("css selector", "th").text for row in rows]
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert verdict.startswith(f"Use {contents.plans[4].name}: the busiest rank has 1.00")
    expected = [view.name for view in contents.plans]
    expected[4] += " recommended"
    assert names == expected
    complaints(browser)


def _pdf_pages(driver):
    printed = driver.execute_cdp_cmd(
        "Page.printToPDF",
        {"preferCSSPageSize": True, "printBackground": False, "paperWidth": 9, "paperHeight": 14},
    )
    return re.findall(rb"/MediaBox \[([^\]]*)\]", base64.b64decode(printed["data"]))


def test_the_page_prints_on_a4_and_is_afterwards_as_before(opened):
    driver = opened(1440, "dark")
    before = layout(driver, "rank-load")["font"]["color"]
    pages = _pdf_pages(driver)
    assert len(pages) >= 4
    for box in pages:
        np.testing.assert_allclose([float(edge) for edge in box.split()], [0, 0, 595, 842], atol=1.5)
    settle(driver)
    assert layout(driver, "rank-load")["font"]["color"] == before
    assert driver.execute_script("return document.documentElement.dataset.printing") is None


def test_while_printing_nothing_is_cut(opened):
    driver = opened(1440, "dark")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    driver.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    script = """
        const width = 703; // A4 less two margins of 12 mm, in pixels
        const wide = [...document.querySelectorAll("header *, main *:not(defs *), footer *")]
          .filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > width)
          .map((e) => `${e.tagName}#${e.id} ${e.getBoundingClientRect().right}`);
        const isCut = (e) => e.scrollHeight > e.clientHeight + 1;
        const cut = [...document.querySelectorAll(".scrolls")].filter(isCut).map((e) => e.id);
        const controls = [...document.querySelectorAll(".controls, .modebar, .csv")].filter((e) => e.checkVisibility());
        return [wide, cut, controls.length, document.getElementById("layer-summaries").open];
    """
    found = driver.execute_script(script)
    ink = layout(driver, "rank-load")["font"]["color"]
    driver.execute_script("window.dispatchEvent(new Event('afterprint'))")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    settle(driver)
    assert found == [[], [], 0, True]
    assert ink == "#1b1f24"  # dark ink on paper, although the page is dark


def test_a_link_opens_layer_plan_and_expert(opened):
    driver = opened(address="#layer=2&plan=3&expert=9")
    assert driver.find_element("id", "layer").get_attribute("value") == "2"
    assert driver.find_element("css selector", "#plans :checked").get_attribute("value") == "3"
    assert driver.find_element("id", "expert-facts").text.startswith("expert 9, group 1")
    press(driver, "\ue014")  # arrow right
    assert driver.execute_script("return location.hash") == "#layer=3&plan=3&expert=9"
    driver.execute_script("location.hash = '#layer=1'")
    settle(driver)
    assert driver.find_element("id", "layer").get_attribute("value") == "1"


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("#layer=4", "#layer=4: expected 0 to 3"),
        ("#layer=x", "#layer=x: expected 0 to 3"),
        ("#expert=", "#expert=: expected 0 to 31"),
        ("#rank=1", "#rank: expected layer, plan or expert"),
    ],
)
def test_a_link_to_what_is_not_there_is_refused_by_name(opened, address, problem):
    assert opened(address=address).find_element("id", "problem").text == problem


def test_an_expert_is_found(opened, contents):
    driver = opened(address="#layer=1&plan=4")
    driver.find_element("id", "expert").send_keys("17")
    settle(driver)
    facts = driver.find_element("id", "expert-facts").text
    tokens = int(contents.load.total[1, 17])
    assert f"expert 17, group 2; {tokens:,} tokens" in facts
    slots = np.flatnonzero(contents.plans[4].placement.physical_to_logical_map[1] == 17)
    ranks = np.unique(TOPOLOGY.rank_of_slot[slots]).tolist()
    assert f"on rank {', '.join(map(str, ranks))};" in facts
    of_layer = coactivation(contents.trace, 1)
    surplus = (of_layer.pairs - of_layer.expected_pairs)[17]
    surplus[17] = 0
    listed = int(re.search(r"above chance with (\d+) \(", facts)[1])
    assert surplus[listed] >= 0.9 * surplus.max()  # lifts are quantized
    frames = {(shape["x0"], shape["x1"]) for shape in layout(driver, "load-map")["shapes"] if shape["type"] == "rect"}
    assert (16.5, 17.5) in frames
    driver.find_element("id", "expert").send_keys("9")  # 179
    settle(driver)
    assert driver.find_element("id", "expert-facts").text == "Expert 179: expected 0 to 31."


def test_arrow_keys_move_a_cursor_in_the_heatmaps(opened, contents):
    driver = opened(address="#layer=1&plan=4")
    heatmap = driver.find_element("id", "load-map")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", heatmap)
    for key in ("\ue014", "\ue014", "\ue015", "\ue015", "\ue013", "\ue015"):  # first cell, right, down, down, up, down
        heatmap.send_keys(key)
    spoken = driver.find_element("id", "cursor-text").get_attribute("textContent")
    assert spoken.startswith(f"layer 2 (3 in the model), expert 1, {int(contents.load.total[2, 1]):,} tokens")
    assert driver.find_element("id", "cursor").is_displayed()
    assert driver.find_element("id", "layer").get_attribute("value") == "1"  # the keys moved the cursor alone
    heatmap.send_keys("\ue007")  # Enter
    settle(driver)
    assert driver.find_element("id", "layer").get_attribute("value") == "2"


def test_a_table_is_saved_as_csv_and_filtered(opened, contents):
    driver = opened(address="#layer=1&plan=4")
    driver.execute_script("""
        window.saved = [];
        URL.createObjectURL = (blob) => { blob.text().then((text) => window.saved.push(text)); return "#"; };
        HTMLAnchorElement.prototype.click = function () { window.savedAs = this.download; };
    """)
    driver.execute_script("document.querySelector('#rank-table').closest('.scrolls').querySelector('.csv').click()")
    driver.execute_async_script("setTimeout(arguments[0], 50)")
    (text,) = driver.execute_script("return window.saved")
    head, *rows = text.splitlines()
    assert head == "rank,node,tokens,\u00d7 mean,experts,shared,moved in"
    found = [float(row.split(",")[2]) for row in rows]
    assert found == contents.plans[4].total_rank_load[1].tolist()
    assert driver.execute_script("return window.savedAs") == "ranks-layer-1.csv"
    search = driver.find_element("css selector", "[aria-controls='metric-table']")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", search)
    search.send_keys("bound")
    script = "return [...document.querySelectorAll('#metric-table tbody td.name')].map((cell) => cell.dataset.value)"
    assert driver.execute_script(script) == ["gap_mean"]
    assert (
        driver.find_element("css selector", "#plans :checked").get_attribute("value") == "4"
    )  # b typed, no key of the page


def test_domains_have_one_heatmap_each(opened, contents):
    driver = opened()
    (batch,) = contents.trace.batches()
    found = chart(driver, "domains")
    assert [trace["hovertemplate"].partition(":")[0] for trace in found] == ["code", "prose"]
    for domain, trace in enumerate(found):
        chosen = batch.expert_ids[batch.domain == domain]
        counts = np.stack([np.bincount(chosen[:, layer].ravel(), minlength=32) for layer in range(4)])
        np.testing.assert_allclose(trace["customdata"], counts / counts.mean(axis=1, keepdims=True))


def test_a_plan_name_is_no_formula_in_a_csv(browser, contents, tmp_path):
    plans = {"=1+1": contents.plans[0].placement, 'a,"b"': contents.plans[4].placement}
    write_page(gather(contents.load, plans), tmp_path / "names.html")
    browser.get((tmp_path / "names.html").as_uri())
    settle(browser)
    browser.execute_script("""
        window.saved = [];
        URL.createObjectURL = (blob) => { blob.text().then((text) => window.saved.push(text)); return "#"; };
        HTMLAnchorElement.prototype.click = () => {};
        document.querySelector('#metric-table').closest('.scrolls').querySelector('.csv').click();
    """)
    browser.execute_async_script("setTimeout(arguments[0], 50)")
    (text,) = browser.execute_script("return window.saved")
    assert text.splitlines()[0] == """metric,meaning,'=1+1,"a,""b""\""""
    complaints(browser)
