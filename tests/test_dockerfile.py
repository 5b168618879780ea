"""The Dockerfile is checked, not built: its instructions, the files it copies, the extras it names, its user."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TEXT = (REPOSITORY / "Dockerfile").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
INSTRUCTIONS = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD", "ENV", "ARG", "LABEL"}


def instructions(text):
    """(instruction, arguments) of every line, continued lines joined, comments left out."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines]


def copied(text):
    """Paths that are copied from the checkout."""
    found = [arguments.split() for name, arguments in instructions(text) if name == "COPY"]
    return [source for words in found if not words[0].startswith("--from=") for source in words[:-1]]


def complaints(text):
    """What a linter would say, one line each."""
    found = []
    steps = instructions(text)
    if steps[0][0] != "FROM":
        found.append("does not begin with FROM")
    for name, arguments in steps:
        if name not in INSTRUCTIONS:
            found.append(f"{name} is not used here")
        if name == "FROM" and not re.search(r":\d+\.\d+", arguments):
            found.append(f"FROM {arguments}: no version")
        if name in ("ENTRYPOINT", "CMD") and not isinstance(json_or_none(arguments), list):
            found.append(f"{name} {arguments}: not a JSON list")
        if name == "RUN" and re.search(r"pip (install|wheel)", arguments) and "--no-cache-dir" not in arguments:
            found.append(f"RUN {arguments}: no --no-cache-dir")
        if name == "WORKDIR" and not arguments.startswith("/"):
            found.append(f"WORKDIR {arguments}: not absolute")
    found += [f"COPY {path}: no such file" for path in copied(text) if not (REPOSITORY / path).exists()]
    extras = [extra for group in re.findall(r"\[([a-z,]+)\]\"", text) for extra in group.split(",")]
    found += [f"extra {extra}: unknown" for extra in extras if extra not in PROJECT["optional-dependencies"]]
    users = [arguments for name, arguments in steps if name == "USER"]
    if not users or users[-1] in ("root", "0"):
        found.append("runs as root")
    return found


def json_or_none(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def test_the_dockerfile_has_no_complaints():
    assert complaints(TEXT) == []
    assert ("ENTRYPOINT", '["eplb"]') in instructions(TEXT)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("FROM python:3.12-slim\n", "FROM python\n", "no version"),
        ("USER eplb\n", "", "runs as root"),
        ('ENTRYPOINT ["eplb"]', "ENTRYPOINT eplb", "not a JSON list"),
        ("COPY cli ./cli", "COPY clii ./cli", "COPY clii: no such file"),
        ("[trace,ilp", "[traces,ilp", "extra traces: unknown"),
        ("install --no-cache-dir", "install", "no --no-cache-dir"),
        ("WORKDIR /data", "WORKDIR data", "not absolute"),
        ("COPY cli", "ADD cli", "ADD is not used here"),
    ],
)
def test_every_check_can_fail(old, new, complaint):
    assert old in TEXT
    assert any(complaint in line for line in complaints(TEXT.replace(old, new)))


def test_its_python_is_one_that_the_project_supports():
    versions = {f"3.{minor}" for minor in re.findall(r"FROM python:3\.(\d+)", TEXT)}
    classified = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    assert versions <= classified


def test_the_context_holds_what_is_copied():
    lines = (REPOSITORY / ".dockerignore").read_text().split()
    kept = [line[1:] for line in lines if line.startswith("!")]
    assert lines[0] == "*"
    assert all(any(fnmatch.fnmatch(path, pattern) for pattern in kept) for path in copied(TEXT))


@pytest.mark.slow
def test_what_is_copied_is_enough_for_the_wheel(tmp_path):
    pytest.importorskip("hatchling")
    for path in copied(TEXT):
        source = REPOSITORY / path
        copy = shutil.copytree if source.is_dir() else shutil.copy
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        copy(source, tmp_path / path)
    code = "from hatchling.build import build_wheel; build_wheel('dist')"
    (tmp_path / "dist").mkdir()
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert len(list((tmp_path / "dist").glob("eplb-*.whl"))) == 1
