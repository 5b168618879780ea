"""The command of a missing extra fits the environment that runs: checkout, wheel, with and without pip."""

import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from eplb_traces import MissingExtraError, install_command

LISTED = [
    "numpy>=2",
    "pyarrow>=17; extra == 'trace'",
    'pandas<3,>=2.2 ; extra == "trace"',
    "torch>=2.6; extra == 'runtime'",
    "pyarrow>=17; extra == 'all'",
]


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setattr(install_command, "requires", lambda _: LISTED)
    monkeypatch.setattr(sys, "executable", "/my home/bin/python")


def test_packages_and_interpreter_are_named():
    command = install_command.install_command("trace")
    assert command == "'/my home/bin/python' -m pip install 'pyarrow>=17' 'pandas<3,>=2.2'"
    assert shlex.split(command)[-2:] == ["pyarrow>=17", "pandas<3,>=2.2"]


def test_environments_without_pip_get_uv(monkeypatch):
    monkeypatch.setattr(install_command, "find_spec", lambda _: None)
    assert install_command.install_command("trace").startswith("uv pip install --python '/my home/bin/python' 'pyarrow")


def test_torch_comes_with_a_way_without_cuda():
    command = install_command.install_command("runtime")
    assert command.endswith(
        "(without CUDA: uv pip install --python '/my home/bin/python' --torch-backend cpu 'torch>=2.6')"
    )
    assert "CUDA" not in install_command.install_command("all")


@pytest.mark.parametrize("reason", ["not installed", "no such extra"])
def test_without_metadata_the_extra_is_named(monkeypatch, reason):
    def missing(_):
        raise PackageNotFoundError("eplb")

    if reason == "not installed":
        monkeypatch.setattr(install_command, "requires", missing)
    assert install_command.install_command("html") == "'/my home/bin/python' -m pip install 'eplb[html]'"


def test_the_error_has_the_command():
    error = MissingExtraError("Parquet", "trace")
    assert str(error) == f"Parquet needs the extra 'trace': {install_command.install_command('trace')}"
    assert error.extra == "trace"


def test_the_command_runs_as_it_is_printed(monkeypatch):
    """The interpreter and its pip are there, and pip takes the requirements: all are satisfied already."""
    pytest.importorskip("pip")
    monkeypatch.undo()
    pytest.importorskip("pyarrow")
    command = install_command.install_command("trace")
    if "eplb[" in command or " -m pip " not in command:
        pytest.skip("eplb is not installed here")
    result = subprocess.run([*shlex.split(command), "--dry-run", "--no-index"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "already satisfied" in result.stdout
