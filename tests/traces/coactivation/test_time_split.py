"""Halves of a trace: whole steps or whole requests, nothing lost, nothing in both."""

import numpy as np
import pytest
from hypothesis import given

from eplb_traces import InputError, ModelShape, RoutingTrace
from eplb_traces.coactivation.time_split import split
from tests.traces.coactivation.cases import trace_of
from tests.traces.examples import joined, traces


def test_halves_are_earlier_and_later_steps():
    # 6 tokens in steps 3, 3, 3, 8, 8, 40: cut before step 8 (3 | 3), not before 40 (5 | 1).
    trace = trace_of([[0, 1]] * 6, 2, step=[8, 3, 3, 40, 3, 8])
    earlier, later = split(trace)
    assert sorted(joined(earlier)["step"]) == [3, 3, 3]
    assert sorted(joined(later)["step"]) == [8, 8, 40]


def test_a_first_step_with_most_tokens_is_the_earlier_half():
    earlier, later = split(trace_of([[0, 1]] * 6, 2, step=[1, 1, 1, 1, 1, 2]))
    assert (earlier.num_tokens, later.num_tokens) == (5, 1)


def test_one_step_is_cut_by_every_second_request():
    trace = trace_of([[0, 1]] * 7, 2, request=[5, 9, 9, 2, 7, 7, 5])
    first, second = split(trace)  # requests 2, 5, 7, 9
    assert sorted(joined(first)["request"]) == [2, 7, 7]
    assert sorted(joined(second)["request"]) == [5, 5, 9, 9]


@given(traces())
def test_no_token_is_lost_or_in_both_halves(trace):
    columns = joined(trace)
    if len(set(columns["step"])) == 1 and len(set(columns["request"])) == 1:
        with pytest.raises(InputError, match="one step and one request"):
            split(trace)
        return
    halves = split(trace)
    assert sum(half.num_tokens for half in halves) == trace.num_tokens
    assert all(half.num_tokens > 0 for half in halves)
    total = sum(half.load().total for half in halves)
    np.testing.assert_array_equal(total, trace.load().total)


def test_no_tokens_are_named():
    with pytest.raises(InputError, match="the trace has no tokens"):
        split(RoutingTrace(ModelShape(1, 3, 2), []))
