"""The examples in the docstrings of the public functions print what they show."""

import doctest
import inspect

import pytest

import eplb
from eplb import datasets, testing

MODULES = {eplb: eplb.__all__, datasets: datasets.__all__, testing: testing.__all__}
FUNCTIONS = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module, names in MODULES.items()
    for name in names
    if inspect.isfunction(getattr(module, name))
}
NEEDS = {"eplb.read_trace": "pyarrow", "eplb.datasets.moe_435m": "pyarrow"}


def results_of(function) -> doctest.TestResults:
    """The number of examples of a function, and how many of them failed."""
    (test,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__, globs={})
    return doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE).run(test, clear_globs=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_has_examples_that_hold(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip(NEEDS.get(name, "numpy"))
    monkeypatch.chdir(tmp_path)
    found = results_of(FUNCTIONS[name])
    assert found.attempted >= 2, f"{name} has no example"
    assert found.failed == 0, capsys.readouterr().out


def test_a_wrong_example_is_noticed(capsys):
    def wrong():
        """One and one.

        >>> 1 + 1
        3
        """

    assert results_of(wrong).failed == 1
    assert "Expected:\n    3\nGot:\n    2" in capsys.readouterr().out
