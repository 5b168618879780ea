"""The kernels of both modes in Triton's interpreter: virtual ranks, compared with plain loops."""

from importlib.util import find_spec

import pytest

from eplb.runtime import Launch, run_processes
from tests.runtime.exchange.symmetric import virtual_cases

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


@pytest.fixture
def interpreted(monkeypatch):
    """Runs a function in a new process: Triton reads the variable when it is imported."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return lambda worker, argument=None: run_processes(Launch(1), worker, argument)[0]


MODES = [
    *((name, "normal") for name in virtual_cases.SHAPES if name != "four ranks"),
    *((name, "low latency") for name in virtual_cases.SHAPES if name != virtual_cases.TWO_BLOCKS),
]
"""The low-latency mode has no blocks, and its programs grow with the tokens of all ranks."""


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_layout_rows_and_results_equal_the_plain_loop(interpreted, name, mode):
    assert interpreted(virtual_cases.wrong_steps, ([name], mode == "low latency")) == []


def test_float8_rows_are_rounded_as_in_torch_on_every_rank(interpreted):
    assert interpreted(virtual_cases.float8_rows) == []


def test_pulled_sums_are_those_of_all_ranks_or_nan(interpreted):
    (raised,) = interpreted(virtual_cases.pulled)
    assert raised.startswith("ExchangeTimeoutError: rank 0 waited 0.05 s for rank 1 in combine")


def test_failures_become_exceptions_on_every_rank(interpreted):
    outcomes = interpreted(virtual_cases.failures)
    assert outcomes["dispatch result"] == outcomes["combine result"] == ["True"]
    expected = {
        "rows": "ExchangeOverflowError: rank 0: more rows for its experts than max_rows",
        "tokens": "ExchangeOverflowError: rank 1: more tokens than the capacity of the region",
        "slot": "ExchangeOverflowError: rank 1: a selection has a slot that does not exist",
        "dispatch": "ExchangeTimeoutError: rank 1 waited 0.05 s for rank 0 in dispatch",
        "combine": "ExchangeTimeoutError: rank 0 waited 0.05 s for rank 1 in combine",
    }
    for name, text in expected.items():
        assert [found.startswith(text) for found in outcomes[name]] == [True, True], outcomes[name]
