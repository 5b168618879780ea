"""`eplb env`, and the other ways to start the command line."""

import json
import platform
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest

from eplb_cli.commands import env


def test_the_versions_are_those_of_this_interpreter(run):
    found = json.loads(run("env", "--json").stdout)
    assert found["python"].endswith(platform.python_version())
    assert found["packages"]["numpy"] == np.__version__
    assert "core" in found["cpu"]


def test_text_holds_the_same_facts(run, monkeypatch):
    monkeypatch.setenv("EPLB_STRATEGY", "greedy")
    text = run("env").stdout
    assert platform.platform() in text
    assert f"numpy   {np.__version__}" in text
    assert "EPLB_STRATEGY" in text


def test_extras_are_those_of_the_metadata_and_missing_packages_are_named(run, monkeypatch):
    requirements = [
        "numpy>=2",
        "numpy>=1; extra == 'ilp'",
        'no-such-package>=1 ; extra == "ilp"',
        "eplb[x]; extra == 'all'",
    ]
    monkeypatch.setattr(env.metadata, "requires", lambda name: requirements)
    found = json.loads(run("env", "--json").stdout)["extras"]
    assert found == {"ilp": {"numpy": np.__version__, "no-such-package": None}}
    assert "no: no-such-package not installed" in run("env").stdout


def test_without_metadata_no_extra_is_claimed(run, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(env.metadata, "requires", missing)
    assert json.loads(run("env", "--json").stdout)["extras"] == {}


@pytest.mark.parametrize("module", ["eplb", "eplb_cli"])
def test_the_command_line_starts_as_a_module(module):
    script = (
        f"import sys, runpy; sys.path[:0] = {[path for path in sys.path if path]!r}; sys.argv = ['eplb', 'formats'];"
    )
    script += f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stdout[:7]) == (0, "Formats"), result.stderr
