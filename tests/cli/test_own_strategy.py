"""Strategies that are not in eplb, on the command line: `module:object`, `file.py:object`, installed ones."""

import json

import pytest

from eplb.strategies import own_strategy
from tests.planning.test_own_strategy import Entry

SOURCE = '''"""A strategy for the tests."""

import numpy as np


def backwards(problem, *, seed=0):
    """Experts in falling order of their ids."""
    ids = np.arange(problem.topology.num_slots)[::-1] % problem.load.num_experts
    return np.tile(ids, (problem.load.num_layers, 1))
'''
RANKS = ("--ranks", 4)


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "backwards_strategy.py"
    path.write_text(SOURCE)
    return f"{path}:backwards"


def test_plan_compare_sweep_and_report_show_it(run, load_path, own, tmp_path):
    plan = tmp_path / "plan.json"
    result = run("plan", load_path, *RANKS, "--strategy", own, "-o", plan, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["strategy"] == "backwards"
    compared = json.loads(run("compare", load_path, *RANKS, "--strategies", f"{own},greedy", "--json").stdout)
    assert [one["strategy"] for one in compared["strategies"]] == ["backwards", "greedy"]
    swept = json.loads(run("sweep", load_path, *RANKS, "-k", "0:8:4", "--strategy", own, "--json").stdout)
    greedy = json.loads(run("sweep", load_path, *RANKS, "-k", "0:8:4", "--json").stdout)
    assert (swept["strategy"], greedy["strategy"]) == (own, "greedy")
    assert swept["points"][0]["max_over_mean_mean"] > greedy["points"][0]["max_over_mean_mean"]
    shown = run("report", load_path, *RANKS, "--strategy", own, "-o", tmp_path / "report.html", "--json")
    assert shown.exit_code == 0, shown.stderr
    assert list(json.loads(shown.stdout)["plans"]) == ["experts in order", "backwards"]


def test_backtest_scores_what_is_named(run, own):
    words = ("backtest", "sample:moe-435m-windows", "--ranks", 32, "--strategies", f"{own},linear", "--json")
    scored = json.loads(run(*words).stdout)["candidates"]
    assert {one["candidate"] for one in scored} == {"backwards", "linear"}


def test_a_module_is_found_on_the_path(run, load_path, own, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    result = run("plan", load_path, *RANKS, "-s", "backwards_strategy:backwards", "--json")
    assert json.loads(result.stdout)["strategy"] == "backwards"


def test_a_strategy_that_is_not_there_is_bad_input(run, load_path):
    result = run("plan", load_path, *RANKS, "-s", "nothing.py:snake")
    assert (result.exit_code, result.stderr) == (3, "error: strategy: no file nothing.py\n")


def test_a_strategy_beside_a_plan_is_refused(run, load_path, plan_path, tmp_path):
    result = run("report", load_path, "--plan", plan_path, "-s", "greedy", "-o", tmp_path / "out.html")
    assert result.exit_code == 2
    assert "--strategy" in result.stderr


def test_installed_ones_are_listed_and_what_hinders_one_is_shown(run, monkeypatch):
    here = "tests.planning.test_own_strategy"
    entries = [
        Entry("hottest_twice", f"{here}:HottestTwice"),
        Entry("x", "no.such:X"),
        Entry("greedy", f"{here}:HottestTwice"),
    ]
    monkeypatch.setattr(own_strategy, "entry_points", lambda group: entries)
    listed = json.loads(run("strategies", "--json").stdout)
    assert listed["hottest_twice"]["summary"] == "for the tests"
    assert listed["x"]["summary"].startswith("cannot be used: strategy 'x' of no.such:X cannot be imported")
    assert "eplb has a strategy of this name" in listed[f"greedy of {here}:HottestTwice"]["summary"]
