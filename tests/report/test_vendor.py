"""The JavaScript libraries of the page: unchanged files of the npm packages that are named beside them."""

import hashlib
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
VENDOR = REPOSITORY / "eplb" / "report" / "page" / "vendor"
SUMS = {name: digest for digest, name in (line.split() for line in (VENDOR / "SHA256SUMS").read_text().splitlines())}


def test_every_file_has_a_hash():
    files = {path.name for path in VENDOR.iterdir()} - {"README.md", "SHA256SUMS"}
    assert files == SUMS.keys()


@pytest.mark.parametrize("name", SUMS)
def test_files_are_unchanged(name):
    assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == SUMS[name]


@pytest.mark.parametrize(
    ("name", "package", "head"),
    [
        ("plotly-cartesian.min.js", "plotly.js-cartesian-dist-min", r"plotly\.js \(cartesian - minified\) v([\d.]+)"),
        ("dataTables.min.js", "datatables.net", r"DataTables ([\d.]+)"),
    ],
)
def test_versions_are_those_of_the_table_and_the_makefile(name, package, head):
    version = re.search(head, (VENDOR / name).read_text(encoding="utf-8")[:400])[1]
    assert f"| `{name}` | `{package}` {version} | MIT" in (VENDOR / "README.md").read_text()
    assert f"{package}@{version}" in (REPOSITORY / "Makefile").read_text()


@pytest.mark.parametrize("name", [name for name in SUMS if name.endswith(".js")])
def test_libraries_can_stand_inside_a_script_element_and_run_under_the_policy_of_the_page(name):
    text = (VENDOR / name).read_text(encoding="utf-8")
    assert "</script" not in text.lower()
    assert "<!--" not in text
    assert not re.search(r"\beval\(|new Function\(", text)


@pytest.mark.parametrize("name", [name for name in SUMS if name.startswith("LICENSE")])
def test_licences_are_mit(name):
    assert "Permission is hereby granted, free of charge" in (VENDOR / name).read_text(encoding="utf-8")
