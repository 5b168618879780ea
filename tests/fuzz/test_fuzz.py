"""A few random cases of `make fuzz` at every run, in a process with a time limit, and a checker that can fail."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eplb
from tests.fuzz.cases import Case, case
from tests.fuzz.check import busiest_even, check
from tests.fuzz.run import outcome

LOAD = eplb.ExpertLoad([[9.0, 5, 4, 2, 1, 1]])
TOPOLOGY = eplb.Topology(2, 2, 2)
CASE = Case(0, "greedy", LOAD, TOPOLOGY, {"groups": 2})


def test_a_hundred_cases_end_in_a_good_plan_or_a_named_error_within_the_time_limit():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.fuzz.run", "--cases", "100"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 cases from 0 on, 0 failed" in done.stdout
    assert done.stdout.count("planned") > 5


@given(number=st.integers(1 << 20, 1 << 40))
@settings(max_examples=max(1, settings.default.max_examples // 2))
def test_any_case_ends_in_a_good_plan_or_a_named_error(number):
    outcome(case(number))


@pytest.mark.parametrize(
    "number",
    [
        1004420,  # ilp: the integer scale of a load near 1e-299 was infinite
        1006688,  # traffic: a node was left without an expert
    ],
)
def test_cases_that_failed_once(number):
    outcome(case(number))


def test_equal_numbers_give_equal_cases_and_many_kinds_of_them():
    assert case(7).load == case(7).load
    assert case(7).options == case(7).options
    made = [case(number) for number in range(300)]
    assert {each.strategy for each in made} >= {"auto", "rebalance", "ilp", "traffic", "deepseek", "zigzag"}
    assert any(each.previous is not None and (each.previous.physical_to_logical_map < 0).any() for each in made)
    assert any(each.previous is not None and each.previous.duplicate_slots.any() for each in made)
    assert any(each.topology.rank_speed is not None for each in made)
    tokens = np.concatenate([each.load.tokens.ravel() for each in made])
    assert tokens.max() > 1e280
    assert tokens[tokens > 0].min() < 1e-280
    assert (tokens == 0).any()


# --- the checker ------------------------------------------------------------------------------------------------------


def with_row(row):
    made = CASE.plan()
    return dataclasses.replace(made, placement=eplb.Placement([row], 6, TOPOLOGY))


def test_a_good_plan_passes():
    check(CASE, CASE.plan())


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ([0, 0, 1, 2, 3, 4, 5, 1], {}, "holds"),
        ([0, -1, 1, 2, 3, 4, 5, 1], {}, "an empty slot"),
        ([0, 3, 1, 2, 0, 4, 5, 1], {"groups": 2, "group_mode": "pinned"}, "group 0 on nodes"),
        ([0, 3, 1, 2, 0, 4, 5, 1], {"survive": "rank"}, "expert 2 on ranks"),
        ([0, 3, 0, 2, 1, 4, 5, 1], {"survive": "node"}, "expert 0 on nodes"),
    ],
)
def test_a_broken_layout_is_caught(row, options, message):
    with pytest.raises(AssertionError, match=message):
        check(dataclasses.replace(CASE, options={**CASE.options, **options}), with_row(row))


@pytest.mark.parametrize(
    "claim", [{"objective": 1.001}, {"objective": 0.999}, {"lower_bound": 1.5}, {"lower_bound": 0}]
)
def test_a_false_claim_is_caught(claim):
    made = CASE.plan()
    changed = {name: getattr(made.layers[0], name) * factor for name, factor in claim.items()}
    layers = (dataclasses.replace(made.layers[0], **changed),)
    with pytest.raises(AssertionError, match="layer 0"):
        check(CASE, dataclasses.replace(made, layers=layers))


def test_plain_sums_by_hand():
    # Speeds 1 and 3, scaled to 0.5 and 1.5: the first rank carries 4 / 2 + 1 = 3 tokens in 6, the second 4 / 2 + 5.
    topology = eplb.Topology(1, 2, 2, (1.0, 3.0))
    assert busiest_even(np.array([0, 2, 0, 1]), np.array([4.0, 5, 1]), topology) == pytest.approx(6.0)
