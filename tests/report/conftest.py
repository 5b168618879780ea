"""A browser, and the page of the `contents` of a test file opened in it."""

import pytest

from eplb.report.html import write_page
from tests.report.browser import chromium


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def page_url(contents, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(contents, path)
    return path.as_uri()
