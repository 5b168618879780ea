"""Running the command line inside the test process, and small files to run it on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from eplb_cli.main import app
from eplb_traces import ExpertLoad, jit, write_load

Run = Callable[..., Result]


@pytest.fixture(scope="session", autouse=True)
def _compilation_is_announced() -> None:
    """Said once a process, so say it now: no test's stderr shall depend on what numba has in its cache."""
    jit._announce_compilation()


@pytest.fixture(scope="session")
def run() -> Run:
    """Run `eplb` with these words; stdout and stderr apart."""
    try:
        runner = CliRunner(mix_stderr=False)  # click before 8.2
    except TypeError:
        runner = CliRunner()
    return lambda *words, **options: runner.invoke(app, [str(word) for word in words], **options)


@pytest.fixture(scope="session")
def counts() -> np.ndarray:
    """[3, 16] tokens: the first experts hot, differently in each layer."""
    return np.random.default_rng(1).lognormal(4, 1, (3, 16)).round() + 1


@pytest.fixture
def load_path(tmp_path: Path, counts: np.ndarray) -> Path:
    path = tmp_path / "load.npz"
    write_load(ExpertLoad(counts), path)
    return path


@pytest.fixture
def plan_path(tmp_path: Path, load_path: Path, run: Run) -> Path:
    path = tmp_path / "plan.json"
    words = ("--ranks", 4, "--nodes", 2, "--redundant", 4, "--strategy", "greedy", "-o", path)
    assert run("plan", load_path, *words).exit_code == 0
    return path
