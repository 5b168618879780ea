"""Runs the `inside_*.py` files, each engine in a process of its own, on the code that `make engines` has fetched.

An engine changes the process that imports it, so none is imported here. A group is skipped where its engine is absent.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pytest

from tests.real_engines.engine_import import TABLE, missing_folders

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
FILES = {
    "vllm": ("inside_vllm_policy.py", "inside_vllm_maps.py", "inside_vllm_moves.py"),
    "sglang": ("inside_sglang_files.py", "inside_sglang_policy.py"),
    "ascend": ("inside_ascend.py",),
    "dlblas": ("inside_dlblas.py",),
}
# vLLM's own test_device_compatibility for CUDA and XPU, once for each of the two runs on our class. A machine with a
# GPU skips fewer.
MOST_SKIPPED = {"vllm": 4, "sglang": 0, "ascend": 0, "dlblas": 0}


@final
@dataclass(frozen=True)
class Outcome:
    """What a run of pytest counted, and what it printed."""

    passed: int
    failed: int
    skipped: int
    xfailed: int
    text: str


def run_inside(folder, *files):
    """Run test files in a process of their own; warnings are the engines' own affair there."""
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore", f"--junitxml={report}", *files]
    quiet = {"VLLM_CONFIGURE_LOGGING": "0", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    finished = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **quiet}, capture_output=True, text=True, timeout=600
    )
    text = finished.stdout[-20_000:] + finished.stderr[-5_000:]
    assert report.is_file(), text
    suite = ET.parse(report).getroot().find("testsuite")
    total, skipped = int(suite.get("tests")), suite.findall("testcase/skipped")
    xfailed = sum(found.get("type") == "pytest.xfail" for found in skipped)
    failed = int(suite.get("failures")) + int(suite.get("errors"))
    assert (finished.returncode == 0) == (failed == 0), text
    return Outcome(total - len(skipped) - failed, failed, len(skipped) - xfailed, xfailed, text)


@pytest.mark.parametrize("engine", TABLE)
def test_all_holds_inside(engine, tmp_path):
    missing = missing_folders(engine)
    if missing:
        pytest.skip(f"needs the engine's own code in .engines/: {', '.join(missing)} is not there; run `make engines`")
    outcome = run_inside(tmp_path, *(str(HERE / name) for name in FILES[engine]))
    assert outcome.failed == 0, outcome.text
    assert outcome.skipped <= MOST_SKIPPED[engine], outcome.text
    assert outcome.passed > 0


def test_every_inside_file_is_run():
    assert {path.name for path in HERE.glob("inside_*.py")} == {name for names in FILES.values() for name in names}


def test_a_failure_inside_is_a_failure_here(tmp_path):
    file = tmp_path / "inside_nothing.py"
    file.write_text(
        "import pytest\n"
        "def test_true(): pass\n"
        "def test_false(): assert 1 == 2\n"
        "def test_left_out(): pytest.skip('no reason')\n"
        "def test_known(): pytest.xfail('a reason')\n"
    )
    outcome = run_inside(tmp_path, str(file))
    assert (outcome.passed, outcome.failed, outcome.skipped, outcome.xfailed) == (1, 1, 1, 1)
    assert "assert 1 == 2" in outcome.text


def test_no_engine_is_loaded_here():
    top = {name.split(".")[0] for name in sys.modules}
    assert not top & {"vllm", "sglang", "vllm_ascend", "dlblas"}
