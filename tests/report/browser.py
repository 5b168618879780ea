"""A real browser for tests of the report page: headless Chromium, if it is there, without anything fetched for it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1366,768", "--force-color-profile=srgb")
_PATIENCE_S = 60


@contextmanager
def chromium() -> Iterator["WebDriver"]:
    """A browser of 1366 x 768; the test is skipped where Chromium, its driver or selenium is missing."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs Chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = browser  # named, so that selenium looks for none and downloads none
    for option in _OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()


def settle(driver: "WebDriver") -> None:
    """Wait until the page says that nothing is left to draw."""
    from selenium.webdriver.support.ui import WebDriverWait

    ready = "return document.documentElement.dataset.ready"
    WebDriverWait(driver, _PATIENCE_S, poll_frequency=0.02).until(lambda d: d.execute_script(ready) == "yes")


def complaints(driver: "WebDriver") -> list[str]:
    """What the console has said since the last call."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requested(driver: "WebDriver") -> set[str]:
    """Schemes of everything that was asked for since the last call: `file`, `data`, `http`."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {url.partition(":")[0] for url in urls}


def chart(driver: "WebDriver", name: str) -> list[dict[str, Any]]:
    """The traces of a chart as plotly holds them, typed arrays as lists."""
    script = """
        const plain = (key, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value);
        return JSON.stringify(document.getElementById(arguments[0]).data, plain);
    """
    return json.loads(driver.execute_script(script, name))


def layout(driver: "WebDriver", name: str) -> dict[str, Any]:
    """The layout of a chart."""
    return json.loads(
        driver.execute_script("return JSON.stringify(document.getElementById(arguments[0]).layout)", name)
    )


def table(driver: "WebDriver", name: str) -> list[list[str]]:
    """The exact values of a table's cells, row by row, as they stand."""
    script = """
        const rows = [...document.getElementById(arguments[0]).tBodies[0].rows];
        return rows.map((row) => [...row.cells].map((cell) => cell.dataset.value));
    """
    return driver.execute_script(script, name)


def choose(driver: "WebDriver", name: str, value: str) -> None:
    """Choose one of the radio buttons of that name, as a person does, and wait for the charts."""
    button = driver.find_element("css selector", f'input[name="{name}"][value="{value}"]')
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    settle(driver)


def press(driver: "WebDriver", key: str) -> None:
    """Press a key while nothing has the focus, and wait for the charts."""
    driver.execute_script("document.activeElement.blur()")
    driver.find_element("css selector", "body").send_keys(key)
    settle(driver)
