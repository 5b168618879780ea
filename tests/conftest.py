"""Settings of the generated tests, and the traces that are too large or too foreign to ship."""

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from eplb_traces import MissingExtraError

# `default` is the run of every day: few cases, the same each time, so that a failure is the change's fault.
# `few` is for what differs between versions of a library, not between cases: `make test-lowest`.
# `long` looks for new ones: EPLB_HYPOTHESIS_PROFILE=long, or `make test-long`.
settings.register_profile(
    "default", deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("few", settings.get_profile("default"), max_examples=5)
settings.register_profile(
    "long", deadline=None, max_examples=5000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
# `mutants` is for tests/tools/mutate.py, where a failure is counted and not read: it is not made smaller.
settings.register_profile("mutants", settings.get_profile("default"), phases=[Phase.explicit, Phase.generate])
_PROFILE = os.environ.get("EPLB_HYPOTHESIS_PROFILE", "default")
settings.load_profile(_PROFILE)

# A shell's job in the background ignores Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_FEW_SEEDS = 3
_REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give each `long` run a seed of its own before hypothesis reads the option; workers of xdist inherit it."""
    if _PROFILE == "long" and config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = os.environ.setdefault("EPLB_HYPOTHESIS_SEED", str(secrets.randbelow(2**32)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the profile `few`, deselect the cases of tests with a parameter `seed` but the first of each."""
    if _PROFILE != "few":
        return
    config.hook.pytest_deselected(items=[item for item in items if _is_left_out(item)])
    items[:] = [item for item in items if not _is_left_out(item)]


def _is_left_out(item: pytest.Item) -> bool:
    """Whether a case is not among the first of the parameter `seed`."""
    call = getattr(item, "callspec", None)  # of parametrized tests alone
    return call is not None and call.indices.get("seed", 0) >= _FEW_SEEDS


def pytest_sessionstart(session: pytest.Session) -> None:
    """Print the seed with which a `long` run can be repeated; workers of xdist have no terminal."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if _PROFILE == "long" and terminal is not None:
        terminal.write_line(f"generated cases: --hypothesis-seed={session.config.option.hypothesis_seed}")


@pytest.fixture(scope="session")
def shared_traces() -> Path:
    """The folder of real traces beside the checkout; tests that need it are skipped elsewhere."""
    folder = _REPOSITORY.parent / "shared" / "traces"
    if not folder.is_dir():
        pytest.skip("needs the traces that lie beside the project's own checkout, not in it")
    return folder


@pytest.fixture(scope="session")
def samples() -> Path:
    """The traces that are shipped with the package."""
    return _REPOSITORY / "traces" / "eplb_traces" / "samples"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """With EPLB_CORE_ONLY, as `make test-lowest` sets it, skip what turns out to need an extra.

    Elsewhere all extras are installed and an error about a missing one is a failure like any other.
    """
    try:
        return (yield)
    except (MissingExtraError, ModuleNotFoundError) as error:
        if "EPLB_CORE_ONLY" not in os.environ:
            raise
        pytest.skip(f"the core alone: {error}")
