"""Settings of the generated tests, and the traces that are too large or too foreign to ship."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from eplb_traces import MissingExtraError

# `default` is the run of every day: the same cases each time, so that a failure is the change's fault. `long` looks for
# new ones: EPLB_HYPOTHESIS_PROFILE=long, or `make test-long`.
settings.register_profile("default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "long", deadline=None, max_examples=5000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("EPLB_HYPOTHESIS_PROFILE", "default"))

_REPOSITORY = Path(__file__).resolve().parent.parent


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
