"""How the process ends, in real processes: Ctrl-C at any moment, a reader that goes away, a full or closed stdout."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eplb.formats import read_plan
from eplb_cli.exit_codes import INTERRUPTED, READER_GONE, ExitCode
from tests.walk import bare_environment

_ENVIRONMENT = bare_environment()
_EPLB = (sys.executable, "-m", "eplb_cli")


def _ended(*words, **streams):
    words = [*_EPLB, *map(str, words)]
    found = subprocess.run(words, stderr=subprocess.PIPE, text=True, env=_ENVIRONMENT, check=False, **streams)
    return found.returncode, found.stderr


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("plan", "--help"), ("trace", "dialects", "--json")])
def test_a_reader_that_went_away_ends_the_command_without_a_word(words):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert _ended(*words, stdout=writer) == (READER_GONE, "")
    finally:
        os.close(writer)


def test_head_gets_its_line_and_the_rest_is_not_missed(load_path):
    shell = 'set -o pipefail; "$@" | head -1'
    words = ["/bin/bash", "-c", shell, "-", *_EPLB, "plan", str(load_path), "--ranks", "4", "--json"]
    found = subprocess.run(words, capture_output=True, text=True, env=_ENVIRONMENT | {"PATH": os.environ["PATH"]})
    assert (found.stdout, found.stderr) == ("{\n", "")
    assert found.returncode in (0, READER_GONE)  # 0 where all was written before head ended


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_full_stdout_is_an_error_with_a_code_of_its_own_as_the_plan_is_written(load_path, tmp_path, form):
    out = tmp_path / "plan.json"
    with open("/dev/full", "w") as full:
        code, said = _ended("plan", load_path, "--ranks", 4, "-o", out, *form, stdout=full)
    assert code == ExitCode.INCOMPLETE_OUTPUT
    assert said.startswith("error: stdout: No space left on device: the result is not printed")
    assert read_plan(out).placement.topology.num_ranks == 4


def test_a_closed_stdout_is_noticed_before_anything_is_written(load_path, tmp_path):
    out = tmp_path / "plan.json"
    words = ["/bin/sh", "-c", '"$@" >&-', "-", *_EPLB, "plan", str(load_path), "--ranks", "4", "-o", str(out)]
    found = subprocess.run(words, stderr=subprocess.PIPE, text=True, env=_ENVIRONMENT)
    assert found.returncode == ExitCode.INCOMPLETE_OUTPUT
    assert found.stderr == "error: stdout is closed: nothing was done\n"
    assert not out.exists()


def test_a_closed_stderr_does_not_hinder_a_result(load_path):
    words = ["/bin/sh", "-c", '"$@" 2>&-', "-", *_EPLB, "trace", "info", str(load_path)]
    found = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=_ENVIRONMENT)
    assert found.returncode == 0
    assert "layers" in found.stdout


@pytest.mark.parametrize("module", ["typer", "eplb_cli.commands.plan"])
def test_ctrl_c_while_modules_load_ends_without_a_traceback(module):
    interrupt = f"""
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
"""
    run = "sys.meta_path.insert(0, Interrupt())\nfrom eplb_cli.__main__ import main\nmain()"
    code = f"import signal, sys{interrupt}\n{run}"
    found = subprocess.run([sys.executable, "-c", code, "formats"], capture_output=True, text=True, env=_ENVIRONMENT)
    assert (found.returncode, found.stdout, found.stderr) == (INTERRUPTED, "", "")


def test_ctrl_c_while_a_command_runs_ends_without_a_traceback(load_path, tmp_path):
    started, slow = tmp_path / "started", tmp_path / "slow.py"
    slow.write_text(
        "import pathlib, time\n\n\ndef slow(problem, *, seed=0):\n"
        f"    pathlib.Path({str(started)!r}).touch()\n    time.sleep(60)\n"
    )
    words = [*_EPLB, "plan", str(load_path), "--ranks", "4", "--strategy", f"{slow}:slow"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=_ENVIRONMENT, **streams) as child:
        while not started.exists():
            assert child.poll() is None, child.communicate()
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        assert child.communicate() == ("", "")
    assert child.returncode == INTERRUPTED
